"""Which files an index was built from, beside it in `files.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from agentkit.errors import InputError
from agentkit.retrieval.store import write_atomically

LEDGER = "files.json"
_FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file as it was when it was indexed."""

    sha256: str
    """Of the file's bytes, hex: a file with other bytes is read again."""
    document: str
    """Digest of the document that it holds."""
    source: str


def read_ledger(folder: Path) -> dict[str, IndexedFile]:
    """Absolute path to file; empty where none is recorded.

    Raises:
        InputError: the record is damaged.
    """
    path = folder / LEDGER
    try:
        value = json.loads(path.read_bytes())
        if value["format"] != _FORMAT:
            raise ValueError(f"format {value['format']}")
        files = {name: IndexedFile(**entry) for name, entry in value["files"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"damaged: {error}", where=str(path), hint="build the index anew"
        ) from error
    if not all(_DIGEST.fullmatch(file.document) for file in files.values()):
        raise InputError(
            "damaged: not a document's digest", where=str(path), hint="build the index anew"
        )
    return files


def write_ledger(folder: Path, files: Mapping[str, IndexedFile]) -> None:
    """Write the record, whole or not at all."""
    value = {"format": _FORMAT, "files": {name: asdict(file) for name, file in files.items()}}
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # A path may hold bytes that are no UTF-8; they come back as they were.
    write_atomically(folder / LEDGER, data.encode("utf-8", "surrogatepass"))
