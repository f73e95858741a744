# `make run` and `make test` set up everything they need in .venv and can be run again at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NF4 := $(VENV)/nf4
CONTRACT ?= examples/documents/services_agreement.pdf

.PHONY: run test lint bench clean

run: $(READY)
	$(BIN)/agentkit models fetch
	$(BIN)/agentkit run workflows/contract_review.yaml --input document=$(CONTRACT) --out out

test: $(READY)
	$(BIN)/agentkit models fetch
	PYTHONPATH=$(NF4) $(BIN)/python -m pytest tests/training/test_quantized.py || [ $$? -eq 5 ]
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/all.py

clean:
	rm -rf $(VENV) out build dist

# bitsandbytes is apart: whoever has it imports it with PEFT, in time and memory of every command.
# The constraints pin every version; without them a looser torch would bring gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade \
	  --target $(NF4) bitsandbytes
	touch $(READY)
