"""Start, follow and resume runs.

A run writes each step's result to its store before LangGraph checkpoints the step, and a step asks
the store before it works; so a run that was killed anywhere goes on without doing or recording
anything twice.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.types import RESUME

from agentkit.errors import AgentkitError, CheckpointError, InputError, RunError
from agentkit.types import Document, Json
from agentkit.workflow.approval import BASE, decisions_of, named_in
from agentkit.workflow.checkpoints import read_checkpoint
from agentkit.workflow.compile import CompiledWorkflow, WorkflowGraph
from agentkit.workflow.database import guarded
from agentkit.workflow.records import Record
from agentkit.workflow.spec import to_yaml
from agentkit.workflow.store import RunStore

_NODES_PER_STEP = 3


@dataclass(frozen=True)
class Event:
    """Something happened in a run."""

    kind: Literal[
        "run_started",
        "step_started",
        "step_skipped",
        "item_done",
        "step_finished",
        "waiting",
        "run_finished",
    ]
    run: str
    step: str | None = None
    item: int | None = None
    total: int | None = None
    """Items of the step, if it is a `for_each`."""
    skill: str | None = None
    seconds: float | None = None
    failed: int = 0
    """Items of the step that failed."""
    attempt: int = 1
    error: str | None = None
    status: str | None = None


@dataclass(frozen=True)
class RunOutcome:
    """How a run stands when its process lets go of it."""

    id: str
    status: Literal["done", "failed", "waiting"]
    outputs: Mapping[str, Json] = field(default_factory=dict)
    report: Mapping[str, Json] | None = None
    steps: Mapping[str, Any] = field(default_factory=dict)
    """Records by step, as expressions see them."""
    waiting: tuple[Mapping[str, Json], ...] = ()
    """Questions to a person: step, and its waiting items with their routes."""
    error: AgentkitError | None = None
    store: RunStore | None = field(default=None, compare=False, repr=False)
    """Where the run is kept, to resume it."""

    @property
    def failures(self) -> list[tuple[str, int, str]]:
        """Items of `for_each` steps that failed: step, index, error."""
        return [
            (step, record["index"], record["error"])
            for step, records in self.steps.items()
            if isinstance(records, list)
            for record in records
            if record["error"]
        ]


Progress = Generator[Event, None, RunOutcome]


def start(
    compiled: CompiledWorkflow,
    inputs: Mapping[str, Json | Document],
    *,
    store: RunStore | None = None,
    run_id: str | None = None,
    skills: Mapping[str, str] | None = None,
    backbone: str = "",
    versions: Mapping[str, str] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunOutcome:
    """Run a workflow. A failed step gives an outcome with `status="failed"` and its `error`.

    `skills` (name to digest), `versions` (of those from a folder with a version) and `backbone`, by
    default what the workflow is bound to, are kept with the run. Without a store the run is kept in
    memory. Raises `InputError` for wrong inputs, before a run begins.
    """
    progress = stream(
        compiled,
        inputs,
        store=store,
        run_id=run_id,
        skills=skills,
        backbone=backbone,
        versions=versions,
    )
    return _drain(progress, on_event)


def stream(
    compiled: CompiledWorkflow,
    inputs: Mapping[str, Json | Document],
    *,
    store: RunStore | None = None,
    run_id: str | None = None,
    skills: Mapping[str, str] | None = None,
    backbone: str = "",
    versions: Mapping[str, str] | None = None,
) -> Progress:
    """Like `start`, as a generator of events; its return value is the outcome.

    A consumer that stops early leaves the run `interrupted`, to be resumed.
    """
    prepared = compiled.prepare(inputs)
    store = store if store is not None else RunStore()
    run_id = store.create(
        workflow=compiled.spec.name,
        spec=to_yaml(compiled.spec),
        spec_digest=compiled.digest,
        inputs=prepared,
        skills=compiled.skills if skills is None else skills,
        backbone=backbone or compiled.backbone,
        run_id=run_id,
        versions=versions,
        encoder=compiled.encoder,
    )
    return _drive(compiled, store, run_id, _first_state(store, run_id))


def resume(
    compiled: CompiledWorkflow,
    run_id: str,
    value: Json = None,
    *,
    store: RunStore,
    on_event: Callable[[Event], None] | None = None,
) -> RunOutcome:
    """Go on with a run that waits, failed, or was interrupted or killed.

    `value` is the decision a waiting run needs (see `approval`); where several steps wait, it is
    `{"steps": {step: decision}}`. A run that is done gives its outcome again. Raises
    `CheckpointError` if the run cannot be trusted or began with another workflow, `InputError` for
    an unknown run or a malformed decision.
    """
    return _drain(stream_resume(compiled, run_id, value, store=store), on_event)


def stream_resume(
    compiled: CompiledWorkflow, run_id: str, value: Json = None, *, store: RunStore
) -> Progress:
    """Like `resume`, as a generator of events."""
    record = store.show(run_id)
    if store.spec(run_id)[1] != compiled.digest:
        raise CheckpointError(
            f"run {run_id!r} began with another version of the workflow",
            hint="resume it with the workflow as it was, or start a new run",
        )
    found = read_checkpoint(store.saver, run_id, store.path)
    graph = compiled.bind(None, store.saver)
    state = _outcome(graph, store, run_id) if found is not None else None
    if state is not None and state.status == "done":
        if record.status != "done":
            store.claim(run_id)
            store.finish(run_id, "done")
        return _finished(state)
    entry: Any = None if found is not None else _first_state(store, run_id)
    answers: Mapping[str, Json] = {}
    if state is not None and state.waiting:
        if value is None and record.status == "waiting":
            return _finished(state)
        if value is not None:
            decisions = _decisions(state, value)
            _check_named(decisions.values(), record.skills, run_id)
            answers = _answers(graph, run_id, decisions)
    elif value is not None:
        raise InputError(f"run {run_id!r} does not wait for a decision")
    store.claim(run_id)
    if answers:
        _keep(graph, store, run_id, answers)
    return _drive(compiled, store, run_id, entry)


def _drain(progress: Progress, on_event: Callable[[Event], None] | None) -> RunOutcome:
    while True:
        try:
            event = next(progress)
        except StopIteration as stop:
            outcome: RunOutcome = stop.value
            return outcome
        if on_event is not None:
            on_event(event)


def _finished(outcome: RunOutcome) -> Progress:
    yield Event("run_finished", outcome.id, status=outcome.status)
    return outcome


def _first_state(store: RunStore, run_id: str) -> dict[str, Any]:
    record = store.show(run_id)
    return {
        "inputs": dict(record.inputs),
        "steps": {},
        "run": {
            "id": run_id,
            "workflow": record.workflow,
            "started": record.started,
            "backbone": record.backbone,
            "skills": dict(record.skills),
        },
    }


def _config(run_id: str, steps: int = 1) -> RunnableConfig:
    limit = max(25, _NODES_PER_STEP * steps + 5)
    return {"configurable": {"thread_id": run_id}, "recursion_limit": limit}


def _drive(compiled: CompiledWorkflow, store: RunStore, run_id: str, entry: Any) -> Progress:
    settled = False
    try:
        yield Event("run_started", run_id)
        graph = compiled.bind(store.recorder(run_id), store.saver)
        config = _config(run_id, len(compiled.spec.steps))
        outcome: RunOutcome
        try:
            with guarded(store.path):
                for part in graph.stream(entry, config, stream_mode="custom", durability="sync"):
                    yield _event(run_id, part)
                outcome = _outcome(graph, store, run_id)
        except AgentkitError as error:
            outcome = _failed(store, run_id, error)
        text = None if outcome.error is None else _named(outcome.error)
        store.finish(run_id, outcome.status, text)
        settled = True
        if outcome.status == "waiting":
            for asked in outcome.waiting:
                yield Event("waiting", run_id, step=str(asked["step"]))
        yield Event("run_finished", run_id, status=outcome.status, error=text)
        return outcome
    finally:
        if not settled:
            cause = sys.exception()
            if isinstance(cause, Exception):
                store.finish(run_id, "failed", f"{type(cause).__name__}: {cause}")
            else:  # its consumer stopped, or the process is asked to
                store.finish(run_id, "interrupted")


def _named(error: AgentkitError) -> str:
    return f"{type(error).__name__}: {error}"


def _event(run_id: str, part: Any) -> Event:
    return Event(run=run_id, **part)


def _failed(store: RunStore, run_id: str, error: AgentkitError) -> RunOutcome:
    steps: dict[str, Any] = {}
    if not isinstance(error, CheckpointError):
        for entry in store.show(run_id).steps:
            record: Record = entry["record"]
            if entry["item"] is None:
                steps[entry["step"]] = record
            else:
                steps.setdefault(entry["step"], []).append(record)
    return RunOutcome(run_id, "failed", steps=steps, error=error, store=store)


def _outcome(graph: WorkflowGraph, store: RunStore, run_id: str) -> RunOutcome:
    snapshot = graph.get_state(_config(run_id))
    values: dict[str, Any] = dict(snapshot.values)
    waiting = tuple(asked.value for task in snapshot.tasks for asked in task.interrupts)
    # `snapshot.next` leaves out nodes that have written but whose step is not closed; only the last
    # node gives outputs.
    status: Literal["done", "failed", "waiting"] = "done" if "outputs" in values else "failed"
    if waiting:
        status = "waiting"
    return RunOutcome(
        run_id,
        status,
        outputs=values.get("outputs", {}),
        report=values.get("report"),
        steps=values.get("steps", {}),
        waiting=waiting,
        store=store,
    )


def _decisions(state: RunOutcome, value: Json) -> Mapping[str, Json]:
    """By step the decision that a waiting run is resumed with."""
    asked = [str(entry["step"]) for entry in state.waiting]
    if isinstance(value, Mapping) and set(value) == {"steps"}:
        decisions = value["steps"]
        if not isinstance(decisions, Mapping):
            raise InputError("steps must be a mapping of step to decision")
        for step in decisions:
            if step not in asked:
                raise InputError(f"step {step!r} does not wait", hint=f"waiting: {asked}")
        return decisions
    if len(asked) == 1:
        return {asked[0]: value}
    raise InputError(
        f"several steps wait: {', '.join(asked)}",
        hint='give {"steps": {step: decision}}',
    )


def _check_named(decisions: Iterable[Json], skills: Mapping[str, str], run_id: str) -> None:
    """Raises `InputError` for a decision that names a skill which the run does not have."""
    for name in sorted({name for one in decisions for name in named_in(one)}):
        if skills and name not in skills and name != BASE:
            near = difflib.get_close_matches(name, list(skills), n=1)
            raise InputError(
                f"run {run_id!r} has no skill {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"it has {', '.join(skills)}",
            )


def _answers(graph: WorkflowGraph, run_id: str, decisions: Mapping[str, Json]) -> dict[str, Json]:
    """Each waiting task's id with its decision, checked before LangGraph keeps it."""
    answers: dict[str, Json] = {}
    for task in graph.get_state(_config(run_id)).tasks:
        for interrupt in task.interrupts:
            step = str(interrupt.value["step"])
            if step in decisions:
                indexes = [item["index"] for item in interrupt.value["items"]]
                decisions_of(decisions[step], step, indexes)
                answers[task.id] = decisions[step]
    if not answers:
        raise RunError(f"run {run_id!r} waits for nothing that was decided")
    return answers


def _keep(graph: WorkflowGraph, store: RunStore, run_id: str, answers: Mapping[str, Json]) -> None:
    """Put decisions where LangGraph looks for them, in the place of earlier ones.

    Given to it as a command, a second answer to a question would stand behind the first, which
    would be carried out again at every resumption.
    """
    config = graph.get_state(_config(run_id)).config
    with guarded(store.path):
        for task, decision in answers.items():
            store.saver.put_writes(config, [(RESUME, [decision])], task)
