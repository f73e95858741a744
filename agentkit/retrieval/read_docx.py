"""DOCX: paragraphs and tables in order, as Word shows them with every change accepted."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from agentkit.errors import DocumentError
from agentkit.retrieval.docx_numbering import Numbering, W, number_of, value_of
from agentkit.retrieval.docx_symbols import M, field_value, formula, is_on, symbol
from agentkit.retrieval.draft import Draft, DraftBuilder
from agentkit.retrieval.formats import DOCX
from agentkit.retrieval.headings import find_headings
from agentkit.retrieval.raised import lowered, raised

_MAX_UNPACKED = 1_000_000_000
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_TEXT_BOX = f"{W}txbxContent"
# Deleted or moved away; field codes; properties.
_SKIPPED = frozenset(
    (f"{W}del", f"{W}moveFrom", f"{W}instrText", f"{W}pPr", f"{W}rPr", f"{W}sdtPr", _FALLBACK)
)
_FIXED = {
    f"{W}tab": "\t",
    f"{W}br": "\n",
    f"{W}cr": "\n",
    f"{W}noBreakHyphen": "-",
    f"{W}softHyphen": "",
}
_SHIFTS = {"superscript": raised, "subscript": lowered}


def read_docx(data: bytes, name: str) -> Draft:
    """Paragraphs with their automatic numbers, table rows with ` | `, then the footnotes.

    Headings are paragraphs with a heading style or an outline level; a document without any is
    read for headings by their form. Hidden text, page headers, footers and comments are left out
    with a warning.

    Raises:
        DocumentError: truncated, damaged, or larger unpacked than a document can be.
    """
    import docx
    from docx.opc.exceptions import OpcError
    from lxml import etree

    damaged = "copy or download it again"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > _MAX_UNPACKED:
                raise DocumentError(
                    f"a DOCX file that unpacks to {unpacked:,} bytes",
                    where=name,
                    hint=f"at most {_MAX_UNPACKED:,} bytes are read",
                )
            broken = archive.testzip()
        if broken is not None:
            raise DocumentError(f"a damaged DOCX file: {broken}", where=name, hint=damaged)
        package = docx.Document(io.BytesIO(data))
    except (zipfile.BadZipFile, OpcError, KeyError, ValueError, etree.XMLSyntaxError) as error:
        raise DocumentError(f"a damaged DOCX file: {error}", where=name, hint=damaged) from error
    return _Reader(package).read()


class _Reader:
    """Stateful: one pass over the document's body."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._parts = {
            rel.reltype.rsplit("/", 1)[-1]: rel.target_part
            for rel in package.part.rels.values()
            if not rel.is_external
        }
        numbering = self._part_root("numbering")
        self._numbering = Numbering(numbering)
        self._styles = {
            style.get(f"{W}styleId"): style for style in package.styles.element.findall(f"{W}style")
        }
        self._builder = DraftBuilder(DOCX)
        self._notes: list[tuple[str, str, str]] = []
        self._seen: Counter[str] = Counter()
        self._boxes: list[Any] = []
        self._style: str | None = None

    def read(self) -> Draft:
        for block in _blocks(self._package.element.body):
            self._block(block)
        self._write_notes()
        self._warn()
        draft = self._builder.build()
        headings = draft.headings or find_headings(draft.text)
        return Draft(draft.text, DOCX, headings, (), draft.warnings)

    def _part_root(self, kind: str) -> Any | None:
        from lxml import etree

        part = self._parts.get(kind)
        if part is None:
            return None
        parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
        return etree.fromstring(part.blob, parser)

    def _block(self, block: Any) -> None:
        if block.tag == f"{W}tbl":
            for row in _rows(block):
                self._row(row)
                self._write_boxes()
            return
        text, level, tight = self._paragraph(block)
        self._builder.paragraph(text, level=level, tight=tight)
        self._write_boxes()

    def _write_boxes(self) -> None:
        """What the text boxes anchored in the last block say."""
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            for inner in _blocks(box):
                self._block(inner)

    def _row(self, row: Any) -> None:
        cells: list[list[str] | None] = []
        for cell in _cells(row):
            blocks = list(_blocks(cell))
            if any(block.tag == f"{W}tbl" for block in blocks):
                cells.append(None)
            else:
                texts = (self._paragraph(block)[0].strip() for block in blocks)
                cells.append([text for text in texts if text])
        if all(cell is not None and len(cell) <= 1 for cell in cells):
            line = " | ".join(cell[0] if cell else "" for cell in cells if cell is not None)
            if line.strip(" |"):
                self._builder.paragraph(line, tight=True)
            return
        # Cells of several paragraphs are a layout, not a table: each is read down.
        for cell, element in zip(cells, _cells(row), strict=True):
            if cell is None:
                for block in _blocks(element):
                    self._block(block)
            else:
                for text in cell:
                    self._builder.paragraph(text)

    def _paragraph(self, paragraph: Any) -> tuple[str, int | None, bool]:
        """Its text with its label, its heading level, and whether it is a list item."""
        properties = paragraph.find(f"{W}pPr")
        self._style = style = value_of(properties, "pStyle")
        text = "".join(self._runs(paragraph)).replace("\xa0", " ")
        level = self._heading_level(properties, style)
        list_id, depth = self._list(properties, style)
        if list_id in (None, "0") or not text.strip():
            return text, level, False
        label = self._numbering.label(list_id or "", depth)
        return (f"{label} {text.strip()}" if label else text), level, level is None

    def _runs(self, element: Any) -> Iterator[str]:
        for child in element:
            tag = child.tag
            if tag in _SKIPPED:
                self._seen["changes"] += tag in (f"{W}del", f"{W}moveFrom")
                continue
            if tag == f"{W}t":
                yield child.text or ""
            elif tag in _FIXED:
                yield _FIXED[tag]
            elif tag == f"{W}r":
                yield self._run(child)
            elif tag == f"{W}sym":
                known = symbol(child)
                self._seen["symbols"] += known is None
                yield "•" if known is None else known
            elif tag in (f"{W}checkBox", f"{W}ddList"):
                yield field_value(child)
            elif tag == f"{M}oMath":
                yield "".join(formula(child))
            elif tag in (f"{W}footnoteReference", f"{W}endnoteReference"):
                kind = tag.removeprefix(W).removesuffix("Reference")
                mark = str(len(self._notes) + 1)
                self._notes.append((kind, child.get(f"{W}id", ""), mark))
                yield f"[{mark}]"
            elif tag == _TEXT_BOX:
                self._boxes.append(child)
            else:
                self._seen["changes"] += tag in (f"{W}ins", f"{W}moveTo")
                self._seen["comments"] += tag == f"{W}commentReference"
                yield from self._runs(child)

    def _run(self, run: Any) -> str:
        notes, boxes = len(self._notes), len(self._boxes)
        text = "".join(self._runs(run))
        properties = run.find(f"{W}rPr")
        if self._is_hidden(properties):
            # What hangs on it is hidden with it.
            held = bool(text.strip()) or len(self._notes) > notes or len(self._boxes) > boxes
            self._seen["hidden"] += held
            del self._notes[notes:], self._boxes[boxes:]
            return ""
        shift = value_of(properties, "vertAlign")
        for style in self._style_chain(value_of(properties, "rStyle")):
            shift = shift or value_of(style.find(f"{W}rPr"), "vertAlign")
        return _SHIFTS[shift](text) if shift in _SHIFTS else text

    def _is_hidden(self, properties: Any) -> bool:
        """By the run's own properties, else by its style's, else by its paragraph's style."""
        styles = (value_of(properties, "rStyle"), self._style)
        chain = (one.find(f"{W}rPr") for style in styles for one in self._style_chain(style))
        said = (is_on(element, "vanish") for element in (properties, *chain))
        return next((one for one in said if one is not None), False)

    def _style_chain(self, style: str | None) -> Iterator[Any]:
        visited: set[str] = set()
        while style in self._styles and style not in visited and style is not None:
            visited.add(style)
            yield self._styles[style]
            style = value_of(self._styles[style], "basedOn")

    def _heading_level(self, properties: Any, style: str | None) -> int | None:
        outline = number_of(properties, "outlineLvl", -1)
        if 0 <= outline < 9:
            return outline + 1
        for element in self._style_chain(style):
            name = (value_of(element, "name") or "").lower()
            if name.startswith("heading ") and name[8:].isdigit():
                return int(name[8:])
            if name == "title":
                return 1
            outline = number_of(element.find(f"{W}pPr"), "outlineLvl", -1)
            if 0 <= outline < 9:
                return outline + 1
        return None

    def _list(self, properties: Any, style: str | None) -> tuple[str | None, int]:
        """The list's id and level: the paragraph's own, else its style's."""
        depth: int | None = None
        chain = (element.find(f"{W}pPr") for element in self._style_chain(style))
        for element in (properties, *chain):
            numbering = element.find(f"{W}numPr") if element is not None else None
            if numbering is None:
                continue
            if depth is None and numbering.find(f"{W}ilvl") is not None:
                depth = number_of(numbering, "ilvl", 0)
            list_id = value_of(numbering, "numId")
            if list_id is not None:
                return list_id, depth or 0
        return None, 0

    def _write_notes(self) -> None:
        if not self._notes:
            return
        self._builder.paragraph("Notes", level=1)
        # A note may hold references to further notes.
        for kind, note_id, mark in self._notes:
            root = self._part_root(f"{kind}s")
            notes = [] if root is None else root.findall(f"{W}{kind}")
            for note in notes:
                if note.get(f"{W}id") == note_id:
                    texts = (self._paragraph(block)[0].strip() for block in _blocks(note))
                    self._builder.paragraph(f"[{mark}] " + " ".join(filter(None, texts)))
                    self._write_boxes()

    def _warn(self) -> None:
        warnings = self._builder.warnings
        if self._seen["changes"]:
            warnings.append(f"{self._seen['changes']} tracked changes were read as accepted")
        if self._seen["comments"]:
            warnings.append(f"{self._seen['comments']} comments were left out")
        if self._seen["hidden"]:
            warnings.append(f"{self._seen['hidden']} hidden passages were left out")
        if self._seen["symbols"]:
            warnings.append(
                f"{self._seen['symbols']} characters of a symbol font are not known: read as •"
            )
        running = list(dict.fromkeys(filter(None, map(_words, self._edges()))))
        if running:
            shown = "; ".join(text[:80] for text in running[:5])
            warnings.append(f"page headers and footers were left out: {shown}")

    def _edges(self) -> Iterator[Any]:
        """Headers and footers that some page shows."""
        even = self._package.settings.odd_and_even_pages_header_footer
        for section in self._package.sections:
            yield from (section.header, section.footer)
            if section.different_first_page_header_footer:
                yield from (section.first_page_header, section.first_page_footer)
            if even:
                yield from (section.even_page_header, section.even_page_footer)


def _words(edge: Any) -> str:
    """All that a header or footer says, in tables too; nothing if it is the section before's."""
    if edge.is_linked_to_previous:
        return ""
    return " ".join(" ".join(_texts(edge._element)).split())


def _texts(element: Any) -> Iterator[str]:
    """The texts of paragraphs, each once, whatever they lie in."""
    for child in element:
        if child.tag == f"{W}t":
            yield child.text or ""
        elif child.tag not in _SKIPPED:
            inner = _texts(child)
            yield from inner if child.tag != f"{W}p" else ["".join(inner)]


def _blocks(container: Any) -> Iterator[Any]:
    """Paragraphs and tables in order, through content controls and accepted insertions."""
    for child in container:
        if child.tag in (f"{W}p", f"{W}tbl"):
            yield child
        elif child.tag in (
            f"{W}sdt",
            f"{W}sdtContent",
            f"{W}ins",
            f"{W}moveTo",
            f"{W}customXml",
            f"{W}smartTag",
        ):
            yield from _blocks(child)


def _rows(table: Any) -> Iterator[Any]:
    for child in table:
        if child.tag == f"{W}tr":
            properties = child.find(f"{W}trPr")
            if properties is None or properties.find(f"{W}del") is None:
                yield child
        elif child.tag in (f"{W}sdt", f"{W}sdtContent", f"{W}customXml"):
            yield from _rows(child)


def _cells(row: Any) -> Iterator[Any]:
    for child in row:
        if child.tag == f"{W}tc":
            yield child
        elif child.tag in (f"{W}sdt", f"{W}sdtContent", f"{W}customXml"):
            yield from _cells(child)
