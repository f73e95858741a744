"""A workflow as a LangGraph `StateGraph`: one node per step, one per approval, edges by `needs`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias, TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.types import RetryPolicy, interrupt

from agentkit.errors import InputError, RunError
from agentkit.types import Document, DocumentStore, Json, StepRunner
from agentkit.workflow import inputs as run_inputs
from agentkit.workflow.approval import decisions_of, question
from agentkit.workflow.program import Program, StepProgram
from agentkit.workflow.records import MemoryRecorder, Record, Recorder, may_be_retried
from agentkit.workflow.spec import WorkflowSpec
from agentkit.workflow.steps import Names, Work, attempts_of, decide, perform, plan

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

    from agentkit.workflow.run import RunOutcome
    from agentkit.workflow.store import RunStore

FINISH = "workflow.outputs"
"""Node that computes the outputs; step names have no dots, so no step is called so."""
APPROVAL = ".approval"


def _merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {**left, **right}


class WorkflowState(TypedDict, total=False):
    """Plain JSON only; documents by reference."""

    inputs: dict[str, Any]
    run: dict[str, Any]
    steps: Annotated[dict[str, Any], _merged]
    outputs: dict[str, Any]
    report: dict[str, Any] | None


WorkflowGraph: TypeAlias = CompiledStateGraph[WorkflowState, Any, WorkflowState, WorkflowState]


@dataclass(frozen=True)
class CompiledWorkflow:
    """A workflow bound to what runs its steps and keeps its documents."""

    program: Program
    runner: StepRunner
    documents: DocumentStore
    readers: Mapping[str, run_inputs.Reader] = field(default_factory=dict)
    skills: Mapping[str, str] = field(default_factory=dict)
    """What its runner has, name to digest: kept with a run, so that it can be resumed."""
    backbone: str = ""
    """The fingerprint of what answers."""
    encoder: str = ""
    """The digest of what routes and searches."""

    @property
    def spec(self) -> WorkflowSpec:
        return self.program.spec

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the workflow says; a run goes on only with the workflow it began with."""
        text = json.dumps(self.spec.to_data(), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def graph(self) -> WorkflowGraph:
        """The graph without a checkpointer of its own: a subgraph takes its parent's."""
        return self.bind()

    def bind(
        self,
        recorder: Recorder | None = None,
        checkpointer: BaseCheckpointSaver[str] | None = None,
    ) -> WorkflowGraph:
        """The graph of one run: results go to `recorder`, checkpoints to `checkpointer`."""
        nodes = _Nodes(self.runner, recorder)
        graph: StateGraph[WorkflowState, Any, WorkflowState, WorkflowState] = StateGraph(
            WorkflowState
        )
        last: dict[str, str] = {}
        for name, step in self.program.steps.items():
            graph.add_node(name, nodes.step(step), retry_policy=_retry(step))
            last[name] = name
            if step.spec.on_uncertain == "human" and step.set is None:
                last[name] = f"{name}{APPROVAL}"
                graph.add_node(last[name], nodes.approval(step), retry_policy=_retry(step))
                graph.add_edge(name, last[name])
        graph.add_node(FINISH, self._finish)
        before: dict[str, list[str]] = {name: [] for name in self.program.steps}
        ends = dict(last)
        for need, name in self.program.edges():
            before[name].append(last[need])
            ends.pop(need, None)
        for name, needed in before.items():
            _join(graph, needed or [START], name)
        _join(graph, list(ends.values()), FINISH)
        graph.add_edge(FINISH, END)
        return graph.compile(checkpointer=checkpointer, name=self.spec.name)

    def prepare(self, given: Mapping[str, Json | Document]) -> dict[str, Json]:
        """A run's inputs, checked, documents put into the store and replaced by references.

        Raises `InputError`.
        """
        return run_inputs.prepare(self.spec, given, self.documents, self.readers)

    def run(
        self,
        inputs: Mapping[str, Json | Document],
        *,
        store: RunStore | None = None,
        run_id: str | None = None,
    ) -> RunOutcome:
        """Run to the end (or to a decision) and return the outcome. Raises what a step raised."""
        from agentkit.workflow.run import start

        outcome = start(self, inputs, store=store, run_id=run_id)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def as_node(
        self, input_map: Mapping[str, str], output_map: Mapping[str, str]
    ) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """This workflow as a node of another LangGraph graph.

        `input_map` gives each input the state key that it is read from, `output_map` each state key
        the output that is written there. Interrupts reach the other graph if it has a
        checkpointer.
        """
        for name in input_map:
            if name not in self.spec.inputs:
                raise InputError(f"workflow {self.spec.name!r} has no input {name!r}")
        for name in output_map.values():
            if name not in self.spec.outputs:
                raise InputError(f"workflow {self.spec.name!r} has no output {name!r}")

        def node(state: Mapping[str, Any]) -> dict[str, Any]:
            given = {name: state[key] for name, key in input_map.items() if key in state}
            prepared: WorkflowState = {
                "inputs": self.prepare(given),
                "run": {"workflow": self.spec.name},
            }
            result = self.graph.invoke(prepared)
            if "outputs" not in result:
                raise RunError(
                    "the workflow waits for a person's decision",
                    where=f"workflow {self.spec.name!r}",
                    hint="use it in a graph that has a checkpointer",
                )
            return {key: result["outputs"][name] for key, name in output_map.items()}

        node.__name__ = self.spec.name
        return node

    def _finish(self, state: WorkflowState) -> WorkflowState:
        names = _names(state)
        report = None if self.program.report is None else self.program.report.evaluate(names)
        return {"outputs": self.program.outputs.evaluate(names), "report": report}


def compile_workflow(
    spec: WorkflowSpec,
    runner: StepRunner,
    documents: DocumentStore,
    *,
    readers: Mapping[str, run_inputs.Reader] | None = None,
    skills: Mapping[str, str] | None = None,
    backbone: str = "",
    encoder: str = "",
) -> CompiledWorkflow:
    """Bind a workflow to a step runner and a document store.

    `readers` turn what a run is given for an input of that type (`document`, `playbook`) into its
    value, so that a path can be given. `skills` (name to digest), `backbone` and `encoder` are what
    the runner answers with. Raises `WorkflowError`.
    """
    program = Program.of(spec)
    own = dict(skills or {})
    return CompiledWorkflow(program, runner, documents, dict(readers or {}), own, backbone, encoder)


def _join(graph: Any, sources: Sequence[str], target: str) -> None:
    if len(sources) == 1:
        graph.add_edge(sources[0], target)
    else:
        graph.add_edge(list(sources), target)


def _names(state: WorkflowState) -> Names:
    return {
        "inputs": state.get("inputs", {}),
        "steps": state.get("steps", {}),
        "run": state.get("run", {}),
    }


def _retry(step: StepProgram) -> RetryPolicy | None:
    retry = step.spec.retry
    if retry is None:
        return None
    return RetryPolicy(
        initial_interval=retry.delay_seconds,
        max_attempts=retry.attempts,
        max_interval=retry.delay_seconds * 2.0**retry.attempts,  # the wait doubles each time
        jitter=False,
        retry_on=may_be_retried,
    )


class _Node(Protocol):
    __name__: str

    def __call__(self, state: WorkflowState) -> WorkflowState: ...


class _Nodes:
    """Stateful: the node functions of one graph, with the results of attempts under way."""

    def __init__(self, runner: StepRunner, recorder: Recorder | None) -> None:
        self._runner = runner
        self._recorder = recorder
        self._attempts: dict[str, MemoryRecorder] = {}

    @contextmanager
    def _recording(self, step: StepProgram) -> Iterator[Recorder]:
        """The run's recorder, or one that lasts until the node's last attempt."""
        if self._recorder is not None:
            yield self._recorder
            return
        task, attempt = _task()
        memory = self._attempts.setdefault(task, MemoryRecorder())
        over = attempt >= attempts_of(step)
        try:
            yield memory
            over = True
        finally:
            if over:
                self._attempts.pop(task, None)

    def step(self, step: StepProgram) -> _Node:
        def node(state: WorkflowState) -> WorkflowState:
            emit = get_stream_writer()
            work = plan(step, _names(state))
            if work is None:
                emit({"kind": "step_skipped", "step": step.id})
                return {"steps": {step.id: None}}
            _, attempt = _task()
            emit(
                {
                    "kind": "step_started",
                    "step": step.id,
                    "total": len(work.items) if work.many else None,
                    "attempt": attempt,
                }
            )
            with self._recording(step) as recorder:
                records = perform(step, work, self._runner, recorder, emit, attempt)
            if not any(record["needs_human"] for record in records):
                emit(_step_finished(step, records))
            return {"steps": {step.id: records if work.many else records[0]}}

        node.__name__ = step.id
        return node

    def approval(self, step: StepProgram) -> _Node:
        def node(state: WorkflowState) -> WorkflowState:
            held = state["steps"].get(step.id)
            records: list[Record] = held if isinstance(held, list) else [held] if held else []
            waiting = [record for record in records if record["needs_human"]]
            if not waiting:
                return {}
            answer = interrupt(question(step.id, waiting))
            emit = get_stream_writer()
            names = _names(state)
            many = step.for_each is not None
            items = tuple(record.get("item") for record in records)
            work = Work(items if many else (None,), many, names)
            decisions = decisions_of(answer, step.id, [record.get("index") for record in waiting])
            with self._recording(step) as recorder:
                decided = decide(step, work, records, decisions, self._runner, recorder, emit)
            emit(_step_finished(step, decided))
            return {"steps": {step.id: decided if many else decided[0]}}

        node.__name__ = f"{step.id}{APPROVAL}"
        return node


def _task() -> tuple[str, int]:
    info = get_runtime().execution_info
    return (info.task_id, info.node_attempt) if info is not None else ("", 1)


def _step_finished(step: StepProgram, records: Sequence[Record]) -> dict[str, Any]:
    return {
        "kind": "step_finished",
        "step": step.id,
        "total": len(records) if step.for_each is not None else None,
        "skill": ", ".join(sorted({record["skill"] for record in records if record["skill"]})),
        "seconds": sum(record["seconds"] for record in records),
        "failed": sum(1 for record in records if record["error"]),
    }
