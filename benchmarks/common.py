"""What every benchmark shares: arguments, the machine, the table and the JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

DATA = Path(os.environ.get("AGENTKIT_DATA", "../shared/data"))


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure; `met` is None where there is no target."""

    name: str
    value: float | None
    unit: str = ""
    target: str | None = None
    met: bool | None = None


def at_least(name: str, value: float, target: float, unit: str = "") -> Metric:
    return Metric(name, value, unit, f">= {target:g}", value >= target)


def at_most(name: str, value: float, target: float, unit: str = "") -> Metric:
    return Metric(name, value, unit, f"<= {target:g}", value <= target)


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the metrics here")
    parser.add_argument("--data-dir", type=Path, default=DATA, help="folder of the data sets")
    return parser


def finish(benchmark: str, metrics: Sequence[Metric], json_path: Path | None) -> int:
    """Print the table, write the JSON, and return the exit code: 1 if a target is missed."""
    table = Table(title=benchmark, box=None, header_style="bold")
    for column in ("metric", "value", "unit", "target", "met"):
        table.add_column(column)
    for m in metrics:
        value = "-" if m.value is None else f"{m.value:.4g}"
        met = "" if m.met is None else ("yes" if m.met else "NO")
        table.add_row(m.name, value, m.unit, m.target or "", met)
    Console().print(table)
    if json_path is not None:
        result = {
            "benchmark": benchmark,
            "machine": machine(),
            "commit": commit(),
            "metrics": [asdict(m) for m in metrics],
        }
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(any(m.met is False for m in metrics))


def machine() -> dict[str, str | int | None]:
    """Where the figures were taken."""
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The commit that is measured, with a `+` where code or skills differ; None outside a
    checkout."""

    def git(*words: str) -> str:
        root = Path(__file__).resolve().parent.parent
        command = ["git", *words]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    named = git("rev-parse", "--short=7", "HEAD")
    changed = git("status", "--porcelain", "--", "agentkit", "skills", "benchmarks/*.py")
    return f"{named}{'+' if changed else ''}" if named else None


def need(folder: Path) -> None:
    """Leave, saying so, when the data sets are not there."""
    if not folder.is_dir():
        sys.stderr.write(f"skipped: no data sets at {folder} (give --data-dir)\n")
        raise SystemExit(0)
