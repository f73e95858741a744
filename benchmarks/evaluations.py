"""Skills measured as they are served, beside each other: shared by the benchmarks of quality."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from common import Metric
from rich.console import Console

import agentkit
from agentkit.evaluation.baselines import Predictor
from agentkit.evaluation.evaluate import evaluate, text_reader
from agentkit.evaluation.report import Evaluation
from agentkit.evaluation.resampling import Figure
from agentkit.evaluation.scoring import Prediction
from agentkit.evaluation.serving import BareEngine, SkillPredictor
from agentkit.kit import Kit
from agentkit.skill.folder import Skill
from agentkit.skill.manifest import Manifest
from agentkit.training.rows import Row

console = Console(stderr=True)


class Progress:
    """Stateful: says how many rows are done."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0

    def __call__(self, count: int) -> None:
        self._done += count
        console.print(f"{self._name}: {self._done}/{self._total}", end="\r")


def served(kit: Kit, skill: Skill, engine: BareEngine | None = None) -> SkillPredictor:
    """The skill as a step of a workflow runs it, or with its adapter off."""
    return SkillPredictor(
        skill,
        engine=engine or kit.engine,
        encoder=kit.encoder,
        documents=kit.documents,
        settings=kit.settings,
    )


class Kept:
    """Stateful: a predictor whose answers are kept in a file, for a benchmark that was cut off.

    They count for the same rows, skill, backbone, settings and code of the package alone.
    """

    def __init__(self, kit: Kit, skill: Skill, path: Path) -> None:
        self._predict = served(kit, skill)
        self._path = path
        set_ = kit.settings.model_dump(mode="json", exclude={"home", "threads"})
        self._named = [skill.digest, kit.engine.fingerprint, set_, _code()]
        self._known: dict[str, list[Any]] = {}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                with suppress(ValueError):  # cut short
                    key, answers = json.loads(line)
                    self._known[key] = answers

    def __call__(self, rows: Sequence[Row]) -> list[Prediction]:
        asked = json.dumps([self._named, [row.input for row in rows]], sort_keys=True)
        key = hashlib.sha256(asked.encode()).hexdigest()
        if key not in self._known:
            answers = [asdict(one) for one in self._predict(rows)]
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, answers]) + "\n")
            self._known[key] = answers
        return [Prediction(**one) for one in self._known[key]]


@cache
def _code() -> str:
    """A digest of the package's modules."""
    digest = hashlib.sha256()
    package = Path(agentkit.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def compared(
    kit: Kit,
    name: str,
    manifest: Manifest,
    rows: Sequence[Row],
    predictors: Mapping[str, Predictor],
) -> Evaluation:
    """The first predictor and the others on the same rows; intervals over documents."""
    found = evaluate(
        manifest,
        rows,
        predictors,
        text_of=text_reader(manifest, lambda digest: kit.documents.get(digest).text),
        on_progress=Progress(name, len(rows)),
    )
    if found is None:
        raise SystemExit(f"{name}: no row says what is right")
    return found


def bounds(called: str, figure: Figure) -> list[Metric]:
    """The ends of a figure's interval, which the README shows beside it."""
    ends = (("low", figure.low), ("high", figure.high))
    return [Metric(f"{called}, {end}", value) for end, value in ends if value is not None]
