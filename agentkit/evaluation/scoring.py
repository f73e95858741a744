"""Scorers: what a skill's outputs are measured by, chosen from how it answers.

A scorer takes outputs row by row and keeps numbers only, so thousands of whole documents pass
through it; its figures are functions of how often each row counts (see `resampling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from agentkit.evaluation.resampling import Values, Weights
from agentkit.skill.manifest import ChoiceAnswer, Manifest, MarksAnswer
from agentkit.types import Json

TextOf: TypeAlias = Callable[[Json], str]
"""The text of a row's document."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was answered to one row."""

    output: Json
    """As it is served; None where the row failed."""
    scores: Json = None
    """The same with every threshold at zero, where there are any."""
    error: str | None = None


class Scorer(Protocol):
    """Stateful: the measurable part of the predictions added so far."""

    def add(self, input: Json, expected: Json, prediction: Prediction) -> None:
        """Take one row. A row that failed counts as answered wrong, or not at all.

        Raises `InputError` when `expected` is not what the skill can answer.
        """
        ...

    def figures(self, weights: Weights) -> Values:
        """The figures of the rows, each counting as often as `weights` says, `(rows,)`."""
        ...

    def label_f1(self, weights: Weights) -> Values:
        """Each label's F1 (of marks the span F1), likewise; None for one that does not occur."""
        ...

    def details(self) -> dict[str, Json]:
        """What is told of each label, and the points of the curves, as plain JSON."""
        ...


def scorable(manifest: Manifest, expected: Json) -> bool:
    """Whether a row says what is right, in any part that this skill answers."""
    return (
        bool(expected_fields(manifest) & set(expected))
        if isinstance(expected, Mapping)
        else (isinstance(expected, str) and manifest.output.get("type") == "string")
    )


def expected_fields(manifest: Manifest) -> set[str]:
    """The output fields that are measured."""
    answer = manifest.answer
    if isinstance(answer, ChoiceAnswer):
        return {answer.field}
    if isinstance(answer, MarksAnswer):
        return set(answer.fields)
    return set(manifest.output.get("properties", {}))


def words_of(input: Json) -> str:
    """Every text of an input, one a line."""
    if isinstance(input, str):
        return input
    if isinstance(input, Mapping):
        return "\n".join(words_of(value) for value in input.values())
    if isinstance(input, list):
        return "\n".join(words_of(value) for value in input)
    return "" if input is None else str(input)
