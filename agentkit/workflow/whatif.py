"""One step of a recorded run again with another choice, and what that changes in its output.

The step is given what the run gave it: the same inputs and earlier results, the copies of skills
that the run began with, its controller. The run itself stays as it is.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from agentkit.errors import AgentkitError, CheckpointError, InputError
from agentkit.types import ContextSpec, Json, RunRecord, StepCall, StepRunner
from agentkit.workflow.database import Table
from agentkit.workflow.program import Program, StepProgram
from agentkit.workflow.records import Record, at_step, record_of
from agentkit.workflow.steps import Names, call_of, plan, run_calls
from agentkit.workflow.store import RunStore, new_run_id, now

BASE = "base"
NO_CONTEXT = ContextSpec(mode="none")


@dataclass(frozen=True, slots=True)
class Choice:
    """What is done otherwise; at least one of the two."""

    skill: str | None = None
    """A skill's name, or `base` for the bare backbone; None: the one that answered in the run."""
    no_context: bool = False
    """Show the step its own input only: no document, no excerpts, no standing index."""

    def __post_init__(self) -> None:
        if self.skill is None and not self.no_context:
            raise InputError("no other choice was made", hint="name a skill, base, or no context")


@dataclass(frozen=True, slots=True)
class Difference:
    """One place of the output where the two answers differ; a side without a value is absent."""

    path: str
    """Such as `clauses[2].quote`; empty for the output itself."""
    recorded: Json = None
    instead: Json = None
    kind: str = "changed"
    """`changed`, `removed` (only the run has it) or `added` (only the other answer has it)."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A step done again with another choice, beside what the run recorded of it."""

    id: str
    run: str
    step: str
    item: int | None
    choice: Choice
    recorded: Record
    instead: Record
    made: str
    """UTC, ISO 8601."""

    @property
    def differences(self) -> list[Difference]:
        return list(differences(self.recorded["output"], self.instead["output"]))

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "differences": [asdict(one) for one in self.differences]}


def what_if(
    program: Program,
    runner: StepRunner,
    record: RunRecord,
    step: str,
    choice: Choice,
    *,
    item: int | None = None,
) -> WhatIf:
    """Do one step of a recorded run again; `item` says which of a `for_each`, from 0.

    `program` is the run's own workflow, and `runner` holds the skills that the run began with (and
    the chosen one, if it is another). Nothing is kept. Raises `InputError` for a step or item that
    has no result, and what the step raises with its new choice.
    """
    compiled = _step(program, step)
    entry = _entry(record, step, item)
    place: int | None = entry["item"]
    recorded: Record = entry["record"]
    call = _call(compiled, names_of(program, record), place)
    (result,) = run_calls(runner, [_chosen(call, recorded, choice)])
    if isinstance(result, Exception):
        raise at_step(result, step)
    instead = {key: recorded[key] for key in ("item", "index") if key in recorded}
    return WhatIf(
        new_run_id(),
        record.id,
        step,
        place,
        choice,
        recorded,
        instead | record_of(result),
        now(),
    )


def names_of(program: Program, record: RunRecord) -> Names:
    """What the expressions of a recorded run's steps see."""
    steps: dict[str, Any] = dict.fromkeys(program.steps)
    many: dict[str, dict[int, Record]] = {}
    for entry in record.steps:
        if entry["item"] is None:
            steps[entry["step"]] = entry["record"]
        else:
            many.setdefault(entry["step"], {})[entry["item"]] = entry["record"]
    steps |= {name: [own[index] for index in sorted(own)] for name, own in many.items()}
    run = {
        "id": record.id,
        "workflow": record.workflow,
        "started": record.started,
        "backbone": record.backbone,
        "skills": dict(record.skills),
    }
    names = {"inputs": dict(record.inputs), "steps": steps, "run": run}
    for name, step in program.steps.items():
        if step.for_each is not None and name not in many and not _was_passed(step, names):
            steps[name] = []  # it had nothing to work through, of which nothing is recorded
    return names


def _was_passed(step: StepProgram, names: Names) -> bool:
    """Whether a step's `when` had it left out, or cannot be told, as it was not reached."""
    try:
        return step.when is not None and not step.when.evaluate(names)
    except AgentkitError:
        return True


def _step(program: Program, name: str) -> StepProgram:
    if name not in program.steps:
        near = difflib.get_close_matches(name, list(program.steps), n=1)
        there = ", ".join(program.steps)
        raise InputError(
            f"the workflow has no step {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"steps: {there}",
        )
    step = program.steps[name]
    if step.set is not None:
        raise InputError(f"step {name!r} only computes: no skill answers it")
    return step


def _entry(record: RunRecord, step: str, item: int | None) -> Mapping[str, Any]:
    own = [entry for entry in record.steps if entry["step"] == step]
    if not own:
        raise InputError(
            f"run {record.id!r} has no result of the step {step!r}",
            hint="it was skipped, or the run has not come to it",
        )
    if item is None and len(own) > 1:
        raise InputError(
            f"step {step!r} has {len(own)} items", hint="say which with --item, from 0"
        )
    found = [entry for entry in own if item is None or entry["item"] == item]
    if not found:
        shown = ", ".join(str(entry["item"]) for entry in own if entry["item"] is not None)
        raise InputError(f"step {step!r} has no item {item}", hint=f"items: {shown or 'none'}")
    return found[0]


def _call(step: StepProgram, names: Names, item: int | None) -> StepCall:
    work = plan(step, names)
    if work is None or (item or 0) >= len(work.items):
        raise CheckpointError(
            "the recorded results do not lead to this step again",
            where=f"step {step.id!r}",
            hint="start the run again",
        )
    return call_of(step, work, item or 0)


def _chosen(call: StepCall, recorded: Record, choice: Choice) -> StepCall:
    skill = choice.skill or recorded["skill"] or BASE
    context = NO_CONTEXT if choice.no_context else call.context
    return replace(call, skill=skill, context=context)


# ---------------------------------------------------------------- differences


def differences(recorded: Json, instead: Json, path: str = "") -> Iterator[Difference]:
    """Where two JSON values differ, leaf by leaf; items that both lists hold are matched first."""
    if isinstance(recorded, Mapping) and isinstance(instead, Mapping):
        for key in {**recorded, **instead}:
            below = f"{path}.{key}" if path else str(key)
            if key not in instead:
                yield Difference(below, recorded[key], kind="removed")
            elif key not in recorded:
                yield Difference(below, instead=instead[key], kind="added")
            else:
                yield from differences(recorded[key], instead[key], below)
    elif isinstance(recorded, list) and isinstance(instead, list):
        yield from _list_differences(recorded, instead, path)
    elif _text(recorded) != _text(instead):
        yield Difference(path, recorded, instead)


def _list_differences(
    recorded: Sequence[Json], instead: Sequence[Json], path: str
) -> Iterator[Difference]:
    old, new = [_text(one) for one in recorded], [_text(one) for one in instead]
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for tag, start, end, new_start, new_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        both = min(end - start, new_end - new_start)
        for step in range(both):
            at = start + step
            yield from differences(recorded[at], instead[new_start + step], f"{path}[{at}]")
        for at in range(start + both, end):
            yield Difference(f"{path}[{at}]", recorded[at], kind="removed")
        for at in range(new_start + both, new_end):
            yield Difference(f"{path}[{at}]", instead=instead[at], kind="added")


def _text(value: Json) -> str:
    return json.dumps(value, sort_keys=True)


# ---------------------------------------------------------------- kept


class WhatIfs(Table):
    """Stateful: what was tried on recorded runs, in the database of a run store. Safe for threads.

    They are a table of their own: the runs are never written to.
    """

    schema = """
        CREATE TABLE IF NOT EXISTS what_ifs (
            id TEXT PRIMARY KEY,
            run TEXT NOT NULL,
            step TEXT NOT NULL,
            item INTEGER,
            choice TEXT NOT NULL,
            record TEXT NOT NULL,
            made TEXT NOT NULL
        )
    """

    def __init__(self, store: RunStore) -> None:
        super().__init__(store.path)
        self._store = store

    def keep(self, one: WhatIf) -> None:
        row = (
            one.id,
            one.run,
            one.step,
            one.item,
            json.dumps(asdict(one.choice)),
            json.dumps(one.instead),
            one.made,
        )
        with self.open() as connection:
            connection.execute(
                "INSERT INTO what_ifs (id, run, step, item, choice, record, made)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def of(self, run: str) -> list[WhatIf]:
        """What was tried on a run, in that order. Raises `InputError` if there is no such run."""
        results = {
            (entry["step"], entry["item"]): entry["record"] for entry in self._store.show(run).steps
        }
        with self.open() as connection:
            rows = connection.execute(
                "SELECT id, step, item, choice, record, made FROM what_ifs WHERE run = ?"
                " ORDER BY made, rowid",
                (run,),
            ).fetchall()
        found = []
        for id, step, item, choice, record, made in rows:
            chosen = Choice(**json.loads(choice))
            recorded, instead = results[step, item], json.loads(record)
            found.append(WhatIf(id, run, step, item, chosen, recorded, instead, made))
        return found
