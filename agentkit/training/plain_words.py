"""Legal wording in plain words, so that a rule does not repeat what it is about letter by letter.

A row is `{"words", "plain"}`: a regular expression without regard to case, and what to say instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from agentkit.errors import InputError
from agentkit.training.jsonl import expression


class PlainWords:
    """Replacements, the longest wording first. Without rows it leaves every text as it is."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], *, where: str) -> None:
        """Raises `InputError` for a row that lacks a field or whose words are no expression."""
        self._plain: list[tuple[re.Pattern[str], str]] = []
        for number, row in enumerate(rows, start=1):
            line = f"{where}:{number}"
            if "plain" not in row:
                raise InputError("a row lacks 'plain'", where=line)
            self._plain.append((expression(row, "words", where=line, words=True), row["plain"]))
        self._plain.sort(key=lambda one: len(one[0].pattern), reverse=True)

    def __bool__(self) -> bool:
        return bool(self._plain)

    def of(self, text: str) -> str:
        """The text with its legal words replaced, none of them twice."""
        if not self:
            return text
        pieces: list[tuple[str, bool]] = [(text, False)]
        for pattern, plain in self._plain:
            pieces = [
                part
                for piece, done in pieces
                for part in ([(piece, True)] if done else _split(pattern, plain, piece))
            ]
        said = "".join(piece for piece, _ in pieces)
        return said[:1].upper() + said[1:]


def _split(pattern: re.Pattern[str], plain: str, text: str) -> Iterable[tuple[str, bool]]:
    at = 0
    for match in pattern.finditer(text):
        yield text[at : match.start()], False
        yield plain, True
        at = match.end()
    yield text[at:], False
