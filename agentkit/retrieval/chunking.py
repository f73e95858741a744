"""Documents to chunks: whole spans, under one heading, at exact offsets."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

from agentkit.types import Chunk, Document, Section

MAX_CHUNK_CHARS = 1200


def chunk_document(document: Document, *, max_chars: int = MAX_CHUNK_CHARS) -> tuple[Chunk, ...]:
    """Chunks of at most `max_chars` characters, in order, disjoint; every span is in one.

    A chunk is a run of whole spans that begin in the same section. A span is cut, between words
    where it has any, only if it is itself longer than `max_chars`.

    Raises:
        ValueError: `max_chars` is less than 1.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, not {max_chars}")
    return tuple(
        _chunk(document, start, end, section)
        for start, end, section in _stretches(document, max_chars)
    )


def span_chunks(document: Document) -> tuple[Chunk, ...]:
    """One chunk for each span: the units that the model quotes."""
    starts = [section.start for section in document.sections]
    return tuple(
        _chunk(document, span.start, span.end, _section_at(document, starts, span.start))
        for span in document.spans
    )


def chunk_id(digest: str, start: int, end: int) -> str:
    """`<document digest, 12 hex>:<start>-<end>`."""
    return f"{digest[:12]}:{start}-{end}"


def _chunk(document: Document, start: int, end: int, section: Section | None) -> Chunk:
    page = bisect.bisect_right(document.pages, start) if document.pages else 0
    return Chunk(
        id=chunk_id(document.digest, start, end),
        document=document.digest,
        start=start,
        end=end,
        text=document.text[start:end],
        heading=section.heading if section else (),
        page=page or None,
    )


def _section_at(document: Document, starts: list[int], offset: int) -> Section | None:
    at = bisect.bisect_right(starts, offset) - 1
    if at < 0 or offset >= document.sections[at].end:
        return None
    return document.sections[at]


def _stretches(document: Document, max_chars: int) -> Iterator[tuple[int, int, Section | None]]:
    starts = [section.start for section in document.sections]
    open_start = open_end = -1
    open_section: Section | None = None
    for span in document.spans:
        section = _section_at(document, starts, span.start)
        fits = open_start >= 0 and span.end - open_start <= max_chars and section is open_section
        if fits:
            open_end = span.end
            continue
        if open_start >= 0:
            yield open_start, open_end, open_section
        open_start, open_end, open_section = span.start, span.end, section
        if span.end - span.start > max_chars:
            for start, end in _pieces(document.text, span.start, span.end, max_chars):
                yield start, end, section
            open_start = -1
    if open_start >= 0:
        yield open_start, open_end, open_section


def _pieces(text: str, start: int, end: int, max_chars: int) -> Iterator[tuple[int, int]]:
    while end - start > max_chars:
        window = text[start : start + max_chars + 1]
        spaces = [match.start() for match in re.finditer(r"\s+", window)]
        # A space at the very start would make an empty piece.
        cut = spaces[-1] if spaces and spaces[-1] > 0 else max_chars
        yield start, start + len(window[:cut].rstrip()) if window[:cut].strip() else start + cut
        start += cut
        rest = text[start:end]
        start += len(rest) - len(rest.lstrip())
    if start < end:
        yield start, end
