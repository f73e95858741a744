"""What a format's reader gives before it is a `Document`: text, headings, pages, warnings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from agentkit.errors import DocumentError
from agentkit.retrieval.language import english_warning
from agentkit.retrieval.spans import split_spans
from agentkit.types import Document, Section


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading that begins at `offset`; level 1 is the outermost."""

    offset: int
    level: int
    title: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A document as its reader found it."""

    text: str
    media_type: str
    headings: tuple[Heading, ...] = ()
    pages: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def with_warnings(self, warnings: tuple[str, ...]) -> Draft:
        """The same draft with `warnings` before its own."""
        return replace(self, warnings=warnings + self.warnings)


@dataclass(slots=True)
class DraftBuilder:
    """Stateful: collects paragraphs in order, with a blank line between them."""

    media_type: str
    headings: list[Heading] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _parts: list[str] = field(default_factory=list)
    _length: int = 0

    @property
    def length(self) -> int:
        """Characters so far."""
        return self._length

    def paragraph(self, text: str, *, level: int | None = None, tight: bool = False) -> None:
        """Add a paragraph; `level` makes it a heading, `tight` puts it on the very next line."""
        text = text.strip()
        if not text:
            return
        if self._parts:
            self._append("\n" if tight else "\n\n")
        if level is not None:
            self.headings.append(Heading(self._length, level, " ".join(text.split())))
        self._append(text)

    def build(self) -> Draft:
        text = "".join(self._parts)
        return Draft(
            text, self.media_type, tuple(self.headings), tuple(self.pages), tuple(self.warnings)
        )

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)


def sections_of(
    length: int, headings: Sequence[Heading], pages: Sequence[int] = ()
) -> tuple[Section, ...]:
    """Sections that tile `[0, length)`, each beginning at a heading and carrying its path."""
    return tuple(_sections(length, headings, pages))


def _sections(length: int, headings: Sequence[Heading], pages: Sequence[int]) -> Iterator[Section]:
    ordered = sorted(headings, key=lambda heading: heading.offset)
    path: list[Heading] = []
    page = 0
    bounds = [heading.offset for heading in ordered[1:]] + [length]
    if length and (not ordered or ordered[0].offset > 0):
        first = ordered[0].offset if ordered else length
        yield Section(0, first, (), 1 if pages else None)
    for heading, end in zip(ordered, bounds, strict=False):
        while path and path[-1].level >= heading.level:
            path.pop()
        path.append(heading)
        while page < len(pages) and pages[page] <= heading.offset:
            page += 1
        if end > heading.offset:
            titles = tuple(item.title for item in path)
            yield Section(heading.offset, end, titles, max(page, 1) if pages else None)


def text_digest(text: str) -> str:
    """SHA-256 of `text` in UTF-8, hex.

    Raises:
        DocumentError: the text holds code points that no encoding can write (lone surrogates).
    """
    try:
        return hashlib.sha256(text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"its text holds an unpaired surrogate at character {error.start}",
            hint="the text was decoded wrongly; decode it again from its bytes",
        ) from error


def finish(draft: Draft, *, source: str) -> Document:
    """The `Document` of a draft: digest, sections and spans, and a warning if it is not English.

    Raises:
        DocumentError: the text is empty.
    """
    if not draft.text.strip():
        raise DocumentError(
            "it holds no text", where=source, hint="give a document that has text in it"
        )
    foreign = english_warning(draft.text)
    return Document(
        digest=text_digest(draft.text),
        source=source,
        media_type=draft.media_type,
        text=draft.text,
        sections=sections_of(len(draft.text), draft.headings, draft.pages),
        spans=split_spans(draft.text),
        pages=draft.pages,
        warnings=draft.warnings + ((foreign,) if foreign else ()),
    )
