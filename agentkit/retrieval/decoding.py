"""Bytes to text: BOMs, UTF-8, UTF-16 without a BOM, then a guess that is said aloud."""

from __future__ import annotations

import codecs
import re

from agentkit.errors import DocumentError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MULTIBYTE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_DRIVES = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Controls with which a terminal can be driven; those above 127 also come of a wrong encoding."""
_HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.I)
_XML_ENCODING = re.compile(rb"^\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{2,40})", re.I)
_SAMPLE = 65_536


def decode(data: bytes, *, where: str) -> tuple[str, tuple[str, ...]]:
    """The text, with line ends as `\\n`, and warnings if its encoding was guessed.

    Raises:
        DocumentError: binary data, or text that is damaged or in no encoding that can be told.
    """
    text, warnings = _decode(data, where=where)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    controls = _CONTROL.findall(text)
    if "\x00" in controls or len(controls) > max(8, len(text) // 200):
        raise _binary(where)
    return text, warnings


def without_controls(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with a space for each control character, and a warning where there are some."""
    cleaned, count = _DRIVES.subn(" ", text)
    return cleaned, (f"{count} control characters were read as spaces",) if count else ()


def html_charset(data: bytes) -> str | None:
    """The encoding that an HTML page declares for itself, if Python knows it."""
    head = data[:4096]
    match = _HTML_CHARSET.search(head) or _XML_ENCODING.match(head)
    if match is None:
        return None
    try:
        name = codecs.lookup(match[1].decode("ascii")).name
    except LookupError:
        return None
    # As browsers do: ISO-8859-1 means Windows-1252, and a page that can declare is not UTF-16.
    if name.startswith(("utf-16", "utf-32")):
        return "utf-8"
    return "cp1252" if name in ("iso8859-1", "ascii") else name


def decode_html(data: bytes, *, where: str) -> tuple[str, tuple[str, ...]]:
    """As `decode`, trying the encoding that the page declares when it is not UTF-8."""
    declared = html_charset(data)
    if declared and not data.startswith(tuple(bom for bom, _ in _BOMS)):
        try:
            return data.decode(declared).replace("\r\n", "\n").replace("\r", "\n"), ()
        except (UnicodeDecodeError, LookupError):
            pass
    return decode(data, where=where)


def looks_binary(data: bytes) -> bool:
    """Zero bytes, and not those of UTF-16 or UTF-32 text."""
    return (
        b"\x00" in data[:_SAMPLE]
        and not data.startswith(tuple(bom for bom, _ in _BOMS))
        and _wide_encoding(data) is None
    )


def _decode(data: bytes, *, where: str) -> tuple[str, tuple[str, ...]]:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _strict(data[len(bom) :], encoding, where), ()
    wide = _wide_encoding(data)
    if wide is not None:
        return _strict(data, wide, where), (f"read as {wide.upper()}, which it does not declare",)
    if looks_binary(data):
        raise _binary(where)
    try:
        return data.decode("utf-8"), ()
    except UnicodeDecodeError as error:
        return _guess(data, error, where)


def _strict(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"damaged {encoding.upper()} text at byte {error.start}",
            where=where,
            hint="save it again as UTF-8",
        ) from error


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 without a BOM: in Latin text every second byte is zero."""
    sample = data[:_SAMPLE]
    if len(sample) < 4 or b"\x00" not in sample:
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    half = len(sample) / 2
    if odd > 0.6 * half and even < 0.05 * half:
        return "utf-16-le"
    if even > 0.6 * half and odd < 0.05 * half:
        return "utf-16-be"
    return None


def _guess(data: bytes, error: UnicodeDecodeError, where: str) -> tuple[str, tuple[str, ...]]:
    valid = len(_MULTIBYTE.findall(data))
    invalid = data.decode("utf-8", errors="replace").count("�")
    if valid > 4 * invalid:
        raise DocumentError(
            f"damaged UTF-8 text at byte {error.start} ({invalid} bad stretches in all)",
            where=where,
            hint="save it again as UTF-8",
        ) from error
    from charset_normalizer import from_bytes

    matches = from_bytes(data)
    best = matches.best()
    if best is None:
        raise DocumentError(
            f"text in an encoding that cannot be told (not UTF-8 at byte {error.start})",
            where=where,
            hint="save it again as UTF-8",
        ) from error
    # Single-byte encodings differ in a few marks; among equals Windows' own is the likeliest.
    windows = any(
        "cp1252" in match.could_be_from_charset and match.chaos <= best.chaos for match in matches
    )
    encoding = "cp1252" if windows else best.encoding
    return _strict(data, encoding, where), (f"not UTF-8: read as {encoding}, a guess",)


def _binary(where: str) -> DocumentError:
    return DocumentError(
        "binary data, not a document",
        where=where,
        hint="give a PDF, DOCX, HTML, Markdown or text file",
    )
