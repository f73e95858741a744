"""A workflow with its expressions compiled and its steps put in order: everything that can be
known to be wrong before a run is found here, with its place."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from agentkit.errors import WorkflowError
from agentkit.types import Json
from agentkit.workflow.expressions import (
    Expression,
    compile_expression,
    compile_text,
    compile_value,
)
from agentkit.workflow.spec import StepSpec, WorkflowSpec
from agentkit.workflow.yamlfile import Source, ValuePath

_EVERYWHERE = frozenset({"inputs", "steps", "run"})
"""Names that any expression can use; the items of a `for_each` have `item` and `index` too."""
_NOT_SKILLS = frozenset({"auto", "base", "human", "fail"})


@dataclass(frozen=True)
class StepProgram:
    """One step, ready to evaluate."""

    id: str
    spec: StepSpec
    needs: tuple[str, ...]
    """Steps that must be done before, in the workflow's order."""
    when: Expression | None
    for_each: Expression | None
    instruction: Expression
    input: Expression
    set: Expression | None
    index: Expression | None
    """Of the step's context: path of the index, and query."""
    query: Expression | None
    fields: frozenset[str] | None = None
    """The fields of its output that outputs and other steps take, where they take nothing else."""

    def expressions(self) -> Iterator[Expression]:
        """All that is evaluated for it."""
        parts = (self.when, self.for_each, self.instruction, self.input, self.set, self.index)
        yield from (part for part in (*parts, self.query) if part is not None)


@dataclass(frozen=True)
class Program:
    """A checked workflow: `steps` in an order in which they can run."""

    spec: WorkflowSpec
    steps: Mapping[str, StepProgram]
    outputs: Expression
    report: Expression | None

    @classmethod
    def of(cls, spec: WorkflowSpec) -> Program:
        """Compile every expression and order the steps.

        Raises `WorkflowError` (or `ExpressionError`) with `file:line:column`: an unknown step or
        input, a cycle, a malformed or unsafe expression.
        """
        programs: dict[str, StepProgram] = {}
        previous: str | None = None
        for name, step in spec.steps.items():
            programs[name] = _compile_step(spec, name, step, previous)
            previous = name
        outputs = compile_value(dict(spec.outputs), where=_locator(spec.source, ("outputs",)))
        _check_references(spec, outputs, _EVERYWHERE)
        report = None
        if spec.report is not None:
            report = compile_value(dict(spec.report), where=_locator(spec.source, ("report",)))
            _check_references(spec, report, _EVERYWHERE)
        tops = [outputs] if report is None else [outputs, report]
        used = [one for step in programs.values() for one in step.expressions()] + tops
        whole = frozenset[str]().union(*(one.references.uses.whole for one in used))
        taken = frozenset[tuple[str, str]]().union(*(one.references.uses.fields for one in used))
        for name in {step for step, _ in taken} - whole:
            fields = frozenset(field for step, field in taken if step == name)
            programs[name] = replace(programs[name], fields=fields)
        return cls(spec, _ordered(spec, programs), outputs, report)

    def edges(self) -> list[tuple[str, str]]:
        """`(before, after)` pairs, without those that follow from others."""
        above: dict[str, frozenset[str]] = {}
        for name, step in self.steps.items():
            above[name] = frozenset(step.needs).union(*(above[need] for need in step.needs))
        return [
            (need, name)
            for name, step in self.steps.items()
            for need in step.needs
            if not any(need in above[other] for other in step.needs)
        ]


def validate(spec: WorkflowSpec, skill_names: Collection[str]) -> Program:
    """Check a workflow against the skills that are there.

    Raises `WorkflowError` with the place of the step that names a missing skill.
    """
    program = Program.of(spec)
    for name, step in spec.steps.items():
        for key, skill in (("skill", step.skill), ("on_uncertain", step.on_uncertain)):
            if skill not in _NOT_SKILLS and skill not in skill_names:
                near = difflib.get_close_matches(skill, list(skill_names), n=1)
                there = ", ".join(sorted(skill_names)) or "none"
                raise WorkflowError(
                    f"step {name!r} names the skill {skill!r}, which is not installed",
                    where=spec.source.where(("steps", name, key), value=True),
                    hint=f"did you mean {near[0]!r}?" if near else f"installed: {there}",
                )
    return program


class _Locator:
    """Tells the place of a value below a path."""

    def __init__(self, source: Source, base: ValuePath) -> None:
        self._source = source
        self._base = base

    def __call__(self, path: ValuePath = ()) -> str | None:
        return self._source.where((*self._base, *path), value=True)


def _locator(source: Source, base: ValuePath) -> _Locator:
    return _Locator(source, base)


def _compile_step(
    spec: WorkflowSpec, name: str, step: StepSpec, previous: str | None
) -> StepProgram:
    def at(*path: str | int) -> _Locator:
        return _locator(spec.source, ("steps", name, *path))

    before = _EVERYWHERE
    within = before | {"item", "index"} if step.for_each is not None else before
    parts: list[tuple[Expression, frozenset[str]]] = []

    def keep(expression: Expression, names: frozenset[str]) -> Expression:
        parts.append((expression, names))
        return expression

    when = for_each = computed = index = query = None
    if step.when is not None:
        when = keep(compile_expression(step.when, where=at("when")()), before)
    if step.for_each is not None:
        for_each = keep(compile_expression(step.for_each, where=at("for_each")()), before)
    instruction = keep(compile_text(step.instruction, where=at("instruction")()), within)
    given = keep(compile_value(dict(step.input), where=at("input")), within)
    if step.set is not None:
        computed = keep(compile_value(dict(step.set), where=at("set")), within)
    if step.context is not None:
        sources = step.context.index
        if isinstance(sources, str):
            index = keep(compile_text(sources, where=at("context", "index")()), within)
        elif sources is not None:
            index = keep(compile_value(list(sources), where=at("context", "index")), within)
        if step.context.query is not None:
            query = keep(compile_text(step.context.query, where=at("context", "query")()), within)

    named: set[str] = set()
    for expression, names in parts:
        _check_references(spec, expression, names)
        named |= expression.references.steps
    if name in named:
        _fail(f"step {name!r} names itself", spec, ("steps", name), "name an earlier step")
    explicit: tuple[str, ...] = (previous,) if previous else ()
    if step.needs is not None:
        for position, need in enumerate(step.needs):
            if need not in spec.steps:
                _fail(
                    f"no step {need!r}",
                    spec,
                    ("steps", name, "needs", position),
                    _nearest(need, spec.steps),
                )
        explicit = step.needs
    wanted = {*explicit, *named}
    needs = tuple(other for other in spec.steps if other in wanted)
    return StepProgram(
        name, step, needs, when, for_each, instruction, given, computed, index, query
    )


def _check_references(spec: WorkflowSpec, compiled: Expression, names: frozenset[str]) -> None:
    for expression in compiled.leaves():
        found = expression.references

        def fail(what: str, hint: str, at: Expression = expression) -> NoReturn:
            raise WorkflowError(f"{at.shown}: {what}", where=at.where, hint=hint)

        for name in sorted(found.names - names):
            fail(f"there is no {name!r} here", "item and index are there in a step with for_each")
        for name in sorted(found.inputs - set(spec.inputs)):
            fail(f"no input {name!r}", _nearest(name, spec.inputs))
        for name in sorted(found.steps - set(spec.steps)):
            fail(f"no step {name!r}", _nearest(name, spec.steps))


def _nearest(name: str, known: Mapping[str, Json]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"


def _fail(what: str, spec: WorkflowSpec, path: ValuePath, hint: str) -> NoReturn:
    raise WorkflowError(what, where=spec.source.where(path), hint=hint)


def _ordered(spec: WorkflowSpec, programs: Mapping[str, StepProgram]) -> dict[str, StepProgram]:
    ordered: dict[str, StepProgram] = {}
    waiting = dict(programs)
    while waiting:
        ready = next(
            (name for name, step in waiting.items() if all(n in ordered for n in step.needs)), None
        )
        if ready is None:
            cycle = _cycle(waiting)
            _fail(
                f"the steps wait for each other: {' -> '.join(cycle)}",
                spec,
                ("steps", cycle[0]),
                "remove one of these needs or references",
            )
        ordered[ready] = waiting.pop(ready)
    return ordered


def _cycle(waiting: Mapping[str, StepProgram]) -> list[str]:
    trail = [next(iter(waiting))]
    while True:
        following = next(need for need in waiting[trail[-1]].needs if need in waiting)
        if following in trail:
            return [*trail[trail.index(following) :], following]
        trail.append(following)
