"""`agentkit advise` as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agentkit.training.spec import TrainSpec

Call = Callable[..., tuple[int, str, str]]


def test_settings_come_with_reasons_and_figures(call: Call, tmp_path: Path) -> None:
    figures = tmp_path / "methods.json"
    record = {"benchmark": "methods", "metrics": [{"name": "lora time", "value": 3, "unit": "min"}]}
    figures.write_text(json.dumps(record), encoding="utf-8")
    code, out, _ = call(["advise", "--rows", 400, "--measured", figures, "--json"])
    assert code == 0
    found = json.loads(out)
    assert found["situation"]["rows"] == 400
    assert {one["setting"] for one in found["advice"]} >= {"method", "layers", "rank"}
    assert all(one["reason"] for one in found["advice"])
    TrainSpec.model_validate(found["train.yaml"] | {"data": [{"path": "rows.jsonl"}]})
    assert ["methods: lora time", "3 min"] in [
        [one["what"], one["value"]] for one in found["measured"]
    ]
    code, out, _ = call(["advise", "--rows", 400])
    assert (code, out.splitlines()[0]) == (0, "setting\tvalue\treason")


def test_rows_and_documents_are_counted_in_a_file(call: Call, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [
        {"input": {"question": f"q{n}", "document": f"{n % 3} " + "words " * 300}, "expected": {}}
        for n in range(12)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, _ = call(["advise", "--data", data, "--json"])
    situation = json.loads(out)["situation"]
    assert code == 0
    assert (situation["rows"], situation["documents"]) == (12, 3)
    assert situation["document_tokens"] == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize("given", [[], ["--rows", 5, "--data", "x.jsonl"], ["--rows", 0]])
def test_rows_are_given_once_and_there_is_at_least_one(call: Call, given: list[object]) -> None:
    code, out, err = call(["advise", *given])
    assert (code, out) == (2, "")
    assert "rows" in err


@pytest.mark.parametrize("option", ["--memory", "--parameters"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "0"])
def test_a_number_that_cannot_be_is_refused(call: Call, option: str, number: str) -> None:
    code, out, err = call(["advise", "--rows", 500, option, number])
    assert (code, out) == (2, "")
    assert f"{option}: must be a number" in err


@pytest.mark.parametrize("option", ["--tasks", "--documents", "--document-tokens", "--layers"])
def test_a_count_that_cannot_be_is_refused(call: Call, option: str) -> None:
    code, out, err = call(["advise", "--rows", 500, option, "0"])
    assert (code, out) == (2, "")
    assert f"{option}: must be a number of at least" in err


def test_a_backbone_that_no_memory_is_left_for_is_refused(call: Call) -> None:
    code, out, err = call(["advise", "--rows", 5000, "--parameters", "7e9", "--memory", 4])
    assert (code, out) == (2, "")
    assert "7e+09 parameters cannot be trained in 4 GB" in err
    assert "takes about 7.7 GB" in err


@pytest.mark.parametrize(
    "given", [[], ["--tasks", 40], ["--tasks", 2000], ["--deployment", "vllm"]]
)
def test_figures_of_the_ways_to_train_come_with_the_package(
    call: Call, given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(["advise", "--rows", 500, *given, "--json"])
    found = json.loads(out)
    method = found["train.yaml"]["method"]
    measured = {one["what"]: one["value"] for one in found["measured"]}
    own = [value for what, value in measured.items() if what.startswith(f"methods: {method} ")]
    assert code == 0
    assert own
    assert all("accuracy" in value and "peak memory" in value for value in own)
