"""A rule and its plain negation: the same words but for one, and the opposite label.

Rules that people word anew to say the opposite differ in much; what a negation alone changes is
learnt from pairs that differ in nothing else. A row is `{"words", "instead"}`: a regular expression
without regard to case, whose first match in a rule is replaced (`\\1` stands for its first group).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agentkit.errors import InputError
from agentkit.training.jsonl import expression

OPPOSITE = {"Entailment": "Contradiction", "Contradiction": "Entailment"}


class Negations:
    """Replacements in order, of which the first that a rule has is made."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], *, where: str) -> None:
        """Raises `InputError` for a row that lacks a field or whose words are no expression."""
        self._made: list[tuple[re.Pattern[str], str]] = []
        for number, row in enumerate(rows, start=1):
            line = f"{where}:{number}"
            if "instead" not in row:
                raise InputError("a row lacks 'instead'", where=line)
            pattern = expression(row, "words", where=line)
            self._made.append((pattern, row["instead"]))

    def of(self, rule: str) -> str | None:
        """The rule negated; None where nothing is known to be replaced in it."""
        for pattern, instead in self._made:
            negated, count = pattern.subn(instead, rule, count=1)
            if count:
                return negated[:1].upper() + negated[1:]
        return None


def negated(
    records: Iterable[dict[str, Any]], negations: Negations, share: float, seed: int
) -> Iterator[dict[str, Any]]:
    """The records, of which about a `share` ask the negation of their `hypothesis` instead.

    What the document entails it then contradicts, and the other way round; what it does not mention
    it mentions no more.
    """
    chosen = random.Random(seed)
    for record in records:
        text = negations.of(record["hypothesis"]) if chosen.random() < share else None
        if text is None:
            yield record
        else:
            label = record["label"]
            yield record | {"hypothesis": text, "label": OPPOSITE.get(label, label)}
