"""How commands speak: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

stderr = Console(stderr=True)
_DRIVES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Controls with which words of a document could drive a terminal."""


def say(text: str, *, label: str = "", style: str = "") -> None:
    """A line on stderr, as it is: a path or a `file:line:column` is never broken in two."""
    text = _shown(text)
    line = Text.assemble((label, f"bold {style}"), " ", text) if label else Text(text, style)
    stderr.print(line, soft_wrap=True)


def print_line(value: object) -> None:
    """A line on stdout at once. That its reader has gone does not end the work that it tells of."""
    try:
        print(value, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: Any) -> None:
    """A value as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: drawn on a terminal, tab-separated in a pipe."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            cells = (_shown(cell).replace("\n", " ").replace("\t", " ") for cell in row)
            sys.stdout.write("\t".join(cells) + "\n")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_literal(cell) for cell in row))
    Console().print(table)


def _literal(text: str) -> str:
    from rich.markup import escape

    return escape(_shown(text))


def _shown(text: str) -> str:
    return _DRIVES.sub("\ufffd", text)
