"""Words with positions to lines and paragraphs, by the geometry of the page."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentkit.retrieval.headings import heading_of_line
from agentkit.retrieval.raised import lowered, raised
from agentkit.retrieval.reading_order import is_right_to_left, reading_order

_ITEM = re.compile(
    r"(?:\([a-zA-Z0-9]{1,5}\)|[a-zA-Z0-9]{1,3}[.)]|\d{1,3}(?:\.\d{1,3})+\.?|[•●▪■◦–—*-])\s+\S"
)
_ENDS = re.compile(r"[.!?;:]['\"”’)\]]*$")
_EDGE_LINES = 3
_SAME = 0.75
_SMALL = 0.85
"""Of the height of the word before it: a figure that is raised or lowered."""
_LEAST = 0.45
"""What is smaller stands beside a large initial."""
_SAME_HEIGHT = 6
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a page's column; positions in points from the page's upper left corner."""

    text: str
    x0: float
    x1: float
    top: float
    bottom: float
    bold: bool
    column: int
    row: bool = False
    """A row of a table."""

    @property
    def height(self) -> float:
        return self.bottom - self.top


@dataclass(frozen=True, slots=True)
class Paragraph:
    lines: tuple[str, ...]
    large: bool
    """Set in a larger face than the page's running text."""
    row: bool = False
    """A row of a table."""


def distinct_characters(characters: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each character once: some programs print bold by drawing a letter twice, a hair apart."""
    seen: dict[tuple[str, int, int], tuple[float, float]] = {}
    kept = []
    for character in characters:
        text, x, y = character["text"], character["x0"], character["top"]
        column, row = round(x), round(y)
        near = (seen.get((text, column + dx, row + dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1))
        if any(at and abs(at[0] - x) < _SAME and abs(at[1] - y) < _SAME for at in near):
            continue
        seen[text, column, row] = (x, y)
        # To the half point: sizes that a program rounds differently do not cut words. Of turned
        # text it is the width of each letter.
        size = round(2 * character["size"]) / 2 if character.get("upright", True) else 0.0
        kept.append(character | {"size": size})
    return kept


def page_lines(words: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Lines in reading order: down the page, or down each of its two columns."""
    words = [word for word in words if str(word["text"]).strip()]
    if not words:
        return []
    gutter = _gutter(words)
    if gutter is None:
        return _lines(words, 0)
    top, bottom = gutter[1], gutter[2]
    above = [word for word in words if word["bottom"] <= top]
    below = [word for word in words if word["top"] >= bottom]
    middle = [word for word in words if word["bottom"] > top and word["top"] < bottom]
    left = [word for word in middle if word["x1"] <= gutter[0]]
    right = [word for word in middle if word["x1"] > gutter[0]]
    return _lines(above, 0) + _lines(left, 1) + _lines(right, 2) + _lines(below, 3)


def _gutter(words: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """`(x, top, bottom)` of an empty vertical strip between two columns of running text."""
    rows = [row for row in rows_of(words) if row]
    left, right = min(w["x0"] for w in words), max(w["x1"] for w in words)
    width = right - left
    if len(rows) < 8 or width <= 0:
        return None
    split = []
    for row in rows:
        best = max(
            ((b["x0"] - a["x1"], a["x1"], b["x0"]) for a, b in itertools.pairwise(row)),
            default=(0.0, 0.0, 0.0),
        )
        middle = (best[1] + best[2]) / 2
        if best[0] >= 10 and left + 0.35 * width < middle < left + 0.65 * width:
            # Both halves must be filled: a label beside a paragraph is no column.
            filled = best[1] - left > 0.3 * width and right - best[2] > 0.3 * width
            if filled:
                split.append((middle, row))
    if len(split) < max(8, 0.5 * len(rows)):
        return None
    centre = statistics.median(middle for middle, _ in split)
    crossing = [
        row for row in rows if any(w["x0"] < centre - 2 and w["x1"] > centre + 2 for w in row)
    ]
    top = min(w["top"] for _, row in split for w in row)
    bottom = max(w["bottom"] for _, row in split for w in row)
    inside = [row for row in crossing if top <= row[0]["top"] < bottom]
    return (centre, top, bottom) if not inside else None


def rows_of(words: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Words that share a baseline, left to right; rows from top to bottom."""
    rows: list[list[Mapping[str, Any]]] = []
    for word in sorted(words, key=lambda w: (w["bottom"], w["x0"])):
        height = word["bottom"] - word["top"]
        row = rows[-1] if rows else []
        # A superscript's bottom stands higher than its line's, by less than half of a line.
        if row and word["bottom"] - row[-1]["bottom"] <= 0.45 * min(
            height, row[-1]["bottom"] - row[-1]["top"]
        ):
            row.append(word)
        else:
            rows.append([word])
    return [sorted(row, key=lambda w: w["x0"]) for row in _with_shifted(rows) if row]


def _with_shifted(rows: list[list[Mapping[str, Any]]]) -> list[list[Mapping[str, Any]]]:
    """Raised and lowered words, which share no baseline with their line, put into it."""
    homes: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        near = [n for n in range(max(0, at - 2), min(len(rows), at + 3)) if n not in (at, *homes)]
        found: list[int] = []
        for word in row:
            home = _home(word, rows, near)
            if home < 0:
                break  # words of a line, of which one stands beside a large initial, stay together
            found.append(home)
        else:
            homes[at] = found
    kept = [[] if at in homes else [*row] for at, row in enumerate(rows)]
    for at, found in homes.items():
        for word, home in zip(rows[at], found, strict=True):
            # A home that moves itself takes its words along.
            while home in homes:
                home = homes[home][0]
            kept[home].append(word)
    return kept


def _home(
    word: Mapping[str, Any], rows: Sequence[Sequence[Mapping[str, Any]]], near: Iterable[int]
) -> int:
    return next((n for n in near if any(_is_beside(word, other) for other in rows[n])), -1)


def _is_beside(word: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """A smaller word at the end or the beginning of another, within its height."""
    height = other["bottom"] - other["top"]
    if not _LEAST * height <= word["bottom"] - word["top"] < _SMALL * height:
        return False
    gap = max(word["x0"] - other["x1"], other["x0"] - word["x1"])
    middle = (word["top"] + word["bottom"]) / 2
    return bool(-0.1 * height < gap < 0.35 * height and other["top"] < middle < other["bottom"])


def _lines(words: Sequence[Mapping[str, Any]], column: int) -> list[Line]:
    return [_line(row, column) for row in rows_of(words)]


def _line(row: Sequence[Mapping[str, Any]], column: int) -> Line:
    # A raised figure makes its line no higher.
    height = _SMALL * max(word["bottom"] - word["top"] for word in row)
    tall = [word for word in row if word["bottom"] - word["top"] >= height]
    return Line(
        text=row_text(row),
        x0=row[0]["x0"],
        x1=max(word["x1"] for word in row),
        top=min(word["top"] for word in tall),
        bottom=max(word["bottom"] for word in tall),
        bold=all("bold" in str(word.get("fontname", "")).lower() for word in row),
        column=column,
    )


def row_text(row: Sequence[Mapping[str, Any]]) -> str:
    """Words with spaces, except where a change of font cut one word in two."""
    texts = [str(word["text"]) for word in row]
    if any(map(is_right_to_left, texts)):
        return " ".join(reading_order(texts))
    parts, base = texts[:1], row[0]
    for before, word in itertools.pairwise(row):
        size = word["bottom"] - word["top"]
        same = word.get("fontname") == before.get("fontname")
        joined = word["x0"] - before["x1"] < (0.15 if same else 0.08) * size
        text = str(word["text"])
        height = base["bottom"] - base["top"]
        if joined and size < _SMALL * height and word["bottom"] < base["bottom"] - 0.15 * height:
            text = raised(text)
        elif joined and size < _SMALL * height and word["bottom"] > base["bottom"]:
            text = lowered(text)
        else:
            base = word
        parts.append(("" if joined else " ") + text)
    return "".join(parts)


def running_lines(pages: Sequence[Sequence[Line]]) -> frozenset[str]:
    """Patterns (digits as `#`) of headers and footers: at the edge of most pages, at one height.

    Numbered clauses and list items are never taken for them.
    """
    if len(pages) < 3:
        return frozenset()
    heights: defaultdict[str, list[float]] = defaultdict(list)
    for lines in pages:
        head, foot = _edges(lines)
        for line in {mask(line.text): line for line in (*head, *foot)}.values():
            if not _ITEM.match(line.text):
                heights[mask(line.text)].append(line.top)
    least = max(3, 0.6 * sum(bool(lines) for lines in pages))
    return frozenset(
        pattern
        for pattern, tops in heights.items()
        if len(tops) >= least and max(tops) - min(tops) < _SAME_HEIGHT
    )


def without_running_lines(lines: Sequence[Line], running: frozenset[str]) -> list[Line]:
    """The page without its header and footer: from each edge inward while the lines match."""
    dropped: set[int] = set()
    for edge in _edges(lines):
        for line in edge:
            if mask(line.text) not in running:
                break
            dropped.add(id(line))
    return [line for line in lines if id(line) not in dropped]


def _edges(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """The first and the last lines of a page, from the edge inward."""
    ordered = sorted(lines, key=lambda line: line.top)
    edge = min(_EDGE_LINES, len(ordered) // 2)
    return ordered[:edge], ordered[::-1][:edge]


def mask(text: str) -> str:
    return _DIGITS.sub("#", " ".join(text.split()))


def paragraphs(lines: Sequence[Line]) -> Iterator[Paragraph]:
    """The lines of a page joined into paragraphs."""
    if not lines:
        return
    height = statistics.median(line.height for line in lines)
    leading = _leading(lines, height)
    right = {
        column: sorted(line.x1 for line in lines if line.column == column)[-1]
        for column in {line.column for line in lines}
    }
    group: list[Line] = []
    for line in lines:
        if group and _starts(line, group, leading, right[line.column], height):
            yield _paragraph(group, height)
            group = []
        group.append(line)
    yield _paragraph(group, height)


def _paragraph(group: Sequence[Line], height: float) -> Paragraph:
    return Paragraph(
        tuple(line.text for line in group),
        large=all(line.height > 1.2 * height for line in group) and not group[0].row,
        row=group[0].row,
    )


def _leading(lines: Sequence[Line], height: float) -> float:
    """The usual distance between the baselines of a paragraph's lines."""
    steps = [
        b.bottom - a.bottom
        for a, b in itertools.pairwise(lines)
        if a.column == b.column and 0 < b.bottom - a.bottom < 3 * height
    ]
    if not steps:
        return 1.2 * height
    # The low quartile: a page of short paragraphs has more gaps than lines in them.
    return max(sorted(steps)[len(steps) // 4], height)


def _starts(line: Line, group: Sequence[Line], leading: float, right: float, height: float) -> bool:
    """Does `line` begin a new paragraph?"""
    before = group[-1]
    if line.row or before.row:
        return True
    if line.column != before.column:
        return _ENDS.search(before.text) is not None or _ITEM.match(line.text) is not None
    if line.bottom - before.bottom > 1.35 * leading or line.bottom <= before.bottom:
        return True
    if abs(line.height - before.height) > 0.2 * height or line.bold != before.bold:
        return True
    if _ITEM.match(line.text) and (
        _ENDS.search(before.text) or line.x0 <= group[0].x0 + 1 or len(group) == 1
    ):
        return True
    ended = _ENDS.search(before.text) is not None
    short = before.x1 < right - 4 * height
    if heading_of_line(line.text) is not None and (ended or short):
        return True
    if len(group) == 1 and short and heading_of_line(before.text) is not None:
        return True
    if ended and (short or line.x0 > before.x0 + 1.5 * height):
        return True
    # Lines that end far from the margin and begin with a capital are set line by line.
    return before.x1 < right - 12 * height and line.text[:1].isupper()
