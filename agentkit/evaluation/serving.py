"""Skills as predictors: as they are served, and with the adapter off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from agentkit.adapters.heads import ChoiceHead
from agentkit.engine.engine import Engine
from agentkit.engine.install import LoadedSkill
from agentkit.evaluation.scoring import Prediction
from agentkit.output import Answered, to_output
from agentkit.retrieval.retriever import Retriever
from agentkit.routing.controller import Controller
from agentkit.settings import Settings
from agentkit.skill.folder import Skill
from agentkit.step import Runner, _Prepared
from agentkit.training.rows import Row
from agentkit.types import DocumentStore, Encoder, Json, StepCall, StepResult


class BareEngine(Engine):
    """Stateful: an engine that serves skills without their adapters.

    A skill's prompt, schema, task head and choices are its own; what computes is the frozen
    backbone. A head that was trained with the adapter reads states that it was not trained for, and
    does worse than one trained for them would. It shares nothing with another engine, so that no
    state of an adapted reading can be taken for a bare one.
    """

    def _install(self, skill: Skill) -> LoadedSkill:
        """Check and load a skill, then take its adapter out of the modules again."""
        installed = super()._install(skill)
        self._between_steps(lambda: self._slots.empty(installed.slot))
        head = installed.head
        if skill.adapter and isinstance(head, ChoiceHead):
            # A calibration knows the adapter's states: to it all bare ones are new.
            head = head.uncalibrated()
        return replace(installed, prefix_states=None, head=head)


@dataclass(frozen=True, slots=True)
class ScoredResult(StepResult):
    """A step's result, with the output as it would be with every threshold at zero."""

    scores: Json = None


class ScoringRunner(Runner):
    """Stateful: a runner whose results are `ScoredResult`s, both outputs from one computation."""

    def _finish(
        self, one: _Prepared, answers: Sequence[Answered], seconds: float
    ) -> StepResult | Exception:
        result = super()._finish(one, answers, seconds)
        if isinstance(result, Exception) or one.skill is None:
            return result
        known = {field.name: getattr(result, field.name) for field in fields(StepResult)}
        scores = to_output(one.skill.manifest, answers, all_scores=True)
        return ScoredResult(**known, scores=scores)


class SkillPredictor:
    """Answers rows with one skill through the step's own way: context, prompt, validation."""

    def __init__(
        self,
        skill: Skill,
        *,
        engine: Engine,
        encoder: Encoder,
        documents: DocumentStore,
        settings: Settings,
        runner: type[Runner] = ScoringRunner,
    ) -> None:
        self._skill = skill.name
        self._runner = runner(
            {skill.name: skill},
            engine=engine,
            controller=Controller(encoder),  # each call names its skill: nothing is routed
            retriever=Retriever(encoder, settings, documents),
            documents=documents,
            settings=settings,
        )

    def __call__(self, rows: Sequence[Row]) -> list[Prediction]:
        """A prediction for each row, in order; rows of one document are read together."""
        return [_prediction(result) for result in self.results(rows)]

    def results(self, rows: Sequence[Row]) -> list[StepResult | Exception]:
        """What the runner gives for each row, or why it gives nothing."""
        calls = [
            StepCall(
                step=self._skill,
                instruction="",
                skill=self._skill,
                input=row.input if isinstance(row.input, dict) else {"input": row.input},
            )
            for row in rows
        ]
        return self._runner.run(calls)


def _prediction(result: StepResult | Exception) -> Prediction:
    if isinstance(result, Exception):
        return Prediction(None, error=str(result))
    return Prediction(result.output, result.scores if isinstance(result, ScoredResult) else None)
