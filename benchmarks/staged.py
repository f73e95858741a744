"""What a general adapter, trained first, gives to a skill with 200 rows.

The general one learns three tasks with the skill's own head: hypotheses about terms of service,
rules about clauses of commercial contracts, and rules about single sentences of these. Then the
skill is trained on 200 rows of non-disclosure agreements, once from nothing and once from the
general adapter and its head, with the same seeds, rows and epochs. Quality is that of whole
documents that no training saw, as served, of all seeds' answers together; intervals are bootstraps
over these documents, which say nothing of what another seed would do.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import Metric, arguments, finish, need
from evaluations import Kept, bounds, compared
from trainings import QUALITY, ROOT, SKILL, held_out, measured_on, record, source, trained

from agentkit.evaluation.baselines import Predictor
from agentkit.evaluation.scoring import Prediction
from agentkit.kit import Kit
from agentkit.skill.folder import load_skill
from agentkit.training.rows import Row

FOLDERS = ROOT / "out" / "staged"
TASKS = ("tosdr_pages", "cuad_rules", "cuad_sentences")


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the general training")
    parser.add_argument("--documents", type=int, default=12, help="17 rows each, of the small one")
    parser.add_argument("--general", type=int, default=40, help="documents of each of its tasks")
    parser.add_argument("--tuning", type=int, default=10, help="documents to tune on")
    parser.add_argument("--held", type=int, default=16, help="documents to measure on")
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
    measured = measured_on(options.tuning, split="train_full_50")
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
    folders: dict[str, dict[str, Path]] = {"staged": {}, "alone": {}}
    for seed in range(7, 7 + options.seeds):
        for way, by_seed in folders.items():
            changes = shared | {
                "epochs": options.epochs,
                "max_minutes": None,
                "seed": seed,
                "data": [small, measured],
            }
            if way == "staged":
                changes["start_from"] = str(general.resolve())
            into = options.folders / f"{way}-{seed}"
            by_seed[f"seed {seed}"] = trained(
                f"{way}, seed {seed}", into, changes, options.data_dir
            )
    rows = held_out(folders["alone"]["seed 7"], options.data_dir, options.held)
    metrics = quality(folders, general, rows)
    records = {way: [record(one) for one in found.values()] for way, found in folders.items()}
    metrics += [
        Metric("rows", sum(one["train_rows"] for one in records["alone"][0]["data"])),
        Metric("seeds", options.seeds),
        Metric("general_seconds", record(general)["seconds"], "s"),
        Metric("small_seconds", statistics.mean(one["seconds"] for one in records["staged"]), "s"),
    ]
    return finish("staged", metrics, options.json)


@dataclass(frozen=True, slots=True)
class BySeed:
    """Answers each row with the training of the seed that its `place` names."""

    predictors: Mapping[str, Predictor]

    def __call__(self, rows: Sequence[Row]) -> list[Prediction]:
        given: dict[int, Prediction] = {}
        for seed, predict in self.predictors.items():
            own = [at for at, row in enumerate(rows) if row.place == seed]
            if own:
                given |= zip(own, predict([rows[at] for at in own]), strict=True)
        return [given[at] for at in range(len(rows))]


def quality(
    folders: Mapping[str, Mapping[str, Path]], general: Path, asked: Sequence[Row]
) -> list[Metric]:
    """Figures of each way and of the general adapter, and what the first way adds to the others."""
    first = next(iter(folders))
    rows = [replace(row, place=seed) for seed in folders[first] for row in asked]
    with Kit() as kit:

        def predictor(folder: Path) -> Predictor:
            skill = kit.store.admit(load_skill(folder, name=SKILL.name))
            return Kept(kit, skill, folder.parent / "answers.jsonl")

        predictors: dict[str, Predictor] = {
            way: BySeed({seed: predictor(folder) for seed, folder in by_seed.items()})
            for way, by_seed in folders.items()
        }
        predictors["general adapter as it is"] = predictor(general)
        found = compared(kit, "held out", load_skill(general).manifest, rows, predictors)
    metrics = []
    for figure in QUALITY:
        for way, one in found.subjects.items():
            metrics += [Metric(f"{figure}, {way}", one.figures[figure].value)]
            metrics += bounds(f"{figure}, {way}", one.figures[figure])
        for way, one in found.subjects.items():
            if figure in one.differences:
                called = f"{figure}, {first} over {way}"
                metrics += [Metric(called, one.differences[figure].value)]
                metrics += bounds(called, one.differences[figure])
    return [
        *metrics,
        Metric("questions", len(asked)),
        Metric("documents", found.documents),
    ]


if __name__ == "__main__":
    sys.exit(main())
