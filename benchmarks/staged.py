"""What a general adapter, trained first, gives to a skill with 200 rows.

The general one learns three tasks with the skill's own head: hypotheses about terms of service,
rules about clauses of commercial contracts, and rules about single sentences of these. Then the
skill is trained on 200 rows of non-disclosure agreements, once from nothing and once from the
general adapter and its head, with the same seeds, rows and epochs. Quality is that of whole
documents that no training saw.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from common import Metric, arguments, finish, need
from trainings import QUALITY, ROOT, record, source, trained

FOLDERS = ROOT / "out" / "staged"
TASKS = ("tosdr_pages", "cuad_rules", "cuad_sentences")


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the general training")
    parser.add_argument("--documents", type=int, default=12, help="17 rows each, of the small one")
    parser.add_argument("--general", type=int, default=40, help="documents of each of its tasks")
    parser.add_argument("--tuning", type=int, default=10, help="whole documents to measure on")
    parser.add_argument("--epochs", type=float, default=4.0, help="of the small training")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folders", type=Path, default=FOLDERS, help="where they are trained")
    options = parser.parse_args()
    need(options.data_dir)
    shared = {
        "pack_tokens": 1536,
        "packs_per_step": 1,
        "learning_rate": 1e-3,
        "calibration": [],
    }
    measured = source(split="train_full_50") | {"limit": options.tuning, "tuning": 0.999}
    general = trained(
        "general",
        options.folders / "general",
        shared
        | {
            "epochs": 4,
            "max_minutes": options.minutes,
            "data": [
                *(source(dataset=name) | {"limit": options.general, "tuning": 0} for name in TASKS),
                measured,
            ],
        },
        options.data_dir,
    )
    small = source(split="train_evidence") | {"limit": options.documents, "tuning": 0}
    found: dict[str, list[dict[str, Any]]] = {"alone": [], "staged": []}
    for seed in range(7, 7 + options.seeds):
        for way, records in found.items():
            changes = shared | {
                "epochs": options.epochs,
                "max_minutes": None,
                "seed": seed,
                "data": [small, measured],
            }
            if way == "staged":
                changes["start_from"] = str(general.resolve())
            into = options.folders / f"{way}-{seed}"
            records.append(record(trained(f"{way}, seed {seed}", into, changes, options.data_dir)))
    metrics: list[Metric] = []
    for figure in QUALITY:
        means = {
            way: statistics.mean(one["tuning"]["trained"][figure] for one in records)
            for way, records in found.items()
        }
        before = record(general)["tuning"]["trained"][figure]
        metrics += [
            Metric(f"{figure}, alone", means["alone"]),
            Metric(f"{figure}, staged", means["staged"]),
            Metric(f"{figure}, general adapter as it is", before),
            Metric(f"{figure}, staged over alone", means["staged"] - means["alone"]),
        ]
    first = found["alone"][0]
    metrics += [
        Metric("rows", sum(one["train_rows"] for one in first["data"])),
        Metric("questions", first["tuning"]["trained"]["questions"]),
        Metric("seeds", options.seeds),
        Metric("general_seconds", record(general)["seconds"], "s"),
        Metric("small_seconds", statistics.mean(one["seconds"] for one in found["staged"]), "s"),
    ]
    return finish("staged", metrics, options.json)


if __name__ == "__main__":
    sys.exit(main())
