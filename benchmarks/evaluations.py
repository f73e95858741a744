"""Skills measured as they are served, beside each other: shared by the benchmarks of quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common import Metric
from rich.console import Console

from agentkit.evaluation.baselines import Predictor
from agentkit.evaluation.evaluate import evaluate, text_reader
from agentkit.evaluation.report import Evaluation
from agentkit.evaluation.resampling import Figure
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
