"""Rows that say what a workflow should give, and by which skills and from which words.

```json
{"id": "deed-1", "inputs": {"document": "deed.pdf"},
 "expected": {"verdicts": ["yes", "no"]},
 "steps": {"review": {"skill": "judge",
                      "items": [{"output": {"verdict": "yes"}, "spans": [[9, 42]]},
                                {"output": {"verdict": "no"}}]}}}
```

Everything but `inputs` may be left out. `expected` holds outputs of the workflow. A step may be
given its right `skill` (null: no skill fits), its right `output`, and in `spans` the stretches
(start, end) of its document that it needs; in `items` the same for each item of a `for_each`, where
an item that says nothing takes what the step says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from agentkit.errors import InputError
from agentkit.training.jsonl import read_jsonl
from agentkit.types import Json
from agentkit.workflow.spec import WorkflowSpec

BASE = "base"

_Span = Annotated[tuple[int, int], Field(strict=False)]


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    skill: str | None = None
    output: JsonValue = None
    spans: tuple[_Span, ...] | None = None


class GoldStep(_Said):
    """What is right for a step; `items` for each item of its `for_each`."""

    items: tuple[_Said, ...] = ()

    def skill_of(self, item: int | None) -> str | None:
        """The right skill's name, or `base` where none fits; None where nothing is said."""
        for said in self._said(item):
            if "skill" in said.model_fields_set:
                return said.skill or BASE
        return None

    def spans_of(self, item: int | None) -> tuple[tuple[int, int], ...] | None:
        for said in self._said(item):
            if said.spans is not None:
                return said.spans
        return None

    def outputs(self) -> Iterator[tuple[int | None, Json]]:
        """The right outputs that are said, with their items."""
        if "output" in self.model_fields_set:
            yield None, self.output
        for item, said in enumerate(self.items):
            if "output" in said.model_fields_set:
                yield item, said.output

    def _said(self, item: int | None) -> tuple[_Said, ...]:
        if item is not None and item < len(self.items):
            return (self.items[item], self)
        return (self,)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | int | None = None
    inputs: dict[str, JsonValue]
    expected: dict[str, JsonValue] = Field(default_factory=dict)
    steps: dict[str, GoldStep] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GoldRow:
    """One run's inputs, and what is right for it."""

    id: str
    inputs: Mapping[str, Json]
    expected: Mapping[str, Json] = field(default_factory=dict)
    steps: Mapping[str, GoldStep] = field(default_factory=dict)


def read_gold(path: Path, spec: WorkflowSpec, skills: Collection[str]) -> list[GoldRow]:
    """The rows of a JSONL file. Relative paths of documents and playbooks may count from the
    file's folder.

    Raises `InputError` with `file:line` for a malformed row, or one that speaks of an output or a
    step that the workflow does not have, or of a skill that is not among `skills`.
    """
    rows: list[GoldRow] = []
    seen: set[str] = set()
    try:
        records = list(read_jsonl(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    for number, record in enumerate(records, start=1):
        where = f"{path}, row {number}"
        try:
            row = _Row.model_validate(record)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{place}: {first['msg']}" if place else str(first["msg"]),
                where=where,
                hint='a row is {"inputs": {...}, "expected": {...}, "steps": {...}}',
            ) from error
        _check_names(row, spec, where)
        _check_skills(row, skills, where)
        name = str(number if row.id is None else row.id)
        if name in seen:
            raise InputError(f"the id {name!r} occurs twice", where=where)
        seen.add(name)
        inputs = _beside(row.inputs, spec, path.parent)
        rows.append(GoldRow(name, inputs, row.expected, row.steps))
    if not rows:
        raise InputError("no rows", where=str(path))
    said = (
        row.expected or any(list(gold.outputs()) for gold in row.steps.values()) for row in rows
    )
    if not any(said):
        raise InputError(
            "no row says what is right",
            where=str(path),
            hint='give rows "expected", or "output" of their "steps"',
        )
    return rows


def _check_names(row: _Row, spec: WorkflowSpec, where: str) -> None:
    for name in row.expected:
        if name not in spec.outputs:
            raise InputError(
                f"workflow {spec.name!r} has no output {name!r}",
                where=where,
                hint=f"outputs: {', '.join(spec.outputs) or 'none'}",
            )
    for name, gold in row.steps.items():
        if name not in spec.steps:
            raise InputError(
                f"workflow {spec.name!r} has no step {name!r}",
                where=where,
                hint=f"steps: {', '.join(spec.steps)}",
            )
        if gold.items and spec.steps[name].for_each is None:
            raise InputError(f"step {name!r} is no for_each and has no items", where=where)
        if spec.steps[name].for_each is not None and "output" in gold.model_fields_set:
            raise InputError(
                f"step {name!r} has an output for each item", where=where, hint='give "items"'
            )


def _check_skills(row: _Row, skills: Collection[str], where: str) -> None:
    for name, gold in row.steps.items():
        for said in (gold, *gold.items):
            if said.skill not in (None, BASE, *skills):
                raise InputError(
                    f"step {name!r}: there is no skill {said.skill!r}",
                    where=where,
                    hint=f"installed: {', '.join(sorted(skills)) or 'none'}; null: no skill fits",
                )


def _beside(inputs: Mapping[str, Any], spec: WorkflowSpec, folder: Path) -> dict[str, Json]:
    placed = dict(inputs)
    for name, value in inputs.items():
        kind = spec.inputs[name].type if name in spec.inputs else ""
        if kind in ("document", "playbook") and isinstance(value, str):
            path = Path(value)
            if not path.exists() and (folder / path).exists():
                placed[name] = str(folder / path)
    return placed
