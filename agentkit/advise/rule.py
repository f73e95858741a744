"""A rule of advice: a setting, when it gets a value, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from agentkit.advise.situation import Situation
from agentkit.types import Json


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting of `train.yaml` (with a dot, of a source of its `data`, or of `skill.yaml`'s
    `answer`) and why."""

    setting: str
    value: Json
    reason: str


Holds: TypeAlias = Callable[[Situation], bool]
Value: TypeAlias = Callable[[Situation], Json]


@dataclass(frozen=True, slots=True)
class Rule:
    """When a setting gets a value; None leaves the setting out."""

    setting: str
    holds: Holds
    value: Value
    reason: str
