"""Rules about labelled clauses: what a clause of a category entails, and what it contradicts.

A row is `{"category", "text", "negated"}`; `unseen` marks the rules that no training may see, kept
to measure on. `{answer}` in a text stands for what the contract says there, and `{other}` for what
another contract says, so that the wording alone does not give the verdict away.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentkit.errors import InputError

Place = tuple[int, int]

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ]{2,28}")
_SENTENCE_END = re.compile(r"[.;:]\s|\n\s*\n")
_AROUND = 350
"""Characters of context, on either side of a clause, that an excerpt of a contract keeps."""
_PAIRED = 0.5
"""Share of the clauses that are asked about by a rule and by its opposite."""
_NEGATED_ABSENT = 0.3


@dataclass(frozen=True, slots=True)
class Rule:
    """A statement about contracts, by the category of the clause that decides it."""

    category: str
    text: str
    negated: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A rule as it is asked of one contract; `verdict` as ContractNLI names it."""

    category: str
    text: str
    label: str
    negated: bool


class ClauseRules:
    """The rules of a file, those kept to measure on or the others, and how they are asked."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        unseen: bool,
        where: str,
        without: Sequence[str] = (),
    ) -> None:
        """All but those of the categories `without`.

        Raises `InputError` for a row that lacks a field, or if no rule is left.
        """
        self._of: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
        for number, row in enumerate(rows, start=1):
            if not {"category", "text", "negated"} <= row.keys():
                raise InputError(
                    'a rule is {"category", "text", "negated"}', where=f"{where}:{number}"
                )
            if bool(row.get("unseen")) is unseen and row["category"] not in without:
                self._of[row["category"]][bool(row["negated"])].append(row["text"])
        if not self._of:
            raise InputError("no rules to ask", where=where)

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(self._of)

    def about(
        self, category: str, answer: str, others: Sequence[str], rng: random.Random
    ) -> list[Asked]:
        """Rules that a clause of the category decides: one, or one and its opposite."""
        first = rng.random() < 0.45
        asked = [first, not first] if rng.random() < _PAIRED else [first]
        return [
            one
            for negated in asked
            if (one := self.one(category, answer, others, rng, negated=negated)) is not None
        ]

    def one(
        self,
        category: str,
        answer: str,
        others: Sequence[str],
        rng: random.Random,
        *,
        negated: bool,
    ) -> Asked | None:
        """One rule that a clause of the category entails or, `negated`, contradicts."""
        rivals = [
            other
            for other in others
            if other.lower() not in answer.lower() and answer.lower() not in other.lower()
        ]
        known = _PLAIN.fullmatch(answer) is not None
        texts = [
            text
            for text in self._of[category][negated]
            if (known or ("{answer}" not in text and "{other}" not in text))
            and (rivals or "{other}" not in text)
        ]
        if not texts:
            return None
        text = rng.choice(texts)
        if "{other}" in text:
            text = text.replace("{other}", rng.choice(rivals))
        label = "Contradiction" if negated else "Entailment"
        return Asked(category, text.replace("{answer}", answer), label, negated)

    def absent(
        self,
        category: str,
        others: Sequence[str],
        rng: random.Random,
        *,
        negated: float = _NEGATED_ABSENT,
    ) -> Asked | None:
        """A rule that a contract without such a clause says nothing about."""
        texts = self._of[category][rng.random() < negated] or self._of[category][False]
        if not texts:
            return None
        text = rng.choice(texts)
        for name in ("{answer}", "{other}"):
            if name in text:
                if not others:
                    return None
                text = text.replace(name, rng.choice(others))
        return Asked(category, text, "NotMentioned", False)


def plain_answers(answers: Iterable[str]) -> list[str]:
    """Answers that can stand in a rule as they are, each once."""
    return sorted({answer for answer in answers if _PLAIN.fullmatch(answer)})


def excerpt(
    text: str, places: Mapping[str, Sequence[Place]], characters: int, rng: random.Random
) -> tuple[str, dict[str, list[Place]]]:
    """The passages of a text around its labelled clauses, in order, and the clauses' new places.

    Clauses are taken at random until `characters` are full; what a category keeps none of is left
    out of the answer.
    """
    every = [(category, place) for category, found in places.items() for place in found]
    rng.shuffle(every)
    kept: list[tuple[str, Place]] = []
    spans: list[Place] = []
    for category, place in every:
        grown = _joined([*spans, _widened(text, place)])
        if spans and sum(end - start for start, end in grown) > characters:
            continue
        spans = grown
        kept.append((category, place))
    pieces, moved, at = [], {}, 0
    for start, end in spans:
        moved[(start, end)] = at - start
        pieces.append(text[start:end])
        at += end - start + 2
    left: dict[str, list[Place]] = defaultdict(list)
    for category, (start, end) in kept:
        shift = next(by for (first, last), by in moved.items() if first <= start and end <= last)
        left[category].append((start + shift, end + shift))
    return "\n\n".join(pieces), dict(left)


def _widened(text: str, place: Place) -> Place:
    """The place with whole sentences around it, about `_AROUND` characters on either side."""
    start, end = place
    before = _SENTENCE_END.search(text, max(0, start - _AROUND), start)
    first = before.end() if before and start > _AROUND else (0 if start <= _AROUND else start)
    after = list(_SENTENCE_END.finditer(text, end, min(len(text), end + _AROUND)))
    return first, after[-1].start() + 1 if after else end


def _joined(spans: Iterable[Place]) -> list[Place]:
    joined: list[Place] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
