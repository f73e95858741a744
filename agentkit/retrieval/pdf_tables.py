"""Ruled tables of a PDF page: their rows as lines, one cell after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from agentkit.retrieval.pdf_layout import Line, row_text, rows_of

CELL_MARK = " | "
_MAX_RULES = 4000
_Word: TypeAlias = Mapping[str, Any]
_Box: TypeAlias = tuple[float, float, float, float]


def table_rows(page: Any, words: Sequence[_Word]) -> tuple[list[list[Line]], list[_Word]]:
    """The rows of each table of a pdfplumber page, tables from the top, and the other words.

    A table has two rows and two columns at least, and words in two cells of half its rows: a frame
    around a page, or a form of boxes, is none. Words of a cell are read line by line.
    """
    rules = len(page.lines) + len(page.rects) + len(page.curves)
    if not words or not 2 <= rules <= _MAX_RULES:
        return [], list(words)
    tables: list[list[Line]] = []
    left = list(words)
    for table in sorted(page.find_tables(), key=lambda table: table.bbox[1]):
        cells = [[box for box in row.cells if box is not None] for row in table.rows]
        if len(cells) < 2 or max(map(len, cells)) < 2:
            continue
        rows = [[[word for word in left if _inside(word, box)] for box in row] for row in cells]
        filled = sum(sum(bool(cell) for cell in row) >= 2 for row in rows)
        if filled < max(2, len(rows) / 2):
            continue
        tables.append([_line(row) for row in rows if any(row)])
        taken = {id(word) for row in rows for cell in row for word in cell}
        left = [word for word in left if id(word) not in taken]
    return tables, left


def _inside(word: _Word, box: _Box) -> bool:
    x, y = (word["x0"] + word["x1"]) / 2, (word["top"] + word["bottom"]) / 2
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def _line(row: Sequence[Sequence[_Word]]) -> Line:
    words = [word for cell in row for word in cell]
    return Line(
        text=CELL_MARK.join(" ".join(map(row_text, rows_of(cell))) for cell in row),
        x0=min(word["x0"] for word in words),
        x1=max(word["x1"] for word in words),
        top=min(word["top"] for word in words),
        bottom=max(word["bottom"] for word in words),
        bold=False,
        column=0,
        row=True,
    )
