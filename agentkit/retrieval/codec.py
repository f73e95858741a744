"""`Document` to JSON and back, with its digest and offsets checked on the way in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentkit.errors import DocumentError
from agentkit.retrieval.draft import text_digest
from agentkit.types import Document, Json, Section, Span

FORMAT = 1


def document_to_json(document: Document) -> dict[str, Json]:
    """A JSON object with every field; sections and spans as arrays, to stay small."""
    return {
        "format": FORMAT,
        "digest": document.digest,
        "source": document.source,
        "media_type": document.media_type,
        "text": document.text,
        "sections": [[s.start, s.end, list(s.heading), s.page] for s in document.sections],
        "spans": [[span.start, span.end] for span in document.spans],
        "pages": list(document.pages),
        "warnings": list(document.warnings),
    }


def document_from_json(value: Mapping[str, Any], *, where: str) -> Document:
    """The document, if it is whole and unchanged.

    Raises:
        DocumentError: a field is missing or of another type, the digest is not that of the text,
            or an offset lies outside the text.
    """
    hint = "remove it and read the document again"
    if not isinstance(value, Mapping) or value.get("format") != FORMAT:
        raise DocumentError("not a stored document of this version", where=where, hint=hint)
    try:
        document = Document(
            digest=_text(value["digest"]),
            source=_text(value["source"]),
            media_type=_text(value["media_type"]),
            text=_text(value["text"]),
            sections=tuple(
                Section(_offset(a), _offset(b), tuple(map(_text, heading)), _page(page))
                for a, b, heading, page in value["sections"]
            ),
            spans=tuple(Span(_offset(a), _offset(b)) for a, b in value["spans"]),
            pages=tuple(map(_offset, value["pages"])),
            warnings=tuple(map(_text, value["warnings"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DocumentError(
            f"damaged: {error.__class__.__name__} {error}", where=where, hint=hint
        ) from error
    if text_digest(document.text) != document.digest:
        raise DocumentError(
            "its text has changed since it was stored: the digest differs", where=where, hint=hint
        )
    length = len(document.text)
    stretches = [(section.start, section.end) for section in document.sections]
    stretches += [(span.start, span.end) for span in document.spans]
    if any(not 0 <= start < end <= length for start, end in stretches) or any(
        not 0 <= page <= length for page in document.pages
    ):
        raise DocumentError("damaged: an offset lies outside its text", where=where, hint=hint)
    return document


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _offset(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return value


def _page(value: object) -> int | None:
    return None if value is None else _offset(value)
