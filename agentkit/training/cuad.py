"""CUAD's contracts: who filed them, and where their labelled clauses stand in the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONTRACTS = "cuad/contracts.jsonl.gz"
"""Where the contracts lie in the folder of the data sets."""


def filer(title: str) -> str:
    """Who filed a contract, by its title: contracts of one filer belong together."""
    return re.split(r"_|\d{2}[_/]", title, maxsplit=1)[0].strip().lower()


def labelled_places(contract: Mapping[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Where a contract's labelled clauses stand in its text, by category."""
    finder = ClauseFinder(contract["text"])
    found = {
        category: [
            place for clause in content["clauses"] if (place := finder.find(clause)) is not None
        ]
        for category, content in contract["labels"].items()
    }
    return {category: places for category, places in found.items() if places}


class ClauseFinder:
    """Finds a clause as annotated in a text whose white space and page breaks differ."""

    def __init__(self, text: str) -> None:
        kept = [i for i, c in enumerate(text) if not c.isspace()]
        self._squeezed = "".join(text[i] for i in kept)
        self._letters = [i for i in kept if text[i].isalnum()]
        self._plain = "".join(text[i].lower() for i in self._letters)
        self._kept = kept

    def find(self, clause: str) -> tuple[int, int] | None:
        parts = [p for p in clause.split("<omitted>") if p.strip()]
        places = [self._find_part(part) for part in parts]
        found = [p for p in places if p is not None]
        if not found or len(found) < len(parts):
            return None
        start, end = min(p[0] for p in found), max(p[1] for p in found)
        # Parts that stand far apart are other occurrences, not one clause with a gap.
        return (start, end) if end - start <= 3 * len(clause) + 400 else found[0]

    def _find_part(self, part: str) -> tuple[int, int] | None:
        needle = "".join(part.split())
        at = self._squeezed.find(needle)
        if needle and at >= 0:
            return self._kept[at], self._kept[at + len(needle) - 1] + 1
        needle = "".join(c.lower() for c in part if c.isalnum())
        at = self._plain.find(needle)
        if len(needle) >= 8 and at >= 0:
            return self._letters[at], self._letters[at + len(needle) - 1] + 1
        return None
