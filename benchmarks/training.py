"""What caching the lower layers saves: the same training with and without it, each in a process.

Trains a copy of compliance-review on a few documents twice, and prints time and peak memory of the
cached training as a share of the plain one's. The losses of both are compared: they must agree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Metric, arguments, finish, need

from agentkit.training.spec import load_train_spec
from agentkit.training.train import copy_untrained

ROOT = Path(__file__).resolve().parent.parent
AGENTKIT = Path(sys.executable).with_name("agentkit")


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--epochs", type=float, default=3.0)
    options = parser.parse_args()
    need(options.data_dir)
    with tempfile.TemporaryDirectory() as scratch:
        plain, cached = (trained(Path(scratch), options, cached=kept) for kept in (False, True))
    drift = max(
        abs(a["loss"] - b["loss"]) / a["loss"]
        for a, b in zip(plain["loss"], cached["loss"], strict=True)
    )
    share = cached["seconds"] / plain["seconds"]
    memory = cached["peak_memory_bytes"] / plain["peak_memory_bytes"]
    metrics = [
        Metric("plain_seconds", plain["seconds"], "s"),
        Metric("cached_seconds", cached["seconds"], "s"),
        Metric("cached_share_of_time", share, "", "<= 0.8", share <= 0.8),
        Metric("cached_share_of_peak_memory", memory, "", "<= 1", memory <= 1),
        Metric("largest_difference_of_loss", drift, "", "<= 0.02", drift <= 0.02),
        Metric("epochs", options.epochs),
        Metric("tokens_per_epoch", plain["tokens_per_epoch"]),
    ]
    return finish("training", metrics, options.json)


def trained(scratch: Path, options, *, cached: bool) -> dict:  # noqa: ANN001
    """The metrics of one training in a process and a home of its own."""
    name = "cached" if cached else "plain"
    skill = ROOT / "skills" / "compliance-review"
    data = load_train_spec(skill / "train.yaml").data[0].model_dump(exclude_unset=True)
    changes = {
        "cache_lower": cached,
        "epochs": options.epochs,
        "max_minutes": None,
        "data": [data | {"limit": options.documents}],
    }
    folder = copy_untrained(skill, scratch / name, changes)
    subprocess.run(
        [
            AGENTKIT,
            "train",
            folder,
            "--data-dir",
            options.data_dir,
            "--work",
            scratch / f"w-{name}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ,
    )
    return json.loads((folder / "metrics.json").read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
