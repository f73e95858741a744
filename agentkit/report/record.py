"""What a report says of its run: time, tokens, routes, and where each part came from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from agentkit.report.model import PARTS
from agentkit.types import Json, RunRecord
from agentkit.workflow.program import Program

if TYPE_CHECKING:
    from agentkit.workflow.run import RunOutcome


def run_of(outcome: RunOutcome, record: RunRecord, program: Program) -> dict[str, Json]:
    """The `run` that `build_report` takes, from a finished run, its record and its workflow."""
    seconds: dict[str, float] = defaultdict(float)
    tokens = {"prompt": 0, "completion": 0, "cached": 0}
    routes: list[dict[str, Json]] = []
    for step in outcome.steps:
        for one in _records(outcome, step):
            seconds[step] += float(one["seconds"])
            for key in tokens:
                tokens[key] += int(one["usage"][f"{key}_tokens"])
            if one["route"] is not None:
                routes.append(
                    {"step": step, "item": one.get("index"), **one["route"]}
                    | {"skill": one["skill"], "digest": one["digest"]}
                )
    sources = {part: found for part in PARTS if (found := _sources(program, part))}
    return {
        "id": outcome.id,
        "workflow": record.workflow,
        "backbone": record.backbone,
        "encoder": record.encoder,
        "skills": dict(record.skills),
        "seconds": {step: round(value, 3) for step, value in seconds.items()},
        "tokens": tokens,
        "routes": routes,
        "sources": sources,
        "notes": {
            part: why for part, steps in sources.items() if (why := _missing(outcome, steps))
        },
        "warnings": [f"{step} {item}: {error}" for step, item, error in outcome.failures],
    }


def _records(outcome: RunOutcome, step: str) -> Iterator[Mapping[str, Any]]:
    entry = outcome.steps.get(step)
    for one in entry if isinstance(entry, list) else [entry]:
        if one is not None:
            yield one


def _sources(program: Program, part: str) -> list[str]:
    """The steps with a skill that an output is made from, through steps that only compute."""
    from agentkit.workflow.expressions import compile_value

    template = program.spec.outputs.get(part)
    if template is None:
        return []
    waiting = sorted(compile_value(template).references.steps)
    seen: set[str] = set()
    found: list[str] = []
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        step = program.steps[name]
        if step.set is None:
            found.append(name)
        else:
            parts = (step.set, step.for_each, step.when)
            waiting += sorted({s for e in parts if e is not None for s in e.references.steps})
    return found


def _missing(outcome: RunOutcome, steps: list[str]) -> str | None:
    """Why a part is empty, when every call of its steps found no skill."""
    reasons = []
    for step in steps:
        for one in _records(outcome, step):
            if one["skill"] is not None or one["route"] is None:
                return None
            reasons.append(f"step {step}: {one['route']['reason']}")
    return reasons[0] if reasons else None
