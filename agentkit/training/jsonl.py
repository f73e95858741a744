"""Rows of JSONL files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentkit.errors import InputError

Record = dict[str, Any]


def read_jsonl(path: Path) -> Iterator[Record]:
    """Rows of a `.jsonl` or `.jsonl.gz` file, in order."""
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"not valid JSON: {error.msg}", where=f"{path}:{number}:{error.colno}"
                    ) from error
