"""Figures are found in what trainings and benchmarks wrote; other files are passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentkit.advise.measured import measured
from agentkit.errors import InputError

TRAINING = {
    "training": {"method": "lora", "layers": "20-29", "rank": 16},
    "data": [{"train_rows": 1500}, {"train_rows": 500}],
    "seconds": 600,
    "peak_memory_bytes": 2_500_000_000,
    "tuning": {"untrained": {"accuracy": 0.3}, "trained": {"accuracy": 0.7, "f1": {"a": 0.1}}},
}
BENCHMARK = {
    "benchmark": "methods",
    "metrics": [
        {"name": "lora accuracy", "value": 0.71, "unit": "share"},
        {"name": "alora accuracy", "value": 0.7, "unit": "share"},
        {"name": "lora missing", "value": None, "unit": ""},
        {"name": "hybrid all layers, macro_f1", "value": 0.61, "unit": ""},
        {"name": "hybrid all layers, macro_f1, low", "value": 0.553, "unit": ""},
        {"name": "hybrid all layers, macro_f1, high", "value": 0.662, "unit": ""},
        {"name": "hybrid all layers, bytes", "value": 7_100_000, "unit": ""},
    ],
}


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    (tmp_path / "lift-log").mkdir()
    (tmp_path / "lift-log" / "metrics.json").write_text(json.dumps(TRAINING), encoding="utf-8")
    (tmp_path / "methods.json").write_text(json.dumps(BENCHMARK), encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "other.json").write_text('{"metrics": {}, "training": 1}', encoding="utf-8")
    return tmp_path


def test_trainings_and_benchmarks_of_the_method_are_found(figures: Path) -> None:
    found = {one.what: one.value for one in measured([figures], "lora")}
    assert found == {
        "lift-log: lora, layers 20-29, rank 16, 2,000 rows": "accuracy 0.7 (untrained 0.3), "
        "10 min, 2.5 GB",
        "methods: lora accuracy": "0.71 share",
    }
    assert [one.what for one in measured([figures], "alora")] == ["methods: alora accuracy"]
    (hybrid,) = measured([figures], "hybrid")
    assert hybrid.what == "methods: hybrid all layers"
    assert hybrid.value == "macro f1 0.61 [0.553, 0.662], bytes 7.1e+06"
    assert measured([figures / "methods.json"], "prefix") == []


@pytest.mark.parametrize(
    ("method", "size"),
    [
        ("dora", "rank 16, "),
        ("bottleneck", "reduction factor 8.0, "),
        ("hybrid", "rank 16, reduction factor 8.0, "),
        ("prefix", "virtual tokens 4, "),
        ("head", ""),
    ],
)
def test_a_training_is_named_with_its_methods_size(tmp_path: Path, method: str, size: str) -> None:
    settings = {"layers": "all", "rank": 16, "reduction_factor": 8.0, "virtual_tokens": 4}
    record = TRAINING | {"training": settings | {"method": method}}
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    (found,) = measured([file], method)
    assert found.what == f"{tmp_path.name}: {method}, layers all, {size}2,000 rows"


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        measured([tmp_path / "missing"], "lora")
