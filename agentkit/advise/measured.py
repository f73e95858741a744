"""Figures that trainings and benchmarks left in JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentkit.errors import InputError
from agentkit.training.spec import SIZED_BY

METHODS = Path(__file__).with_name("methods.json")
"""What `benchmarks/methods.py` printed; written by `benchmarks/all.py`."""
_ENDS = ("low", "high")
"""What a benchmark adds to a figure's name to give the ends of its interval."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure that a training or a benchmark left, and the file that it stands in."""

    source: str
    what: str
    value: str


def measured(paths: Iterable[Path], method: str) -> list[Measured]:
    """Figures of trainings by this method, and those of benchmarks that name it.

    A path is a file or a folder that is searched for `metrics.json` and benchmarks' JSON; files of
    another form are passed over. Raises `InputError` for a path that is not there.
    """
    found: list[Measured] = []
    for path in paths:
        if not path.exists():
            raise InputError("no such file or folder", where=str(path))
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, json.JSONDecodeError):
                continue
            if isinstance(record, dict):
                found += _of_benchmark(record, file, method)
                found += _of_training(record, file, method)
    return found


def _of_benchmark(record: Mapping[str, Any], file: Path, method: str) -> list[Measured]:
    name, metrics = record.get("benchmark"), record.get("metrics")
    if not isinstance(name, str) or not isinstance(metrics, list):
        return []
    known = {
        str(one.get("name", "")): one
        for one in metrics
        if isinstance(one, dict) and isinstance(one.get("value"), int | float)
    }
    found: dict[str, list[str]] = {}
    for called, one in known.items():
        # What was measured of one thing stands together: its name, a comma, and the figure's.
        thing, _, figure = called.rpartition(", ")
        if figure in _ENDS and thing in known:
            continue
        words = re.findall(r"[a-z0-9]+", (thing or figure).lower())
        if method in words:
            value = f"{one['value']:,.4g} {one.get('unit', '')}".strip()
            ends = [known[at]["value"] for end in _ENDS if (at := f"{called}, {end}") in known]
            if len(ends) == len(_ENDS):
                value += " [{:.3g}, {:.3g}]".format(*ends)
            line = f"{figure.replace('_', ' ')} {value}" if thing else value
            found.setdefault(thing or figure, []).append(line)
    return [
        Measured(str(file), f"{name}: {thing}", ", ".join(lines)) for thing, lines in found.items()
    ]


def _of_training(record: Mapping[str, Any], file: Path, method: str) -> list[Measured]:
    training, tuning = record.get("training"), record.get("tuning")
    if not isinstance(training, dict) or not isinstance(tuning, dict):
        return []
    if training.get("method") != method or not isinstance(tuning.get("trained"), dict):
        return []
    rows = sum(int(source.get("train_rows", 0)) for source in record.get("data", ()))
    what = (
        f"{file.parent.name}: {method}, layers {training.get('layers')}, "
        f"{_size(training, method)}{rows:,} rows"
    )
    # The same head on the frozen backbone says more than one that has learnt nothing.
    beside = next((name for name in ("frozen", "untrained") if tuning.get(name)), "untrained")
    before = tuning.get(beside) or {}
    figures = [
        f"{name} {value} ({beside} {before.get(name, '-')})"
        for name, value in tuning["trained"].items()
        if isinstance(value, float)
    ]
    cost = [f"{float(record['seconds']) / 60:.0f} min"] if "seconds" in record else []
    if "peak_memory_bytes" in record:
        cost.append(f"{float(record['peak_memory_bytes']) / 1e9:.1f} GB")
    return [Measured(str(file), what, ", ".join([*figures, *cost]))]


def _size(training: Mapping[str, Any], method: str) -> str:
    """The settings that are the method's size: a record has those of all methods."""
    sizes = {str(one): names for one, names in SIZED_BY.items()}.get(method, ())
    return "".join(f"{name.replace('_', ' ')} {training.get(name)}, " for name in sizes)
