"""What Word draws from a symbol font, and what its formulas say, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentkit.retrieval.docx_numbering import W, number_of
from agentkit.retrieval.raised import is_plain, lowered, raised

M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_GONE = frozenset((f"{W}del", f"{W}moveFrom"))
_OFF = frozenset(("0", "false", "off", "none"))
# Letters of the Symbol font stand where those of Latin alphabets do.
_GREEK = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖαβχδεφγηιϕκλμνοπθρστυϖωξψζ",
        strict=True,
    )
)
# What is no letter is as elsewhere, but for these, which are left untold.
_OTHER_SIGNS = frozenset((0x22, 0x24, 0x27, 0x2A, 0x2D, 0x40, 0x5C, 0x5E, 0x60, 0x7E))
_SYMBOL = {ord(latin): greek for latin, greek in _GREEK.items()} | {
    0xA0: "€", 0xA3: "≤", 0xA5: "∞", 0xAC: "←", 0xAE: "→", 0xB0: "°", 0xB1: "±", 0xB2: "″",
    0xB3: "≥", 0xB4: "×", 0xB7: "•", 0xB8: "÷", 0xB9: "≠", 0xBB: "≈", 0xBC: "…", 0xD2: "®",
    0xD3: "©", 0xD4: "™", 0xD6: "√", 0xE2: "®", 0xE3: "©", 0xE4: "™", 0xE5: "∑",
}  # fmt: skip
_WINGDINGS = {
    0x6C: "•", 0x6E: "▪", 0x6F: "☐", 0x71: "☐", 0x72: "☐", 0x78: "☒", 0x9F: "•", 0xA7: "▪",
    0xA8: "☐", 0xD8: "➢", 0xE0: "→", 0xF0: "⇨", 0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑",
}  # fmt: skip
_WINGDINGS_2 = {
    0x4F: "✗", 0x50: "✓", 0x51: "☒", 0x52: "☑", 0x53: "☒", 0x54: "☒", 0x97: "•", 0xA3: "☐",
}  # fmt: skip
_FONTS = {"symbol": _SYMBOL, "wingdings": _WINGDINGS, "wingdings 2": _WINGDINGS_2}


def symbol(element: Any) -> str | None:
    """The character of a `w:sym`; None for one that is not known here."""
    try:
        code = int(element.get(f"{W}char", ""), 16)
    except ValueError:
        return None
    known = _FONTS.get(element.get(f"{W}font", "").lower())
    if known is None:
        return None
    code &= 0xFF  # fonts of symbols stand in the private area, from F000
    as_elsewhere = known is _SYMBOL and 0x20 <= code < 0x7F and code not in _OTHER_SIGNS
    plain = chr(code) if as_elsewhere else None
    return known.get(code, plain)


def is_on(element: Any, tag: str) -> bool | None:
    """A toggle of properties: None where it is not set."""
    child = element.find(f"{W}{tag}") if element is not None else None
    return None if child is None else child.get(f"{W}val", "1") not in _OFF


def field_value(element: Any) -> str:
    """What a check box (`w:checkBox`) or a drop-down (`w:ddList`) of an old form shows."""
    if element.tag == f"{W}checkBox":
        checked = is_on(element, "checked")
        return "☒" if (is_on(element, "default") if checked is None else checked) else "☐"
    entries = element.findall(f"{W}listEntry")
    at = number_of(element, "result", number_of(element, "default", 0))
    return str(entries[at].get(f"{W}val", "")) if 0 <= at < len(entries) else ""


def formula(element: Any) -> Iterator[str]:
    """An `m:oMath` as text: fractions with a stroke, powers raised, brackets as they are shown."""
    for child in element:
        kind = child.tag.removeprefix(M)
        if child.tag in _GONE or is_on(child.find(f"{W}rPr"), "vanish"):
            continue
        if child.tag == f"{M}t":
            yield child.text or ""
        elif kind == "f":
            over, under = (_part(child, name) for name in ("num", "den"))
            plain = over.isdecimal() and under.isdecimal()
            yield f"{raised(over)}⁄{lowered(under)}" if plain else f"({over})/({under})"
        elif kind in ("sup", "sub"):
            shift, mark = (raised, "^") if kind == "sup" else (lowered, "_")
            inner = "".join(formula(child))
            if inner:
                yield shift(inner) if is_plain(inner) else f"{mark}({inner})"
        elif kind == "rad":
            yield f"{_part(child, 'deg')}√({_part(child, 'e')})"
        elif kind == "d":
            opens, closes = (_character(child, "dPr", name) for name in ("begChr", "endChr"))
            inner = "|".join("".join(formula(one)) for one in child.findall(f"{M}e"))
            yield f"{'(' if opens is None else opens}{inner}{')' if closes is None else closes}"
        elif kind == "nary":
            sign = _character(child, "naryPr", "chr")
            yield "∫" if sign is None else sign
            yield from formula(child)
        elif not kind.endswith("Pr"):
            yield from formula(child)


def _part(element: Any, name: str) -> str:
    part = element.find(f"{M}{name}")
    return "" if part is None else "".join(formula(part))


def _character(element: Any, properties: str, name: str) -> str | None:
    found = element.find(f"{M}{properties}/{M}{name}")
    return None if found is None else str(found.get(f"{M}val", ""))
