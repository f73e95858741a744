"""Clauses that nobody labelled, found by the words that such clauses are written in.

A row is `{"category", "sentence", "anywhere"}`, two regular expressions without regard to case. A
sentence that matches `sentence` is such a clause; a contract in which nothing matches `anywhere`
has none. What lies between the two is asked about in neither way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from agentkit.errors import InputError
from agentkit.retrieval.spans import split_spans
from agentkit.training.clause_rules import Place
from agentkit.training.jsonl import expression

_SAYS = re.compile(
    r"\b(?:shall|will|may|must|can|cannot|agrees?|is|are|has|have|been?|survives?)\b"
)
"""A heading or a line of a table of contents says nothing."""
_LENGTH = (60, 900)
"""Characters of a sentence that is a clause by itself."""
_MOST = 4
"""Clauses of a category that are pointed at; others of it stand unmarked."""


class ClausePatterns:
    """The patterns of a file, by category."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], *, where: str) -> None:
        """Raises `InputError` for a row that lacks a field or has a pattern that is none."""
        self._of: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {}
        for number, row in enumerate(rows, start=1):
            line = f"{where}:{number}"
            if "category" not in row:
                raise InputError("a row lacks 'category'", where=line)
            self._of[row["category"]] = (
                expression(row, "sentence", where=line),
                expression(row, "anywhere", where=line),
            )

    def places(self, text: str) -> dict[str, list[Place]]:
        """Where the clauses of each category stand, if there are any: the first few."""
        found: dict[str, list[Place]] = {}
        for span in split_spans(text):
            said = " ".join(text[span.start : span.end].split())
            if not _LENGTH[0] <= len(said) <= _LENGTH[1] or not _SAYS.search(said):
                continue
            for category, (sentence, _) in self._of.items():
                if sentence.search(said):
                    found.setdefault(category, []).append((span.start, span.end))
        return {category: places[:_MOST] for category, places in found.items()}

    def lacking(self, text: str) -> list[str]:
        """The categories that the text has no clause of."""
        said = " ".join(text.split())
        return [category for category, (_, word) in self._of.items() if not word.search(said)]

    def __contains__(self, category: str) -> bool:
        return category in self._of
