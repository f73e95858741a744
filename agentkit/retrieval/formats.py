"""Which format a file is in: by its content first, its name second."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import PurePath

from agentkit.errors import DocumentError
from agentkit.retrieval.decoding import looks_binary

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML = "text/html"
MARKDOWN = "text/markdown"
TEXT = "text/plain"

LABELS = {PDF: "PDF", DOCX: "DOCX", HTML: "HTML", MARKDOWN: "Markdown", TEXT: "plain text"}

_EXTENSIONS = {
    ".pdf": PDF,
    ".docx": DOCX,
    ".docm": DOCX,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".txt": TEXT,
    ".text": TEXT,
}
_SUPPORTED = "give a PDF, DOCX, HTML, Markdown or text file"
_REFUSED = (
    (b"{\\rtf", "an RTF document", "save it as DOCX or PDF"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image, not text", "run OCR first and give its PDF or text"),
    (b"\xff\xd8\xff", "a JPEG image, not text", "run OCR first and give its PDF or text"),
    (b"GIF8", "a GIF image, not text", "run OCR first and give its PDF or text"),
    (b"II*\x00", "a TIFF image, not text", "run OCR first and give its PDF or text"),
    (b"MM\x00*", "a TIFF image, not text", "run OCR first and give its PDF or text"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and give the document"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the document"),
    (b"%!PS", "a PostScript file", "save it as PDF"),
)
_PDF = re.compile(rb"[^A-Za-z]*%PDF-")
"""Its mark may come after what is no text."""
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_STREAM = "EncryptedPackage".encode("utf-16-le")


def detect_format(data: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    """The media type, and a warning when the file's extension says another one.

    Raises:
        DocumentError: the format is one that cannot be read; the message names it.
    """
    found = _by_content(data, name)
    suffix = PurePath(name).suffix.lower()
    named = _EXTENSIONS.get(suffix)
    if found is None:
        found = named if named in (HTML, MARKDOWN, TEXT) else TEXT
    if named is None or named == found:
        return found, ()
    return found, (f"named {suffix}, but its content is {LABELS[found]}: read as that",)


def _by_content(data: bytes, name: str) -> str | None:
    if _PDF.match(data[:1024]) or (b"%PDF-" in data[:1024] and b"%%EOF" in data):
        return PDF
    if data.startswith(b"PK\x03\x04"):
        return _zip_format(data, name)
    if data.startswith(_OLE):
        if _ENCRYPTED_STREAM in data:
            raise DocumentError(
                "an encrypted Office document", where=name, hint="save it without a password"
            )
        raise DocumentError(
            "an old Office document (.doc, .xls or .ppt)", where=name, hint="save it as DOCX"
        )
    for magic, what, hint in _REFUSED:
        if data.startswith(magic):
            raise DocumentError(what, where=name, hint=hint)
    if looks_binary(data):
        raise DocumentError("binary data, not a document", where=name, hint=_SUPPORTED)
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").replace(b"\x00", b"").lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")) or (
        head.startswith(b"<?xml") and b"<html" in head
    ):
        return HTML
    return None


def _zip_format(data: bytes, name: str) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            encrypted = any(info.flag_bits & 1 for info in archive.infolist())
            kind = archive.read("mimetype")[:80] if "mimetype" in names and not encrypted else b""
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DocumentError(
            "a DOCX file or archive that is truncated or damaged",
            where=name,
            hint="copy or download it again",
        ) from error
    if encrypted:
        raise DocumentError("an encrypted archive", where=name, hint="remove its password")
    if "word/document.xml" in names or (
        "[Content_Types].xml" in names and any(n.startswith("word/") for n in names)
    ):
        return DOCX
    if any(entry.startswith("xl/") for entry in names):
        raise DocumentError("an Excel workbook", where=name, hint=_SUPPORTED)
    if any(entry.startswith("ppt/") for entry in names):
        raise DocumentError("a PowerPoint presentation", where=name, hint=_SUPPORTED)
    if b"opendocument" in kind:
        raise DocumentError("an OpenDocument file", where=name, hint="save it as DOCX or PDF")
    if b"epub" in kind:
        raise DocumentError("an EPUB book", where=name, hint=_SUPPORTED)
    raise DocumentError("a zip archive", where=name, hint="unpack it and give the document")
