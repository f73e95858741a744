"""What the nodes of a workflow's graph do: one step, or the decision that a step waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from agentkit.errors import CancelledError, InputError, LimitError, RunError
from agentkit.types import ContextSpec, Json, Route, StepCall, StepResult, StepRunner
from agentkit.workflow.approval import Decision
from agentkit.workflow.program import StepProgram
from agentkit.workflow.records import (
    Record,
    Recorder,
    at_step,
    bare_record,
    may_be_retried,
    record_of,
)

MAX_ITEMS = 10_000
CHOSEN_BY_A_PERSON = "skill chosen by a person"
"""The reason of a route that abstained and was decided by somebody."""

Emit = Callable[[Mapping[str, Json]], None]
Names = Mapping[str, Json]


@dataclass(frozen=True)
class Work:
    """The items of a step as this run's values make them; a step without `for_each` has one."""

    items: tuple[Json, ...]
    many: bool
    names: Names

    def names_of(self, index: int) -> Names:
        if not self.many:
            return self.names
        return {**self.names, "item": self.items[index], "index": index}

    def key(self, index: int) -> int | None:
        return index if self.many else None

    def mark(self, record: Record, index: int) -> Record:
        if not self.many:
            return record
        return {"item": self.items[index], "index": index, **record}


def attempts_of(step: StepProgram) -> int:
    """How often the step may be tried."""
    return 1 if step.spec.retry is None else step.spec.retry.attempts


def plan(step: StepProgram, names: Names) -> Work | None:
    """What there is to do; None if `when` is false. Raises `ExpressionError`, `LimitError`."""
    if step.when is not None and not step.when.evaluate(names):
        return None
    if step.for_each is None:
        return Work((None,), False, names)
    items = step.for_each.evaluate(names)
    if not isinstance(items, list):
        raise InputError(
            f"for_each needs a list, {step.for_each.shown} gives {type(items).__name__}",
            where=step.for_each.where or f"step {step.id!r}",
        )
    if len(items) > MAX_ITEMS:
        raise LimitError(
            f"for_each over {len(items):,} items",
            where=step.for_each.where or f"step {step.id!r}",
            hint=f"at most {MAX_ITEMS:,}",
        )
    return Work(tuple(items), True, names)


def call_of(step: StepProgram, work: Work, index: int) -> StepCall:
    """The call for one item, its templates rendered."""
    names = work.names_of(index)
    spec = step.spec
    context = None
    if spec.context is not None:
        sources = None if step.index is None else step.index.evaluate(names)
        context = ContextSpec(
            index=tuple(map(str, sources))
            if isinstance(sources, list)
            else None
            if sources is None
            else str(sources),
            query=None if step.query is None else str(step.query.evaluate(names)),
            top_k=spec.context.top_k,
            budget=spec.context.budget,
            mode=spec.context.mode,
            filters=spec.context.filters,
        )
    return StepCall(
        step=step.id,
        instruction=str(step.instruction.evaluate(names)).strip(),
        input=step.input.evaluate(names),
        skill=spec.skill,
        context=context,
        on_uncertain=spec.on_uncertain,
        threshold=spec.threshold,
        item=work.key(index),
        fields=None if step.fields is None else tuple(sorted(step.fields)),
    )


def perform(
    step: StepProgram, work: Work, runner: StepRunner, recorder: Recorder, emit: Emit, attempt: int
) -> list[Record]:
    """Do a step: one record per item, in order.

    Items that are recorded already are not done again. A failed item of a `for_each` becomes a
    record with its error, unless every item failed. Raises the error of a step that failed, or,
    while attempts are left, of an item worth another try.
    """
    done = dict(recorder.done(step.id))
    records: dict[int, Record] = {
        index: done[work.key(index)] for index in range(len(work.items)) if work.key(index) in done
    }
    pending = [index for index in range(len(work.items)) if index not in records]
    failures: dict[int, Exception] = {}
    if step.set is not None:
        for index in pending:
            record = bare_record(step.set.evaluate(work.names_of(index)))
            records[index] = recorder.add(step.id, work.key(index), work.mark(record, index))
    elif pending:
        calls = [call_of(step, work, index) for index in pending]
        for place, result in results_of(runner, calls):
            index = pending[place]
            if isinstance(result, Exception):
                failures[index] = at_step(result, step.id)
            else:
                record = work.mark(record_of(result), index)
                if not result.needs_human:
                    record = recorder.add(step.id, work.key(index), record)
                records[index] = record
                emit(_item_done(step, work, index, record))
    _raise_if_due(work, failures, last=attempt >= attempts_of(step))
    for index, error in failures.items():
        record = work.mark(bare_record(error=f"{type(error).__name__}: {error}"), index)
        records[index] = recorder.add(step.id, work.key(index), record)
        emit(_item_done(step, work, index, records[index]))
    return [records[index] for index in range(len(work.items))]


def _raise_if_due(work: Work, failures: Mapping[int, Exception], *, last: bool) -> None:
    if not failures:
        return
    first = next(iter(failures.values()))
    for error in failures.values():
        if isinstance(error, CancelledError) or (not last and may_be_retried(error)):
            raise error
    if not work.many or len(failures) == len(work.items):
        raise first


def decide(
    step: StepProgram,
    work: Work,
    records: Sequence[Record],
    decisions: Mapping[int | None, Decision],
    runner: StepRunner,
    recorder: Recorder,
    emit: Emit,
) -> list[Record]:
    """Carry out what people decided for the waiting items. Raises the error of a failed call."""
    done = dict(recorder.done(step.id))
    decided = list(records)
    calls: list[StepCall] = []
    for index, record in enumerate(records):
        key = work.key(index)
        if not record["needs_human"]:
            continue
        if key in done:
            decided[index] = done[key]
            continue
        decision = decisions[key]
        if decision.skill is None:
            given = {**record, "output": decision.output, "needs_human": False}
            given["route"] = {**record["route"], "reason": "output given by a person"}
            decided[index] = recorder.add(step.id, key, given)
            emit(_item_done(step, work, index, decided[index]))
        else:
            calls.append(replace(call_of(step, work, index), skill=decision.skill))
    for place, result in results_of(runner, calls) if calls else ():
        if isinstance(result, Exception):
            raise at_step(result, step.id)
        index = calls[place].item or 0
        chosen = replace(result, route=_by_a_person(result, records[index]), needs_human=False)
        record = work.mark(record_of(chosen), index)
        record["query"] = records[index].get("query")
        decided[index] = recorder.add(step.id, work.key(index), record)
        emit(_item_done(step, work, index, decided[index]))
    return decided


def _by_a_person(result: StepResult, asked: Record) -> Route:
    scores: dict[str, float] = dict(asked["route"]["scores"])
    score = scores.get(result.skill or "", 0.0)
    return Route(result.skill, score, False, CHOSEN_BY_A_PERSON, scores)


@runtime_checkable
class StreamingRunner(Protocol):
    """A step runner that can also hand out results as they get ready.

    A workflow uses `stream` where it is there: progress shows at once, and a run that is killed in
    the middle of a `for_each` keeps the items that were ready.
    """

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]: ...

    def stream(self, calls: Sequence[StepCall]) -> Iterator[tuple[int, StepResult | Exception]]:
        """Each result once, with the place of its call in `calls`, in any order."""
        ...


def results_of(
    runner: StepRunner, calls: Sequence[StepCall]
) -> Iterator[tuple[int, StepResult | Exception]]:
    """Results with the places of their calls. Raises `RunError` if a call is not answered once."""
    if not isinstance(runner, StreamingRunner):
        yield from enumerate(run_calls(runner, calls))
        return
    open_places = set(range(len(calls)))
    for place, result in runner.stream(calls):
        if place not in open_places:
            raise RunError(f"the step runner answered call {place} twice, or there is none")
        open_places.remove(place)
        yield place, result
    if open_places:
        raise RunError(f"the step runner left {len(open_places)} calls without an answer")


def run_calls(runner: StepRunner, calls: Sequence[StepCall]) -> list[StepResult | Exception]:
    """Run calls together. Raises `RunError` if the runner does not answer each."""
    results = runner.run(calls)
    if len(results) != len(calls):
        raise RunError(f"the step runner gave {len(results)} results for {len(calls)} calls")
    return results


def _item_done(step: StepProgram, work: Work, index: int, record: Record) -> dict[str, Any]:
    return {
        "kind": "item_done",
        "step": step.id,
        "item": work.key(index),
        "total": len(work.items),
        "skill": record["skill"],
        "error": record["error"],
    }
