"""Rows of JSONL files."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentkit.errors import InputError

Record = dict[str, Any]
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
"""How halves of characters are written: nothing else decodes to one."""


def read_jsonl(path: Path) -> Iterator[Record]:
    """Rows of a `.jsonl` or `.jsonl.gz` file, in order."""
    return (row for _, row in numbered_jsonl(path))


def numbered_jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    """The same, each with the number of its line; empty lines count, and are left out.

    Raises `InputError`, with the line, for one that is no JSON or holds what is no text.
    """
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"not valid JSON: {error.msg}", where=f"{path}:{number}:{error.colno}"
                    ) from error
                except (ValueError, RecursionError) as error:
                    raise InputError(
                        f"it cannot be read: {error}",
                        where=f"{path}:{number}",
                        hint="numbers have at most 4,300 digits, and what is nested is not deep",
                    ) from error
                if _ESCAPED.search(line):
                    _check_text(row, f"{path}:{number}")
                yield number, row


def _check_text(row: Any, where: str) -> None:
    """Raises `InputError` for half of a character, as is left where a text was cut in two."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"it holds half of a character: \\u{ord(error.object[error.start]):04x} alone",
            where=where,
            hint="it is one of a surrogate pair; take it out, or write both",
        ) from error


def expression(
    row: Mapping[str, Any], field: str, *, where: str, words: bool = False
) -> re.Pattern[str]:
    """The regular expression of a row's field, without regard to case; of whole `words` only.

    Raises `InputError` for a row that lacks it, or in which it is none.
    """
    try:
        return re.compile(rf"\b(?:{row[field]})\b" if words else row[field], re.IGNORECASE)
    except KeyError as error:
        raise InputError(f"a row lacks {error}", where=where) from error
    except re.error as error:
        raise InputError(f"{field} is no regular expression: {error}", where=where) from error
