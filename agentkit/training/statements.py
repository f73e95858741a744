"""Plain statements for labelled clauses: general ones, and ones that a pattern ties to a clause.

A row is `{"category", "rating", "statement"}`, with `pattern` where the statement holds only for
clauses that match it. A pattern is a regular expression, case ignored, in which `<period>`,
`<percent>`, `<money>` and `<place>` stand for what they name; the statement may repeat what was
found as `{period}` and so on. A model so trained learns to say what stands in the clause.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentkit.errors import InputError

_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve fifteen eighteen twenty thirty "
    "forty-five sixty ninety hundred"
).replace(" ", "|")
_MACROS = {
    # `ninety-day` is no period of itself: "ninety day" would not do in a sentence.
    "<period>": (
        rf"(?P<period>(?:(?:{_WORDS})\s*\(?\s*\d*\s*\)?|\d+)[\s-]*"
        r"(?:business\s+|calendar\s+|working\s+)?(?:day|week|month|year|hour)s"
        r"|one\s*(?:\(1\))?[\s-]*(?:day|week|month|year|hour)\b)"
    ),
    "<percent>": r"(?P<percent>\d+(?:\.\d+)?\s?(?:%|percent))",
    "<money>": r"(?P<money>(?:US)?\$\s?\d[\d,]*(?:\.\d+)?(?:\s(?:million|billion))?)",
    "<place>": (
        r"(?-i:(?P<place>(?:New |North |South |West |Hong |British |The )?"
        r"[A-Z][A-Za-z]{3,}(?: Kong| Columbia| Kingdom| Islands| York| Jersey)?))"
    ),
}
_BRACKETED = re.compile(r"[\w-]+\s*\(\s*(\d+)\s*\)")


@dataclass(frozen=True, slots=True)
class _Statement:
    rating: str
    text: str
    pattern: re.Pattern[str] | None

    def of(self, clause: str) -> str | None:
        """What it says of a clause; None where it does not hold."""
        if self.pattern is None:
            return self.text
        found = self.pattern.search(clause)
        if found is None:
            return None
        parts = {name: _tidy(value or "") for name, value in found.groupdict().items()}
        return self.text.format_map(parts) if all(parts.values()) else None


class Statements:
    """Statements by category."""

    def __init__(self, rows: Iterable[dict[str, Any]], *, where: str) -> None:
        """Raises `InputError` for a row without its fields or with a pattern that is none."""
        self._by_category: dict[str, list[_Statement]] = defaultdict(list)
        for number, row in enumerate(rows, start=1):
            try:
                pattern = _compiled(row["pattern"]) if row.get("pattern") else None
                said = _Statement(row["rating"], row["statement"], pattern)
                self._by_category[row["category"]].append(said)
            except KeyError as error:
                raise InputError(f"a statement lacks {error}", where=f"{where}:{number}") from error
            except re.error as error:
                raise InputError(f"not a pattern: {error}", where=f"{where}:{number}") from error

    def of(self, category: str, clause: str, rng: random.Random) -> dict[str, str]:
        """One `statement` with its `rating` for a clause, or nothing where there is none.

        What a pattern ties to the clause goes before what holds for the category in general.
        """
        known = self._by_category.get(category, [])
        tied = [s for s in known if s.pattern is not None and s.of(clause) is not None]
        chosen = tied or [s for s in known if s.pattern is None]
        if not chosen:
            return {}
        said = rng.choice(chosen)
        return {"statement": str(said.of(clause)), "rating": said.rating}


def _compiled(pattern: str) -> re.Pattern[str]:
    for name, expression in _MACROS.items():
        pattern = pattern.replace(name, expression)
    return re.compile(pattern, re.IGNORECASE)


def _tidy(found: str) -> str:
    """`thirty (30) days` as `30 days`, in one line."""
    return " ".join(_BRACKETED.sub(r"\1", found).replace("-", " ").split())
