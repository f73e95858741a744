"""What caching the lower layers saves: the same training with and without it, each in a process.

Trains a copy of compliance-review on a few documents, and prints time and peak memory of the cached
training as a share of the plain one's. The losses of both are compared: they must agree. Beside
them stand the ways to less memory, each a share of the cached training's: the upper layers computed
again in the backward pass, and the frozen layers in int8. The rest of a process's memory, most of
it Python's libraries, is the same in all: `import_memory` is what a process holds that has loaded
them and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Metric, arguments, finish, need

from agentkit.training.copies import copy_untrained
from agentkit.training.spec import load_train_spec

ROOT = Path(__file__).resolve().parent.parent
AGENTKIT = Path(sys.executable).with_name("agentkit")
WAYS = {
    "plain": {"cache_lower": False},
    "cached": {},
    "checkpointing": {"checkpointing": True},
    "int8": {"quantization": "int8"},
}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--epochs", type=float, default=3.0)
    options = parser.parse_args()
    need(options.data_dir)
    with tempfile.TemporaryDirectory() as scratch:
        plain, cached, again, int8 = (
            trained(Path(scratch), options, name, changes) for name, changes in WAYS.items()
        )
    drift = max(
        abs(a["loss"] - b["loss"]) / a["loss"]
        for a, b in zip(plain["loss"], cached["loss"], strict=True)
    )
    share = cached["seconds"] / plain["seconds"]
    memory = cached["peak_memory_bytes"] / plain["peak_memory_bytes"]
    lean = [
        Metric(f"{name}_share_of_{what}", one[key] / cached[key])
        for name, one in (("checkpointing", again), ("int8", int8))
        for what, key in (("peak_memory", "peak_memory_bytes"), ("time", "seconds"))
    ]
    metrics = [
        Metric("plain_seconds", plain["seconds"], "s"),
        Metric("cached_seconds", cached["seconds"], "s"),
        Metric("cached_share_of_time", share, "", "<= 0.8", share <= 0.8),
        Metric("cached_share_of_peak_memory", memory, "", "<= 1", memory <= 1),
        Metric("largest_difference_of_loss", drift, "", "<= 0.02", drift <= 0.02),
        Metric("cached_peak_memory", cached["peak_memory_bytes"] / 1e9, "GB"),
        Metric("import_memory", imported() / 1e9, "GB"),
        *lean,
        Metric("epochs", options.epochs),
        Metric("tokens_per_epoch", plain["tokens_per_epoch"]),
    ]
    return finish("training", metrics, options.json)


def imported() -> int:
    """Bytes that a process holds which has imported what trains, and nothing more."""
    code = "import agentkit.training.train, psutil; print(psutil.Process().memory_info().rss)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


def trained(scratch: Path, options, name: str, ways: dict) -> dict:  # noqa: ANN001
    """The metrics of one training in a process and a home of its own."""
    changes = {**ways, "epochs": options.epochs}
    return alone(scratch, name, changes, options.documents, ("--data-dir", str(options.data_dir)))


def alone(
    scratch: Path,
    name: str,
    changes: Mapping[str, Any],
    documents: int,
    given: tuple[str, ...],
    path: Path | None = None,
) -> dict[str, Any]:
    """The metrics of a training on a few NDAs, in a process that finds packages at `path`, too."""
    skill = ROOT / "skills" / "compliance-review"
    data = load_train_spec(skill / "train.yaml").data[0].model_dump(exclude_unset=True)
    own = {"max_minutes": None, "calibration": [], "data": [data | {"limit": documents}]}
    folder = copy_untrained(skill, scratch / name, {**changes, **own})
    more = [str(path)] if path else []
    found = os.pathsep.join([*more, *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [AGENTKIT, "train", folder, *given, "--work", scratch / f"w-{name}"],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": found},
    )
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return metrics


if __name__ == "__main__":
    sys.exit(main())
