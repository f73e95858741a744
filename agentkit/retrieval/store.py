"""Documents by digest, one JSON file each."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

from agentkit.errors import DocumentError
from agentkit.retrieval.codec import document_from_json, document_to_json
from agentkit.types import Document

_DIGEST = re.compile(r"[0-9a-f]{64}")


class FileDocumentStore:
    """Stateful on disk only: a folder of `<digest>.json`, safe for several processes.

    Files are written whole or not at all, and checked against their digest when read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def directory(self) -> Path:
        return self._directory

    def put(self, document: Document) -> str:
        """Store the document and return its digest; the same text is stored once.

        The latest `source` and warnings win when a text is stored again under another name.
        """
        data = json.dumps(document_to_json(document), ensure_ascii=False, separators=(",", ":"))
        write_atomically(self._path(document.digest), data.encode("utf-8"))
        return document.digest

    def get(self, digest: str) -> Document:
        """The document of that digest.

        Raises:
            DocumentError: it is not stored, was cut short, or was changed.
        """
        path = self._path(digest)
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DocumentError(
                f"document {digest[:12]} is not in the store",
                where=str(self._directory),
                hint="read the document again",
            ) from None
        except (ValueError, RecursionError) as error:
            raise DocumentError(
                f"the stored document is damaged: {error}",
                where=str(path),
                hint="remove it and read the document again",
            ) from error
        document = document_from_json(value, where=str(path))
        if document.digest != digest:
            raise DocumentError(
                f"it holds another document, {document.digest[:12]}",
                where=str(path),
                hint="remove it and read the document again",
            )
        return document

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self._path(digest).exists()

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise DocumentError(
                f"{digest[:80]!r} is not a document's digest",
                hint="a digest is 64 hexadecimal digits",
            )
        return self._directory / f"{digest}.json"


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that readers, and a crash, see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
