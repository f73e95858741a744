"""A file, or a text at hand, to a `Document`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from agentkit.errors import DocumentError
from agentkit.retrieval.draft import finish
from agentkit.retrieval.formats import MARKDOWN
from agentkit.retrieval.read_text import markdown_draft, plain_draft
from agentkit.retrieval.sandbox import read_in_child
from agentkit.settings import Settings
from agentkit.types import Document

TextType: TypeAlias = Literal["text/plain", "text/markdown"]


def load_document(path: Path, *, settings: Settings | None = None) -> Document:
    """Read a PDF, DOCX, HTML, Markdown or text file.

    The format is told by the file's content, then by its extension. The reading is done in a
    child process under the settings' `document_seconds`, `document_memory_bytes` and
    `document_max_bytes`, the environment's by default; what a reader of the document should know
    is in `Document.warnings`.

    Raises:
        DocumentError: there is no such file, or it is empty, too large, encrypted, damaged,
            binary, scanned, of another format, or breaks a limit.
    """
    settings = Settings() if settings is None else settings
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DocumentError(
            f"cannot be read: {reason}", where=str(path), hint="check the path"
        ) from error
    if not path.is_file():
        raise DocumentError("not a file", where=str(path), hint="give a file's path")
    if size > settings.document_max_bytes:
        raise DocumentError(
            f"too large: {size:,} bytes",
            where=str(path),
            hint=f"at most {settings.document_max_bytes:,} are read "
            "(AGENTKIT_DOCUMENT_MAX_BYTES); split it",
        )
    if size == 0:
        raise DocumentError(
            "the file is empty", where=str(path), hint="give a document that has text in it"
        )
    return read_in_child(path, settings=settings)


def document_from_text(
    text: str, *, source: str = "text", media_type: TextType = "text/plain"
) -> Document:
    """A document of a text that is at hand, kept exactly as it is; read in this process.

    Raises:
        DocumentError: the text is empty or holds lone surrogates.
    """
    draft = markdown_draft(text) if media_type == MARKDOWN else plain_draft(text)
    return finish(draft, source=source)
