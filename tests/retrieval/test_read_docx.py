"""DOCX files as Word shows them."""

import zipfile

import docx
import pytest
from docx.opc.constants import RELATIONSHIP_TYPE as RT
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import OxmlElement, parse_xml
from docx.oxml.ns import nsdecls, qn

from agentkit.retrieval.docx_numbering import spell
from agentkit.retrieval.reader import read_document

NUMBERING = f"""
<w:abstractNum {nsdecls("w")} w:abstractNumId="90">
  <w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>
  <w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="decimal"/>
    <w:lvlText w:val="%1.%2"/></w:lvl>
  <w:lvl w:ilvl="2"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/>
    <w:lvlText w:val="(%3)"/></w:lvl>
</w:abstractNum>"""


def read(package, tmp_path):
    path = tmp_path / "a.docx"
    package.save(path)
    return read_document(path.read_bytes(), path.name, max_chars=10**7)


def number(paragraph, level):
    properties = paragraph._p.get_or_add_pPr()
    properties.append(
        parse_xml(
            f'<w:numPr {nsdecls("w")}><w:ilvl w:val="{level}"/><w:numId w:val="91"/></w:numPr>'
        )
    )


def test_headings_paragraphs_and_tables_come_in_order(tmp_path):
    package = docx.Document()
    package.add_heading("Services Agreement", 0)
    package.add_heading("Fees", 1)
    package.add_paragraph("The fees are these.")
    table = package.add_table(rows=2, cols=2)
    for row, values in enumerate((("Service", "Fee"), ("Hosting", "100"))):
        for column, value in enumerate(values):
            table.cell(row, column).text = value
    package.add_heading("Late payment", 2)
    package.add_paragraph("Interest is due.")
    document = read(package, tmp_path)
    assert document.text == (
        "Services Agreement\n\nFees\n\nThe fees are these.\nService | Fee\nHosting | 100\n\n"
        "Late payment\n\nInterest is due."
    )
    assert [section.heading for section in document.sections] == [
        ("Services Agreement",),
        ("Fees",),
        ("Fees", "Late payment"),
    ]


def test_automatic_numbers_are_part_of_the_text(tmp_path):
    package = docx.Document()
    root = package.part.numbering_part.element
    root.insert(0, parse_xml(NUMBERING))
    root.append(
        parse_xml(f'<w:num {nsdecls("w")} w:numId="91"><w:abstractNumId w:val="90"/></w:num>')
    )
    for text, level in [
        ("Term", 0),
        ("It is two years.", 1),
        ("It ends then.", 1),
        ("unless renewed;", 2),
        ("or extended.", 2),
        ("Law", 0),
        ("New York law governs.", 1),
    ]:
        number(package.add_paragraph(text), level)
    assert read(package, tmp_path).text.split("\n") == [
        "1. Term",
        "1.1 It is two years.",
        "1.2 It ends then.",
        "(a) unless renewed;",
        "(b) or extended.",
        "2. Law",
        "2.1 New York law governs.",
    ]


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(4, "upperRoman", "IV"), (28, "lowerLetter", "bb"), (3, "decimalZero", "03"), (7, "odd", "7")],
)
def test_numbers_are_spelled_as_word_does(value, form, text):
    assert spell(value, form) == text


def test_tracked_changes_are_accepted_with_a_warning(tmp_path):
    package = docx.Document()
    paragraph = package.add_paragraph("The term is ")
    for tag, text_tag, text in (("w:del", "w:delText", "one"), ("w:ins", "w:t", "two")):
        change, run, words = OxmlElement(tag), OxmlElement("w:r"), OxmlElement(text_tag)
        change.set(qn("w:id"), "1")
        words.text = text
        run.append(words)
        change.append(run)
        paragraph._p.append(change)
    paragraph.add_run(" years.")
    document = read(package, tmp_path)
    assert document.text == "The term is two years."
    assert document.warnings == ("2 tracked changes were read as accepted",)


def test_page_headers_are_left_out_with_a_warning(tmp_path):
    package = docx.Document()
    package.add_paragraph("The body.")
    package.sections[0].header.paragraphs[0].text = "Draft of 3 May"
    document = read(package, tmp_path)
    assert document.text == "The body."
    assert "Draft of 3 May" in document.warnings[0]


def test_content_controls_and_links_keep_their_words(tmp_path):
    package = docx.Document()
    paragraph = package.add_paragraph("Signed by ")
    paragraph._p.append(
        parse_xml(
            f"<w:sdt {nsdecls('w')}><w:sdtContent><w:r><w:t>Acme Ltd.</w:t></w:r>"
            "</w:sdtContent></w:sdt>"
        )
    )
    paragraph._p.append(
        parse_xml(f"<w:hyperlink {nsdecls('w')}><w:r><w:t> (see site)</w:t></w:r></w:hyperlink>")
    )
    assert read(package, tmp_path).text == "Signed by Acme Ltd. (see site)"


def test_cells_with_several_paragraphs_are_read_down(tmp_path):
    package = docx.Document()
    table = package.add_table(rows=1, cols=2)
    table.cell(0, 0).text = "Left first."
    table.cell(0, 0).add_paragraph("Left second.")
    table.cell(0, 1).text = "Right."
    assert read(package, tmp_path).text == "Left first.\n\nLeft second.\n\nRight."


def test_footnotes_follow_the_text_with_their_marks(tmp_path):
    package = docx.Document()
    paragraph = package.add_paragraph("The fee is due")
    paragraph._p.append(parse_xml(f'<w:r {nsdecls("w")}><w:footnoteReference w:id="2"/></w:r>'))
    paragraph.add_run(" at once.")
    notes = (
        f'<w:footnotes {nsdecls("w")}><w:footnote w:id="2"><w:p><w:r><w:footnoteRef/></w:r>'
        "<w:r><w:t>Without tax.</w:t></w:r></w:p></w:footnote></w:footnotes>"
    )
    part = Part(
        PackURI("/word/footnotes.xml"),
        "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml",
        notes.encode(),
        package.part.package,
    )
    package.part.relate_to(part, RT.FOOTNOTES)
    assert read(package, tmp_path).text == (
        "The fee is due[1] at once.\n\nNotes\n\n[1] Without tax."
    )


def test_entities_of_a_hostile_file_are_never_read(tmp_path):
    (tmp_path / "secret.txt").write_text("the secret")
    package = docx.Document()
    package.add_paragraph("MARK")
    package.save(tmp_path / "plain.docx")
    with (
        zipfile.ZipFile(tmp_path / "plain.docx") as source,
        zipfile.ZipFile(tmp_path / "a.docx", "w") as target,
    ):
        for name in source.namelist():
            data = source.read(name)
            if name == "word/document.xml":
                entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{tmp_path}/secret.txt">]>'
                head, body = data.split(b"?>", 1)
                data = head + b"?>" + entity.encode() + body.replace(b"MARK", b"words &e; end")
            target.writestr(name, data)
    data = (tmp_path / "a.docx").read_bytes()
    assert "the secret" not in read_document(data, "a.docx", max_chars=10**7).text
