"""Text to spans: sentences and list items, the units that the model quotes.

Contracts defeat sentence splitters made for prose: clauses run over semicolons, list items start
with "(a)" or "4.2", lines are hard-wrapped, and "Inc." is not an end. The rules here cut at blank
lines, before enumerators, and after sentence ends that are not abbreviations, and then cut what is
still too long at its weakest marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from agentkit.types import Span

MAX_SPAN_CHARS = 600

# fmt: off
_ABBREVIATIONS = frozenset((
    "inc", "corp", "co", "ltd", "llc", "no", "nos", "sec", "art", "st", "mr", "mrs", "ms",
    "dr", "jr", "sr", "vs", "v", "etc", "e.g", "i.e", "cf", "al", "u.s", "u.s.a", "d.c",
    "p.o", "a.m", "p.m", "approx", "dept", "est", "fig", "jan", "feb", "mar", "apr", "jun",
    "jul", "aug", "sep", "sept", "oct", "nov", "dec",
))
# fmt: on
_ENUMERATOR = (
    r"(?:\(?(?:[ivxlc]{1,5}|[a-z]{1,2}|\d{1,3})\)|\d{1,3}(?:\.\d{1,3})*\.?|[A-Z]\.|[•●▪■◦–—*-]"
    r"|(?:article|section|clause|schedule|exhibit)\s+[\dIVXLC]+[.:]?)"
)
_LINE_START = re.compile(rf"\n[ \t]*(?={_ENUMERATOR}[ \t]+\S)", re.IGNORECASE)
_BLANK = re.compile(r"\n[ \t\r\f\v]*\n\s*|\f\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?;:])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9(])")
_CLAUSE_END = re.compile(r"(?<=[;:])\s+|(?<=,)\s+(?=(?:and|or|provided|except|including)\b)")
_INLINE_ITEM = re.compile(r"(?<=[;:,.])\s+(?=(?:and\s+|or\s+)?\((?:[ivx]{1,5}|[a-z]|\d{1,2})\)\s)")
_SPACE = re.compile(r"\s+")
_VISIBLE = re.compile(r"\S")
_LOOK_BACK = 80
"""Characters, more than any abbreviation or enumerator has."""


def split_spans(text: str, *, max_chars: int = MAX_SPAN_CHARS) -> tuple[Span, ...]:
    """Spans of `text` in order, disjoint, free of surrounding white space, none empty.

    Only white space lies between them, so the spans hold every word of the text. A span longer
    than `max_chars` is cut at semicolons, commas and, at last, between words.
    """
    return tuple(
        Span(start, end)
        for block_start, block_end in _cut(text, 0, len(text), _BLANK)
        for line_start, line_end in _blocks(text, block_start, block_end)
        for sentence in _sentences(text, line_start, line_end)
        for start, end in _shorten(text, *sentence, max_chars)
    )


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    return (start + left, start + len(piece.rstrip())) if left < len(piece) else (end, end)


def _cut(text: str, start: int, end: int, mark: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """The pieces of `text[start:end]` between the matches of `mark`, trimmed, none empty."""
    position = start
    for match in mark.finditer(text, start, end):
        piece = _trim(text, position, match.start())
        if piece[0] < piece[1]:
            yield piece
        position = match.end()
    piece = _trim(text, position, end)
    if piece[0] < piece[1]:
        yield piece


def _blocks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Split a paragraph before enumerated lines, and at line ends that close a short line."""
    for piece_start, piece_end in _cut(text, start, end, _LINE_START):
        position = piece_start
        for match in re.finditer(r"\n", text[piece_start:piece_end]):
            at = piece_start + match.start()
            line_start = text.rfind("\n", piece_start, at) + 1 or piece_start
            line = text[max(line_start, position) : at].strip()
            visible = _VISIBLE.search(text, at + 1, piece_end)
            following = visible.group() if visible else ""
            # A heading or the last line of a paragraph; a wrapped line goes on in lower case.
            heading = len(line) < 60 and (line.isupper() or line.istitle())
            closed = line.endswith((".", ";", ":", "!", "?"))
            if line and following and not following.islower() and (heading or closed):
                trimmed = _trim(text, position, at)
                if trimmed[0] < trimmed[1]:
                    yield trimmed
                position = at + 1
        trimmed = _trim(text, position, piece_end)
        if trimmed[0] < trimmed[1]:
            yield trimmed


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    position = start
    for match in _SENTENCE_END.finditer(text, start, end):
        # The end alone: what abbreviations follow each other in is not read again for each.
        begin = max(position, match.start() - _LOOK_BACK)
        before = text[begin : match.start()].rstrip("\"'”’)]")
        if before.endswith(".") and _is_abbreviation(before, begin == start):
            continue
        piece = _trim(text, position, match.end())
        if piece[0] < piece[1]:
            yield piece
        position = match.end()
    piece = _trim(text, position, end)
    if piece[0] < piece[1]:
        yield piece


def _is_abbreviation(before: str, first: bool) -> bool:
    words = before[:-1].split()
    word = words[-1].lstrip("(\"'“‘").lower() if words else ""
    enumerator = first and len(words) == 1 and len(word) <= 6
    return enumerator or word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha())


def _shorten(text: str, start: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
    left = [(start, end)]
    while left:
        start, end = left.pop()
        if end - start <= limit:
            yield start, end
            continue
        cuts = [start, *_places_to_cut(text, start, end, limit), end]
        pieces = [_trim(text, *piece) for piece in pairwise(cuts)]
        left += [piece for piece in reversed(pieces) if piece[0] < piece[1]]


def _places_to_cut(text: str, start: int, end: int, limit: int) -> Sequence[int]:
    """The mark that is nearest the middle; where there is none, every so many characters, counted
    anew after white space."""
    for mark in (_INLINE_ITEM, _CLAUSE_END, _SPACE):
        cuts = [m.end() for m in mark.finditer(text, start, end)]
        middle = (start + end) // 2
        usable = [c for c in cuts if start + limit // 8 < c < end - limit // 8]
        if usable:
            return [min(usable, key=lambda c: abs(c - middle))]
    places = []
    while end - start > limit:
        places.append(start + limit)
        space = _SPACE.match(text, start + limit, end)
        start = space.end() if space else start + limit
    return places
