"""Write services_agreement.pdf and services_agreement.docx from services_agreement.md.

    python examples/documents/make_documents.py [FOLDER]

The outputs go into FOLDER, by default the one that this script stands in. The same source gives
the same bytes with the same versions of the libraries.
"""

from __future__ import annotations

import argparse
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import docx
from docx.shared import Pt
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph, SimpleDocTemplate

HERE = Path(__file__).parent
SOURCE = HERE / "services_agreement.md"
DATED = datetime(2026, 1, 15)


class Block(NamedTuple):
    """A heading of some level, or a paragraph (level 0)."""

    level: int
    text: str


def read_blocks(source: str) -> list[Block]:
    """The headings and paragraphs of a Markdown text that has nothing else."""
    return list(_blocks(source))


def _blocks(source: str) -> Iterator[Block]:
    for raw in re.split(r"\n\s*\n", source.strip()):
        text = " ".join(raw.split())
        marks = re.match(r"(#+) ", text)
        if marks:
            yield Block(len(marks[1]), text[marks.end() :])
        else:
            yield Block(0, text)


def write_pdf(blocks: Sequence[Block], path: Path) -> None:
    """A4 pages with a page number at the foot."""
    body = ParagraphStyle("body", fontName="Times-Roman", fontSize=10.5, leading=14, spaceAfter=6)
    title = ParagraphStyle(
        "title", parent=body, fontName="Times-Bold", fontSize=17, leading=22, spaceAfter=14
    )
    heading = ParagraphStyle(
        "heading", parent=body, fontName="Times-Bold", fontSize=12, spaceBefore=10, keepWithNext=1
    )
    styles = {0: body, 1: title, 2: heading}
    template = SimpleDocTemplate(
        str(path),
        pagesize=A4,
        leftMargin=26 * mm,
        rightMargin=26 * mm,
        topMargin=24 * mm,
        bottomMargin=24 * mm,
        title=blocks[0].text,
        author="agentkit examples",
        invariant=1,
    )
    story = [Paragraph(escape(block.text), styles[block.level]) for block in blocks]
    template.build(story, onFirstPage=_page_number, onLaterPages=_page_number)


def _page_number(canvas: Canvas, template: SimpleDocTemplate) -> None:
    canvas.saveState()
    canvas.setFont("Times-Roman", 9)
    canvas.drawCentredString(A4[0] / 2, 14 * mm, str(template.page))
    canvas.restoreState()


def write_docx(blocks: Sequence[Block], path: Path) -> None:
    """Headings in Word's own heading styles, so that readers find the sections."""
    document = docx.Document()
    document.styles["Normal"].font.name = "Times New Roman"
    document.styles["Normal"].font.size = Pt(10.5)
    for block in blocks:
        if block.level:
            document.add_heading(block.text, level=block.level)
        else:
            document.add_paragraph(block.text)
    properties = document.core_properties
    properties.title, properties.author = blocks[0].text, "agentkit examples"
    properties.created = properties.modified = DATED
    buffer = io.BytesIO()
    document.save(buffer)
    path.write_bytes(_dated(buffer.getvalue()))


def _dated(package: bytes) -> bytes:
    """The same zip with a fixed time on each entry, so that it does not change from day to day."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo(name, date_time=DATED.timetuple()[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(entry, old.read(name))
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the services agreement as PDF and DOCX.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    blocks = read_blocks(SOURCE.read_text("utf-8"))
    write_pdf(blocks, folder / "services_agreement.pdf")
    write_docx(blocks, folder / "services_agreement.docx")


if __name__ == "__main__":
    main()
