"""PDF: positioned words to lines, lines to paragraphs, pages kept."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agentkit.errors import DocumentError
from agentkit.retrieval.draft import Draft, DraftBuilder
from agentkit.retrieval.formats import PDF
from agentkit.retrieval.headings import find_headings, heading_of_line
from agentkit.retrieval.pdf_layout import (
    Line,
    Paragraph,
    distinct_characters,
    page_lines,
    paragraphs,
    running_lines,
    without_running_lines,
)
from agentkit.retrieval.pdf_tables import table_rows

_TAIL = 2048
_MARKS = frozenset(("/Text", "/Highlight", "/StrikeOut", "/Underline", "/Squiggly", "/Caret"))
_HIDDEN = 2
_MAX_HEADING = 120
_MAX_PAGES = 20_000
_UNMAPPED = re.compile(r"\(cid:\d+\)")
_GOES_ON = re.compile(r"[a-z(\d,;]")
_ENDS = re.compile(r"[.!?;:]['\"”’)\]]*$")
# With these a hyphen at a line's end belongs to the word.
_HYPHENATED = frozenset(("non", "self", "co", "pre", "post", "third", "anti", "cross", "arms"))


def read_pdf(data: bytes, name: str) -> Draft:
    """Paragraphs over line and page ends, headings by their form, `pages` by their start offset.

    Running headers and footers are left out with a warning; filled form fields and notes written
    onto the pages follow the text.

    Raises:
        DocumentError: encrypted, truncated, damaged, or without any text (scanned).
    """
    fields, notes, marks = _check(data, name)
    pages, empty = _read_lines(data, name)
    left_out = running_lines(pages)
    builder = DraftBuilder(PDF)
    builder.warnings.extend(_warnings(pages, empty, left_out))
    vocabulary = {
        word.strip(".,;:()\"'“”").lower()
        for page in pages
        for line in page
        for word in line.text.split()[:-1]
    }
    _write(builder, pages, left_out, vocabulary)
    if fields:
        builder.paragraph("Form fields", level=1)
        for key, value in fields:
            builder.paragraph(f"{key}: {value}", tight=True)
        builder.warnings.append(f"{len(fields)} filled form fields were added after the text")
    if notes:
        builder.paragraph("Notes on the pages", level=1)
        for page, text in notes:
            builder.paragraph(f"Page {page}: {text}", tight=True)
        builder.warnings.append(f"{len(notes)} notes on the pages were added after the text")
    if marks:
        builder.warnings.append(f"{marks} comments, highlights and strike-outs were left out")
    draft = builder.build()
    formed = find_headings(draft.text)
    offsets = {heading.offset for heading in formed}
    large = (heading for heading in draft.headings if heading.offset not in offsets)
    return replace(draft, headings=tuple(sorted((*formed, *large), key=lambda h: h.offset)))


_Fields = list[tuple[str, str]]
_Notes = list[tuple[int, str]]


def _check(data: bytes, name: str) -> tuple[_Fields, _Notes, int]:
    """Refuse what cannot be read whole; returns filled form fields, notes with the 1-based numbers
    of their pages, and how many other marks a reader has made."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    if b"%%EOF" not in data[-_TAIL:]:
        raise DocumentError(
            "a truncated PDF: its end is missing", where=name, hint="copy or download it again"
        )
    try:
        reader = PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(
                "an encrypted PDF: it asks for a password",
                where=name,
                hint="save it without a password",
            )
        pages = reader.get_num_pages()
        if pages > _MAX_PAGES:
            raise DocumentError(
                f"a PDF of {pages:,} pages",
                where=name,
                hint=f"at most {_MAX_PAGES:,} pages are read; split it",
            )
        if not pages:
            raise DocumentError("a PDF without pages", where=name, hint="download it again")
        fields = _form_fields(reader)
        notes, marks = _annotations(reader)
    except PyPdfError as error:
        raise DocumentError(
            f"a damaged PDF: {error}", where=name, hint="copy or download it again"
        ) from error
    return fields, notes, marks


def _form_fields(reader: Any) -> _Fields:
    """What is filled in: texts, choices as they are shown, and what is ticked."""
    found: dict[str, str] = {}
    for name, field in (reader.get_fields() or {}).items():
        value, kind = field.get("/V"), field.get("/FT")
        if kind == "/Btn":
            ticked = str(value or "/Off")
            value = None if ticked == "/Off" else ticked.removeprefix("/")
        elif kind == "/Ch":
            shown = _shown_choices(field.get("/Opt"))
            chosen = value if isinstance(value, list) else [value]
            value = ", ".join(shown.get(str(one), str(one)) for one in chosen if one)
        elif kind != "/Tx":
            continue
        text = str(value or "").strip()
        own = str(field.get("/T", name))
        if text:
            found[str(name) if own in found else own] = text
    return list(found.items())


def _shown_choices(options: Any) -> dict[str, str]:
    """What a list shows for each value that differs from it."""
    pairs = [one for one in options or () if isinstance(one, list) and len(one) == 2]
    return {str(value): str(shown) for value, shown in pairs}


def _annotations(reader: Any) -> tuple[_Notes, int]:
    notes: _Notes = []
    marks = 0
    for number, page in enumerate(reader.pages, 1):
        listed = page.get("/Annots")
        listed = listed.get_object() if listed is not None else None
        for one in listed if isinstance(listed, list) else ():
            known = one.get_object()
            if not isinstance(known, dict):  # one that was deleted
                continue
            flags = known.get("/F")
            if isinstance(flags, int) and flags & _HIDDEN:
                continue
            kind = known.get("/Subtype")
            text = str(known.get("/Contents") or "").strip() if kind == "/FreeText" else ""
            if text:
                notes.append((number, " ".join(text.split())))
            marks += kind in _MARKS
    return notes, marks


def _read_lines(data: bytes, name: str) -> tuple[list[list[Line]], list[int]]:
    """Lines of each page, and the 1-based numbers of pages without text."""
    import pdfplumber
    from pdfminer.psexceptions import PSException
    from pdfplumber.utils.exceptions import PdfminerException

    pages: list[list[Line]] = []
    try:
        with pdfplumber.open(io.BytesIO(data), unicode_norm=None) as pdf:
            for page in pdf.pages:
                pages.append(_lines_and_rows(page))
                page.close()
    except (PSException, PdfminerException) as error:
        raise DocumentError(
            f"a damaged PDF: {error}", where=name, hint="copy or download it again"
        ) from error
    empty = [number for number, lines in enumerate(pages, 1) if not lines]
    if len(empty) == len(pages):
        raise DocumentError(
            "no text: looks scanned", where=name, hint="run OCR first and give its PDF or text"
        )
    characters = sum(len(line.text) for lines in pages for line in lines)
    unmapped = sum(
        len(match[0])
        for lines in pages
        for line in lines
        for match in _UNMAPPED.finditer(line.text)
    )
    if unmapped > characters / 2:
        raise DocumentError(
            "no readable text: its fonts carry no character map",
            where=name,
            hint="run OCR first and give its PDF or text",
        )
    return pages, empty


def _lines_and_rows(page: Any) -> list[Line]:
    """Lines in reading order, the rows of a table where it stands."""
    tables, words = table_rows(page, _words(page))
    lines: list[Line] = []
    for rows in tables:
        above = [word for word in words if word["bottom"] <= rows[0].bottom]
        words = [word for word in words if word["bottom"] > rows[0].bottom]
        lines += [*page_lines(above), *rows]
    return lines + page_lines(words)


def _words(page: Any) -> list[dict[str, Any]]:
    from pdfplumber.utils.text import extract_words

    words: list[dict[str, Any]] = extract_words(
        distinct_characters(page.chars),
        x_tolerance_ratio=0.15,
        extra_attrs=["fontname", "size"],
        expand_ligatures=True,
    )
    return words


def _warnings(
    pages: Sequence[Sequence[Line]], empty: Sequence[int], left_out: frozenset[str]
) -> list[str]:
    warnings = []
    if empty:
        numbers = ", ".join(map(str, empty[:20])) + (", ..." if len(empty) > 20 else "")
        warnings.append(f"no text on page {numbers}: blank or scanned; run OCR if it matters")
    if any(_UNMAPPED.search(line.text) for lines in pages for line in lines):
        warnings.append("some characters could not be read: a font carries no character map")
    if left_out:
        shown = "; ".join(sorted(left_out)[:5])
        warnings.append(f"repeated page headers or footers were left out: {shown}")
    return warnings


def _write(
    builder: DraftBuilder,
    pages: Sequence[Sequence[Line]],
    left_out: frozenset[str],
    vocabulary: set[str],
) -> None:
    """Paragraphs of all pages; one that goes on over a page's end is kept together."""
    open_text = ""
    open_heading = open_row = tight = False
    # Page starts that fall into the open paragraph, as offsets in it.
    starts: list[int] = []

    def close() -> None:
        nonlocal open_text, open_heading
        base = builder.length + ((1 if tight else 2) if builder.length else 0)
        if open_text:
            builder.paragraph(open_text, level=1 if open_heading else None, tight=tight)
        builder.pages.extend(min(base + start, builder.length) for start in starts)
        starts.clear()
        open_text, open_heading = "", False

    for lines in pages:
        first = True
        for paragraph in paragraphs(without_running_lines(lines, left_out)):
            text = join_lines(paragraph.lines, vocabulary)
            heading = _is_heading(paragraph)
            goes_on = (
                first
                and open_text
                and not (open_row or paragraph.row)
                and not (open_heading or heading or heading_of_line(text))
                and not _ENDS.search(open_text)
                and _GOES_ON.match(text)
            )
            if goes_on:
                joined = join_lines([open_text, text], vocabulary)
                starts.append(len(joined) - len(text))
                open_text = joined
            else:
                close()
                if first:
                    starts.append(0)
                tight = open_row and paragraph.row
                open_text, open_heading, open_row = text, heading, paragraph.row
            first = False
        if first:
            close()
            builder.pages.append(builder.length)
    close()


def _is_heading(paragraph: Paragraph) -> bool:
    """Set larger than the running text, and no sentence."""
    text = " ".join(paragraph.lines)
    return paragraph.large and len(text) <= _MAX_HEADING and not _ENDS.search(text)


def join_lines(lines: Sequence[str], vocabulary: set[str]) -> str:
    """One paragraph; a word split by a hyphen at a line's end is put together again.

    The hyphen stays where the hyphenated word occurs elsewhere or its first part is a prefix that
    is written with one ("non-", "third-").
    """
    joined = lines[0].strip()
    for line in lines[1:]:
        following = line.strip()
        head = re.search(r"([^\W\d_]+)([-‐\xad])$", joined)
        tail = re.match(r"[^\W\d_]+", following)
        if head and tail and (tail[0][0].islower() or head[2] == "\xad"):
            first, second = head[1].lower(), tail[0].lower()
            keep = (
                head[2] != "\xad"
                and first + second not in vocabulary
                and (f"{first}-{second}" in vocabulary or first in _HYPHENATED)
            )
            joined = joined + following if keep else joined[:-1] + following
        elif joined.endswith(("-", "‐")) and not joined.endswith(" -"):
            joined += following
        else:
            joined += " " + following
    return joined.replace("\xad", "")
