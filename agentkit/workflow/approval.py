"""Decisions that people give when a step waits for them.

A decision is a skill's name (or `base`), `{"skill": name}`, or `{"output": value}`. Where several
items of a `for_each` wait, one decision serves all, or `{"items": {"0": decision, ...}}` gives
each its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentkit.errors import InputError
from agentkit.skill.manifest import NAME
from agentkit.types import Json
from agentkit.workflow.records import Record

BASE = "base"
"""What a decision calls the bare backbone."""


@dataclass(frozen=True)
class Decision:
    """Let this skill do it, or take this output."""

    skill: str | None = None
    output: Json = None


def question(step: str, waiting: Sequence[Record]) -> dict[str, Any]:
    """What a person is asked."""
    return {
        "step": step,
        "items": [
            {
                "index": record.get("index"),
                "item": record.get("item"),
                "reason": record["route"]["reason"],
                "scores": record["route"]["scores"],
            }
            for record in waiting
        ],
    }


def decisions_of(
    value: Json, step: str, waiting: Sequence[int | None]
) -> dict[int | None, Decision]:
    """One decision for each waiting item. Raises `InputError`."""
    if isinstance(value, Mapping) and set(value) == {"items"}:
        given = value["items"]
        if not isinstance(given, Mapping):
            raise _malformed(step)
        missing = [item for item in waiting if str(item) not in given]
        if missing:
            raise InputError(
                f"no decision for item {missing[0]}",
                where=f"step {step!r}",
                hint=f"waiting: {', '.join(map(str, waiting))}",
            )
        return {item: _decision(given[str(item)], step) for item in waiting}
    return {item: _decision(value, step) for item in waiting}


def named_in(value: Json) -> set[str]:
    """The skills that a decision names, of all items."""
    if isinstance(value, str):
        return {value}
    if not isinstance(value, Mapping):
        return set()
    if set(value) == {"items"} and isinstance(value["items"], Mapping):
        return {name for one in value["items"].values() for name in named_in(one)}
    return named_in(value["skill"]) if set(value) == {"skill"} else set()


def _decision(value: Json, step: str) -> Decision:
    if isinstance(value, str) and NAME.fullmatch(value):
        return Decision(skill=value)
    if isinstance(value, Mapping) and set(value) == {"skill"}:
        return _decision(value["skill"], step)
    if isinstance(value, Mapping) and set(value) == {"output"}:
        return Decision(output=value["output"])
    raise _malformed(step)


def _malformed(step: str) -> InputError:
    return InputError(
        "this is not a decision",
        where=f"step {step!r}",
        hint='give a skill\'s name, {"output": value}, or {"items": {"0": decision}}',
    )
