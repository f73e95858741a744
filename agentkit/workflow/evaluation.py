"""A workflow over rows that say what is right, each error charged to router, retrieval or skill.

Each row is run as it is served, and again with one thing put right after the other:

- `routed`: as it is.
- `true_routes`: each step for which the row names a skill is done by that skill.
- `gold_context`: with true routes, each step for which the row gives `spans` is shown exactly the
  sentences that they touch.
- `without_context`: with true routes, no step is shown anything beside its own input. It is told
  beside the others and charged to nobody: it says what the context is worth.

What is counted is a *target*: an output of the workflow, or the output of a step (or of an item of
it), that a row says. A target that is right as routed is `right`. One that is wrong is charged to
the `router` if it is right with true routes; otherwise to `retrieval` if it is right with gold
context; otherwise to the `skill`. What a row does not say cannot be charged: without named skills
nothing goes to the router, without spans nothing to retrieval. A step's error counts where it is
seen: an output that is wrong because of an earlier step's route is charged to the router as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from agentkit.errors import AgentkitError, CancelledError
from agentkit.evaluation.resampling import RESAMPLES, Figure, intervals
from agentkit.types import ContextSpec, Json, StepCall, StepResult, StepRunner
from agentkit.workflow.compile import CompiledWorkflow
from agentkit.workflow.gold import BASE, GoldRow, GoldStep
from agentkit.workflow.records import DOCUMENT, is_document_reference
from agentkit.workflow.run import RunOutcome, start
from agentkit.workflow.steps import run_calls
from agentkit.workflow.whatif import NO_CONTEXT

Arm: TypeAlias = Literal["routed", "true_routes", "gold_context", "without_context"]
Charge: TypeAlias = Literal["right", "router", "retrieval", "skill"]

ARMS: tuple[Arm, ...] = ("routed", "true_routes", "gold_context", "without_context")
CHARGES: tuple[Charge, ...] = ("right", "router", "retrieval", "skill")


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that a row says is right, and in which arms it came out so."""

    row: str
    group: str
    """Rows of one document are drawn together for intervals."""
    of: Literal["output", "step"]
    name: str
    item: int | None
    right: Mapping[Arm, bool]

    @property
    def charge(self) -> Charge:
        if self.right["routed"]:
            return "right"
        if self.right["true_routes"]:
            return "router"
        return "retrieval" if self.right["gold_context"] else "skill"


@dataclass(frozen=True, slots=True)
class RouteSeen:
    """Which skill did a step, and which should have."""

    row: str
    step: str
    item: int | None
    routed: str
    right: str


@dataclass(frozen=True, slots=True)
class RowResult:
    """What one row came to."""

    id: str
    targets: tuple[Target, ...] = ()
    routes: tuple[RouteSeen, ...] = ()
    prediction: Mapping[str, Json] = field(default_factory=dict)
    """The row as routed: its outputs, and of each step the skill and the output."""
    error: str | None = None
    """Why the row could not be run at all; it counts nowhere then."""


@dataclass(frozen=True, slots=True)
class WorkflowEvaluation:
    """All rows together."""

    rows: tuple[RowResult, ...]
    arms: tuple[Arm, ...]
    accuracy: Mapping[Arm, Figure]
    """Share of right targets, with an interval over documents."""
    less_routed: Mapping[Arm, Figure]
    """By how much each arm exceeds `routed`, paired."""

    @property
    def targets(self) -> list[Target]:
        return [target for row in self.rows for target in row.targets]

    @property
    def failed(self) -> int:
        return sum(row.error is not None for row in self.rows)

    def charges(self) -> dict[str, dict[Charge, int]]:
        """How many targets are right, and to what the others are charged: of each output
        (`outputs.NAME`) and step (`steps.NAME`), and of `all`."""
        counts: dict[str, dict[Charge, int]] = {}
        for target in self.targets:
            kind = "outputs" if target.of == "output" else "steps"
            for name in (f"{kind}.{target.name}", "all"):
                counts.setdefault(name, dict.fromkeys(CHARGES, 0))[target.charge] += 1
        everything = counts.pop("all", dict.fromkeys(CHARGES, 0))
        return {**counts, "all": everything}

    def steps(self) -> dict[str, dict[str, float | int | None]]:
        """Of each step: how often its route was right, and its output in each arm."""
        names = dict.fromkeys(
            [one.step for row in self.rows for one in row.routes]
            + [target.name for target in self.targets if target.of == "step"]
        )
        found: dict[str, dict[str, float | int | None]] = {}
        for name in names:
            routes = [one for row in self.rows for one in row.routes if one.step == name]
            own = [t for t in self.targets if t.of == "step" and t.name == name]
            found[name] = {
                "routes": len(routes),
                "route_accuracy": _share(one.routed == one.right for one in routes),
                "outputs": len(own),
                **{arm: _share(target.right[arm] for target in own) for arm in self.arms},
            }
        return found

    def to_json(self) -> dict[str, Json]:
        return {
            "rows": len(self.rows),
            "failed": self.failed,
            "targets": len(self.targets),
            "accuracy": {arm: self.accuracy[arm].to_json() for arm in self.accuracy},
            "beyond_routed": {arm: one.to_json() for arm, one in self.less_routed.items()},
            "charges": self.charges(),
            "steps": self.steps(),
            "wrong_routes": [
                {
                    "row": one.row,
                    "step": one.step,
                    "item": one.item,
                    "routed": one.routed,
                    "right": one.right,
                }
                for row in self.rows
                for one in row.routes
                if one.routed != one.right
            ],
        }


def evaluate_workflow(
    compiled: CompiledWorkflow,
    rows: Sequence[GoldRow],
    *,
    without_context: bool = True,
    on_row: Callable[[RowResult], None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> WorkflowEvaluation:
    """Run every row in every arm and charge its errors; nothing is kept in the run database.

    An arm that could not differ from the one before (the routes were right, no spans are given) is
    not run again. A row whose inputs cannot be read has its error and counts nowhere. Raises
    `CancelledError` when the runner was cancelled.
    """
    arms = ARMS if without_context else ARMS[:-1]
    results: list[RowResult] = []
    for row in rows:
        result = _row(compiled, row, arms)
        results.append(result)
        if on_row is not None:
            on_row(result)
    targets = [target for result in results for target in result.targets]

    def measure(arm: Arm) -> Callable[[Any], dict[str, float | None]]:
        right = [float(target.right[arm]) for target in targets]

        def figures(weights: Any) -> dict[str, float | None]:
            total = float(weights.sum())
            return {"accuracy": float((weights * right).sum()) / total if total else None}

        return figures

    # The first arm is what the others are compared with, so each difference is negated below.
    found = intervals(
        {arm: measure(arm) for arm in arms},
        [target.group for target in targets],
        resamples=resamples,
        seed=seed,
    )
    return WorkflowEvaluation(
        rows=tuple(results),
        arms=arms,
        accuracy={arm: found.figures[arm]["accuracy"] for arm in arms},
        less_routed={
            arm: _negated(found.differences[arm]["accuracy"])
            for arm in arms[1:]
            if "accuracy" in found.differences.get(arm, {})
        },
    )


def matches(expected: Json, actual: Json) -> bool:
    """Whether an answer is right: every key that `expected` names is there with a matching value,
    lists have the same length and match in order, texts are equal but for the white space."""
    if isinstance(expected, Mapping):
        return isinstance(actual, Mapping) and all(
            key in actual and matches(value, actual[key]) for key, value in expected.items()
        )
    if isinstance(expected, list | tuple):
        return (
            isinstance(actual, list | tuple)
            and len(expected) == len(actual)
            and all(matches(*pair) for pair in zip(expected, actual, strict=True))
        )
    if isinstance(expected, str):
        return isinstance(actual, str) and expected.split() == actual.split()
    if isinstance(expected, bool) or expected is None:
        return expected is actual
    return isinstance(actual, int | float) and not isinstance(actual, bool) and expected == actual


# ---------------------------------------------------------------- one row


class _Corrected:
    """A step runner in one arm of one row."""

    def __init__(self, runner: StepRunner, gold: Mapping[str, GoldStep], arm: Arm) -> None:
        self._runner = runner
        self._gold = gold
        self._arm = arm

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]:
        return run_calls(self._runner, [self._corrected(call) for call in calls])

    def _corrected(self, call: StepCall) -> StepCall:
        gold = self._gold.get(call.step, GoldStep())
        skill = gold.skill_of(call.item)
        if skill is not None:
            call = replace(call, skill=skill)
        if self._arm == "without_context":
            return replace(call, context=NO_CONTEXT)
        spans = gold.spans_of(call.item)
        if self._arm == "gold_context" and spans is not None:
            return replace(call, context=replace(call.context or ContextSpec(), spans=spans))
        return call


def _row(compiled: CompiledWorkflow, row: GoldRow, arms: Sequence[Arm]) -> RowResult:
    try:
        inputs = compiled.prepare(row.inputs)
    except AgentkitError as error:
        return RowResult(row.id, error=f"{type(error).__name__}: {error}")
    outcomes: dict[Arm, RunOutcome] = {"routed": _run(compiled, inputs)}
    routes = tuple(_routes(row, outcomes["routed"]))
    for arm in arms[1:]:
        corrected = replace(compiled, runner=_Corrected(compiled.runner, row.steps, arm))
        if arm == "true_routes" and not _rerouted(row, outcomes["routed"], routes):
            outcomes[arm] = outcomes["routed"]
        elif arm == "gold_context" and not _has_spans(row):
            outcomes[arm] = outcomes["true_routes"]
        else:
            outcomes[arm] = _run(corrected, inputs)
    routed = outcomes["routed"]
    return RowResult(
        row.id,
        targets=tuple(_targets(row, _group(row, inputs), outcomes)),
        routes=routes,
        prediction={
            "id": row.id,
            "status": routed.status,
            "error": None if routed.error is None else str(routed.error),
            "outputs": dict(routed.outputs),
            "steps": {
                step: [_told(one) for one in value] if isinstance(value, list) else _told(value)
                for step, value in routed.steps.items()
            },
        },
    )


def _run(compiled: CompiledWorkflow, inputs: Mapping[str, Json]) -> RunOutcome:
    outcome = start(compiled, inputs)
    if outcome.store is not None:
        outcome.store.close()
    if isinstance(outcome.error, CancelledError):
        raise outcome.error
    return outcome


def _targets(row: GoldRow, group: str, outcomes: Mapping[Arm, RunOutcome]) -> Iterator[Target]:
    for name, expected in row.expected.items():
        right = {
            arm: outcome.status == "done" and matches(expected, outcome.outputs.get(name))
            for arm, outcome in outcomes.items()
        }
        yield Target(row.id, group, "output", name, None, right)
    for name, gold in row.steps.items():
        for item, expected in gold.outputs():
            right = {}
            for arm, outcome in outcomes.items():
                record = _record(outcome, name, item)
                right[arm] = record is not None and matches(expected, record["output"])
            yield Target(row.id, group, "step", name, item, right)


def _routes(row: GoldRow, outcome: RunOutcome) -> Iterator[RouteSeen]:
    """The steps that were done and whose right skill the row says."""
    for step, gold in row.steps.items():
        value = outcome.steps.get(step)
        for record in value if isinstance(value, list) else [value]:
            if record is None or record["error"] is not None:
                continue
            item = record.get("index")
            right = gold.skill_of(item)
            if right is not None:
                yield RouteSeen(row.id, step, item, record["skill"] or BASE, right)


def _rerouted(row: GoldRow, outcome: RunOutcome, routes: Sequence[RouteSeen]) -> bool:
    """Whether true routes may lead elsewhere: one was wrong, or the run did not come to its end."""
    says = any(
        "skill" in said.model_fields_set
        for gold in row.steps.values()
        for said in (gold, *gold.items)
    )
    unsure = outcome.status != "done" or bool(outcome.failures)
    return says and (unsure or any(one.routed != one.right for one in routes))


def _has_spans(row: GoldRow) -> bool:
    return any(
        said.spans is not None for gold in row.steps.values() for said in (gold, *gold.items)
    )


def _record(outcome: RunOutcome, step: str, item: int | None) -> Mapping[str, Any] | None:
    value = outcome.steps.get(step)
    if not isinstance(value, list):
        return value if item is None else None
    return next((record for record in value if record.get("index") == item), None)


def _told(record: Mapping[str, Any] | None) -> Json:
    if record is None:
        return None
    return {"skill": record["skill"], "output": record["output"], "error": record["error"]}


def _group(row: GoldRow, inputs: Mapping[str, Json]) -> str:
    documents = sorted(v[DOCUMENT] for v in inputs.values() if is_document_reference(v))
    return json.dumps(documents) if documents else row.id


def _share(found: Iterator[bool] | Any) -> float | None:
    values = list(found)
    return round(sum(values) / len(values), 4) if values else None


def _negated(figure: Figure) -> Figure:
    low = None if figure.high is None else -figure.high
    high = None if figure.low is None else -figure.low
    return Figure(None if figure.value is None else -figure.value, low, high)
