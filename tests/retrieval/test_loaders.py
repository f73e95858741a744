"""Files of every format, and the bad ones."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile

import docx
import pytest
from PIL import Image
from pypdf import PdfReader, PdfWriter
from pypdf.annotations import FreeText, Text
from pypdf.generic import DictionaryObject, NameObject, NullObject, NumberObject
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen import canvas
from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate

from agentkit.errors import DocumentError
from agentkit.retrieval.loaders import document_from_text, load_document
from agentkit.retrieval.reader import read_document
from agentkit.retrieval.store import FileDocumentStore
from agentkit.settings import Settings

SENTENCE = (
    "The Receiving Party shall hold all Confidential Information in strict confidence and shall "
    "not disclose it to any third party without the prior written consent of the other party. "
)


def read(path):
    """What the child process does, without the process."""
    return read_document(path.read_bytes(), path.name, max_chars=10**8)


def write_pdf(path, *, pages=3, furniture=False):
    styles = getSampleStyleSheet()
    story = [Paragraph("MASTER AGREEMENT", styles["Title"])]
    for number in range(1, pages + 1):
        story.append(Paragraph(f"{number}. Obligation of Secrecy", styles["Heading2"]))
        story += [
            Paragraph(f"{number}.{item} " + SENTENCE * 3, styles["Normal"]) for item in range(1, 5)
        ]
        story.append(Paragraph("(a) the first item;", styles["Normal"]))
        story.append(Paragraph("(b) the second item.", styles["Normal"]))
        if number < pages:
            story.append(PageBreak())

    def decorate(page, template):
        if furniture:
            page.drawString(72, 820, "Acme Confidential Draft")
            page.drawString(280, 20, f"Page {template.page} of {pages}")

    SimpleDocTemplate(str(path)).build(story, onFirstPage=decorate, onLaterPages=decorate)
    return path


def image_pdf(path, *, text_page=False):
    page = canvas.Canvas(str(path))
    if text_page:
        page.drawString(72, 700, "This page holds the words of the agreement of the parties.")
        page.showPage()
    picture = path.with_suffix(".png")
    Image.new("RGB", (200, 200), "grey").save(picture)
    page.drawImage(str(picture), 72, 400)
    page.showPage()
    page.save()
    return path


def test_a_pdf_keeps_pages_joins_lines_and_finds_headings(tmp_path):
    document = read(write_pdf(tmp_path / "a.pdf"))
    assert document.media_type == "application/pdf"
    assert document.source == "a.pdf"
    assert document.digest == hashlib.sha256(document.text.encode()).hexdigest()
    assert f"2.1 {SENTENCE * 3}".strip() in document.text.split("\n\n")
    assert "(a) the first item;\n\n(b) the second item." in document.text
    assert len(document.pages) == 3
    assert document.text[document.pages[1] :].startswith("2. Obligation of Secrecy")
    second = next(s for s in document.sections if s.heading == ("2. Obligation of Secrecy",))
    assert second.page == 2
    assert document.warnings == ()


def test_running_headers_and_footers_are_left_out_and_named(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", pages=4, furniture=True)
    document = read(path)
    assert "Acme Confidential Draft" not in document.text
    assert "Page 2 of 4" not in document.text
    (warning,) = document.warnings
    assert "Acme Confidential Draft" in warning
    assert "Page # of #" in warning


def test_words_hyphenated_at_a_line_end_are_joined_and_compounds_keep_their_hyphen(tmp_path):
    page = canvas.Canvas(str(tmp_path / "a.pdf"))
    for at, line in enumerate(
        [
            "The parties agree that all confidential infor-",
            "mation stays with them and that every non-",
            "public record is returned to the party that",
            "disclosed it, without keeping a copy of it.",
        ]
    ):
        page.drawString(72, 700 - 14 * at, line)
    page.save()
    document = read(tmp_path / "a.pdf")
    assert "all confidential information stays" in document.text
    assert "every non-public record is returned" in document.text
    assert "\n" not in document.text


def test_a_sentence_over_a_page_end_is_one_paragraph_and_its_page_starts_inside(tmp_path):
    page = canvas.Canvas(str(tmp_path / "a.pdf"))
    page.drawString(72, 100, "The parties shall meet in the capital of the country and")
    page.showPage()
    page.drawString(72, 700, "shall there sign the agreement of the year.")
    page.save()
    document = read(tmp_path / "a.pdf")
    assert "of the country and shall there sign" in document.text
    assert document.text[document.pages[1] :].startswith("shall there sign")


def test_two_columns_are_read_one_after_the_other(tmp_path):
    page = canvas.Canvas(str(tmp_path / "a.pdf"))
    for row in range(12):
        page.drawString(60, 700 - 14 * row, f"left words of line {row} of the column")
        page.drawString(330, 700 - 14 * row, f"right words of line {row} of the column")
    page.save()
    text = read(tmp_path / "a.pdf").text
    assert text.index("left words of line 11") < text.index("right words of line 0")


def test_filled_form_fields_are_added_with_a_warning(tmp_path):
    page = canvas.Canvas(str(tmp_path / "a.pdf"))
    page.drawString(72, 700, "The name of the party is given in the form below.")
    page.acroForm.textfield(name="party", value="Gamma GmbH", x=72, y=600)
    page.save()
    document = read(tmp_path / "a.pdf")
    assert "party: Gamma GmbH" in document.text
    assert any("form field" in warning for warning in document.warnings)


def test_choices_ticks_and_notes_of_a_pdf_are_read_and_other_marks_counted(tmp_path):
    page = canvas.Canvas(str(tmp_path / "plain.pdf"))
    page.drawString(72, 700, "The law of the agreement is given in the form below.")
    form = page.acroForm
    form.choice(name="law", value="NO", options=[("Norway", "NO"), ("Peru", "PE")], x=72, y=600)
    form.checkbox(name="agreed", checked=True, x=72, y=500)
    form.checkbox(name="refused", checked=False, x=72, y=480)
    page.save()
    writer = PdfWriter(clone_from=PdfReader(tmp_path / "plain.pdf"))
    place = (72, 400, 200, 420)
    writer.add_annotation(0, FreeText(text="Clause 7 is struck out.", rect=place))
    writer.add_annotation(0, Text(text="why?", rect=place))
    unseen = FreeText(text="Nobody sees this.", rect=place)
    unseen[NameObject("/F")] = NumberObject(2)
    writer.add_annotation(0, unseen)
    writer.pages[0]["/Annots"].append(NullObject())  # one that was deleted
    writer.pages[0]["/Annots"].append(NumberObject(3))
    writer.write(tmp_path / "a.pdf")
    document = read(tmp_path / "a.pdf")
    assert document.text.split("\n\n")[1:] == [
        "Form fields\nlaw: Norway\nagreed: Yes",
        "Notes on the pages\nPage 1: Clause 7 is struck out.",
    ]
    assert document.warnings == (
        "2 filled form fields were added after the text",
        "1 notes on the pages were added after the text",
        "1 comments, highlights and strike-outs were left out",
    )


@pytest.mark.parametrize("what", [NullObject(), NumberObject(3), DictionaryObject()])
def test_annotations_that_are_none_are_passed_over(tmp_path, what):
    writer = PdfWriter(clone_from=PdfReader(write_pdf(tmp_path / "a.pdf")))
    writer.pages[0][NameObject("/Annots")] = what
    writer.write(tmp_path / "b.pdf")
    assert "MASTER AGREEMENT" in read(tmp_path / "b.pdf").text


def test_a_raised_figure_of_a_pdf_does_not_lengthen_the_number_before_it(tmp_path):
    page = canvas.Canvas(str(tmp_path / "a.pdf"))

    def line(y, *parts):
        x = 72
        for text, size, rise in parts:
            page.setFont("Helvetica", size)
            page.drawString(x, y + rise, text)
            x += page.stringWidth(text, "Helvetica", size)

    line(700, ("The cap is EUR 500", 12, 0), ("1", 7, 4), (" and 10", 12, 0), ("6", 7, 5))
    line(680, ("units of H", 12, 0), ("2", 7, -3), ("O by the 1", 12, 0), ("st", 7, 4))
    line(640, ("S", 12, 0), ("MALL", 9, 0), (" C", 12, 0), ("APS", 9, 0), (" stay words.", 12, 0))
    line(600, ("1", 7, 4), (" See the annex.", 10, 0))
    line(580, ("In FY", 12, 0), ("2024", 9, 0), (" it is EUR 10", 12, 0), (",000", 9, 0))
    line(560, ("or 10", 12, 0), ("-", 8, 5), ("6", 7, 5), (" of it.", 12, 0))
    page.setFont("Helvetica", 30)
    page.drawString(72, 500, "24")
    page.setFont("Helvetica", 10)
    page.drawString(107, 512, "hours")
    page.drawString(107, 500, "notice")
    tracked = page.beginText(72, 460)
    tracked.setCharSpace(0.8)
    for word in ("Master", "Services"):
        tracked.setFont("Helvetica", 12)
        tracked.textOut(word[0])
        tracked.setFont("Helvetica", 9)
        tracked.textOut(word[1:].upper() + " ")
    page.drawText(tracked)
    page.saveState()
    page.translate(590, 300)
    page.rotate(90)
    page.setFont("Helvetica", 8)
    page.drawString(0, 0, "Document ID 4711 signed electronically")
    page.restoreState()
    page.save()
    text = read(tmp_path / "a.pdf").text
    assert "The cap is EUR 500¹ and 10⁶ units of H₂O by the 1st" in text
    assert "SMALL CAPS stay words." in text
    assert "1 See the annex." in text
    assert "In FY2024 it is EUR 10,000\n" in f"{text}\n" or "EUR 10,000 or" in text
    assert "or 10⁻⁶ of it." in text
    assert "hours\n\n24 notice" in text
    assert "MASTER SERVICES" in text
    assert len(text.split("\n\n")) < 20  # turned text is no letter a line


def test_a_scanned_pdf_is_refused_by_name(tmp_path, settings):
    with pytest.raises(DocumentError, match=r"looks scanned.*run OCR first"):
        load_document(image_pdf(tmp_path / "a.pdf"), settings=settings)


def test_a_page_without_text_is_a_warning(tmp_path):
    document = read(image_pdf(tmp_path / "a.pdf", text_page=True))
    assert any("no text on page 2" in warning for warning in document.warnings)


def test_an_encrypted_pdf_is_refused(tmp_path, settings):
    writer = PdfWriter(clone_from=PdfReader(write_pdf(tmp_path / "a.pdf")))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(DocumentError, match="encrypted PDF"):
        load_document(tmp_path / "locked.pdf", settings=settings)


def test_a_pdf_that_any_viewer_opens_without_a_password_is_read(tmp_path):
    writer = PdfWriter(clone_from=PdfReader(write_pdf(tmp_path / "a.pdf")))
    writer.encrypt("", owner_password="owner", algorithm="AES-256")
    writer.write(tmp_path / "open.pdf")
    assert "MASTER AGREEMENT" in read(tmp_path / "open.pdf").text


def test_a_text_that_names_the_mark_of_a_pdf_is_text_and_junk_before_it_is_skipped(tmp_path):
    words = "A file that begins with %PDF- is a PDF."
    (tmp_path / "a.md").write_text(words, encoding="utf-8")
    assert read(tmp_path / "a.md").text == words
    data = write_pdf(tmp_path / "a.pdf").read_bytes()
    (tmp_path / "b.pdf").write_bytes(b"X-Sent-By: mail\r\n\r\n" + data)
    assert "MASTER AGREEMENT" in read(tmp_path / "b.pdf").text


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", "The \x1b[2Jfee\x9b is due.".encode()),
        ("a.html", b"<meta charset=utf-8><p>The &#27;[2Jfee\xc2\x9b is due.</p>"),
    ],
)
def test_control_characters_are_spaces_at_their_offsets(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    document = read(tmp_path / name)
    assert document.text == "The  [2Jfee  is due."
    assert "2 control characters were read as spaces" in document.warnings


def test_a_truncated_pdf_is_refused(tmp_path):
    data = write_pdf(tmp_path / "a.pdf").read_bytes()
    (tmp_path / "cut.pdf").write_bytes(data[: len(data) // 2])
    with pytest.raises(DocumentError, match="truncated PDF"):
        read(tmp_path / "cut.pdf")


def test_a_pdf_of_garbage_is_refused_without_a_traceback(tmp_path, settings):
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 20 + b"\n%%EOF\n")
    with pytest.raises(DocumentError) as caught:
        load_document(tmp_path / "bad.pdf", settings=settings)
    assert "Traceback" not in str(caught.value)
    assert str(tmp_path / "bad.pdf") in str(caught.value)


def test_plain_text_is_kept_as_written_with_numbered_headings(tmp_path, settings, agreement):
    (tmp_path / "a.txt").write_text(agreement)
    document = load_document(tmp_path / "a.txt", settings=settings)
    assert document.text == agreement
    assert [section.heading for section in document.sections] == [
        ("SERVICES AGREEMENT",),
        ("1. Confidentiality",),
        ("2. Governing Law",),
        ("3. Term",),
    ]
    assert document == document_from_text(agreement, source="a.txt")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_unicode_encodings_give_the_same_text(tmp_path, agreement, encoding):
    text = agreement + "\nThe fee is 5 € – “net”.\n"
    (tmp_path / "a.txt").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert read(tmp_path / "a.txt").text == text


def test_a_legacy_encoding_is_guessed_and_said(tmp_path, agreement):
    text = agreement + "\nThe “Café” pays the résumé of the agreement’s costs.\n"
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    document = read(tmp_path / "a.txt")
    assert document.text == text
    assert any("cp1252" in warning for warning in document.warnings)


def test_damaged_utf8_is_refused_with_its_place(tmp_path):
    data = ("Die Prüfung der Verträge über Geräte für Köln. " * 40).encode()
    (tmp_path / "a.txt").write_bytes(data[:1000] + b"\xff" + data[1000:])
    with pytest.raises(DocumentError, match="damaged UTF-8 text at byte 1000"):
        read(tmp_path / "a.txt")


def test_damaged_utf16_is_refused(tmp_path, agreement):
    (tmp_path / "a.txt").write_bytes(agreement.encode("utf-16")[:-1])
    with pytest.raises(DocumentError, match="damaged UTF-16"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("data", [b"", b" \n\t\r\n", b"\xef\xbb\xbf\n"])
def test_an_empty_file_is_refused(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DocumentError, match=r"empty|no text"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a.docx", "a.bin"])
def test_binary_data_is_refused_under_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x7fELF" + bytes(range(256)) * 40)
    with pytest.raises(DocumentError, match="binary data"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"{\\rtf1 hello}", "RTF"),
        (b"\x89PNG\r\n\x1a\nxxxx", "PNG image"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 600, "old Office document"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
            "encrypted Office",
        ),
        (b"\x1f\x8b\x08xxx", "gzip"),
    ],
)
def test_formats_that_cannot_be_read_are_refused_by_name(tmp_path, data, named):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DocumentError, match=named):
        read(tmp_path / "a.txt")


def test_other_zip_files_are_refused_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    with pytest.raises(DocumentError, match="Excel"):
        read(tmp_path / "a.docx")


def test_a_file_is_read_by_its_content_when_its_extension_is_wrong(tmp_path, agreement):
    write_pdf(tmp_path / "a.pdf").rename(tmp_path / "a.docx")
    document = read(tmp_path / "a.docx")
    assert document.media_type == "application/pdf"
    assert any("named .docx, but its content is PDF" in w for w in document.warnings)

    (tmp_path / "b.pdf").write_text(agreement)
    document = read(tmp_path / "b.pdf")
    assert document.media_type == "text/plain"
    assert any("named .pdf, but its content is plain text" in w for w in document.warnings)

    (tmp_path / "c.txt").write_text("<!DOCTYPE html><html><p>The words of the page.</p></html>")
    assert read(tmp_path / "c.txt").text == "The words of the page."


def test_a_file_over_the_size_limit_is_refused_before_it_is_read(tmp_path):
    settings = Settings(home=tmp_path, document_max_bytes=1000)
    (tmp_path / "a.txt").write_text("word " * 300)
    with pytest.raises(DocumentError, match=r"too large: 1,500 bytes.*1,000"):
        load_document(tmp_path / "a.txt", settings=settings)


def test_two_hundred_megabytes_of_text_are_refused_at_once(tmp_path, settings):
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(DocumentError, match="too large: 200,000,000 bytes"):
        load_document(tmp_path / "a.txt", settings=settings)


def test_a_small_file_that_unpacks_to_too_much_text_is_refused(tmp_path):
    package = docx.Document()
    for _ in range(200):
        package.add_paragraph("the same words again and again " * 30)
    package.save(tmp_path / "a.docx")
    size = (tmp_path / "a.docx").stat().st_size
    with pytest.raises(DocumentError, match="characters of text"):
        load_document(
            tmp_path / "a.docx", settings=Settings(home=tmp_path, document_max_bytes=size)
        )


@pytest.mark.parametrize("make", ["missing", "folder", "nul"])
def test_a_path_that_is_no_file_is_refused(tmp_path, settings, make):
    path = {"missing": tmp_path / "x.pdf", "folder": tmp_path, "nul": tmp_path / "a\0b"}[make]
    with pytest.raises(DocumentError, match=r"cannot be read|not a file"):
        load_document(path, settings=settings)


def test_reading_that_takes_too_long_is_stopped(tmp_path):
    (tmp_path / "a.txt").write_text("The words of the agreement.")
    settings = Settings(home=tmp_path, document_seconds=0.01)
    with pytest.raises(DocumentError, match=r"longer than 0.01 seconds"):
        load_document(tmp_path / "a.txt", settings=settings)


def test_reading_that_takes_too_much_memory_is_stopped(tmp_path):
    (tmp_path / "a.txt").write_text("The words of the agreement.\n\n" * 200_000)
    settings = Settings(home=tmp_path, document_memory_bytes=250_000_000)
    with pytest.raises(DocumentError, match=r"more than 250,000,000 bytes of memory"):
        load_document(tmp_path / "a.txt", settings=settings)


@pytest.mark.parametrize("memory", [1, 50_000_000])
def test_a_child_that_cannot_even_start_is_an_error_of_the_document(tmp_path, memory):
    (tmp_path / "a.html").write_text("<html><p>The words of the page.</p></html>")
    settings = Settings(home=tmp_path, document_memory_bytes=memory)
    with pytest.raises(DocumentError) as caught:
        load_document(tmp_path / "a.html", settings=settings)
    assert "a.html" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_child_reads_without_the_heavy_libraries():
    heavy = "{'torch', 'transformers', 'lancedb', 'sentence_transformers', 'langgraph'}"
    code = f"import sys, agentkit.retrieval.reader; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_a_module_in_the_working_directory_is_never_imported(tmp_path, settings, monkeypatch):
    (tmp_path / "docx.py").write_text("open('ran', 'w')")
    (tmp_path / "lxml.py").write_text("open('ran', 'w')")
    (tmp_path / "a.html").write_text("<html><p>The words of the page.</p></html>")
    monkeypatch.chdir(tmp_path)
    load_document(tmp_path / "a.html", settings=settings)
    assert not (tmp_path / "ran").exists()


def test_a_text_that_is_not_english_is_read_with_a_warning(tmp_path):
    german = (
        "Der Auftragnehmer verpflichtet sich, alle vertraulichen Informationen geheim zu halten "
        "und sie ohne vorherige schriftliche Zustimmung keinem Dritten zugänglich zu machen. "
    )
    (tmp_path / "a.txt").write_text(german * 5)
    (warning,) = read(tmp_path / "a.txt").warnings
    assert warning.startswith("not English")
    mixed = document_from_text(SENTENCE * 20 + german * 20)
    assert mixed.warnings[0].startswith("in part not English")
    assert document_from_text(SENTENCE * 5).warnings == ()
    assert document_from_text("本協議" * 50).warnings[0].startswith("not English")


def test_lone_surrogates_are_refused():
    with pytest.raises(DocumentError, match="unpaired surrogate at character 4"):
        document_from_text("text\ud800")


def test_a_name_in_another_encoding_is_written_as_well_as_it_can_be(tmp_path, settings):
    path = tmp_path / os.fsdecode(b"r\xe9sum\xe9.txt")
    path.write_text("The term is two years.\n", encoding="utf-8")
    document = load_document(path, settings=settings)
    assert document.source == "r\ufffdsum\ufffd.txt"
    store = FileDocumentStore(tmp_path / "store")
    assert store.get(store.put(document)) == document


def test_a_truncated_docx_is_refused(tmp_path, settings):
    package = docx.Document()
    package.add_paragraph(SENTENCE)
    buffer = io.BytesIO()
    package.save(buffer)
    data = buffer.getvalue()
    (tmp_path / "a.docx").write_bytes(data[: len(data) // 2])
    with pytest.raises(DocumentError, match="truncated or damaged"):
        load_document(tmp_path / "a.docx", settings=settings)
