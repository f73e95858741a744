"""The numbers that Word shows before paragraphs but does not store in their text."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_LEVELS = 9
_ROMAN = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"),
    (50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip


def value_of(element: Any, tag: str) -> str | None:
    """`w:val` of a child element, if it is there."""
    child = element.find(f"{W}{tag}") if element is not None else None
    return None if child is None else child.get(f"{W}val")


def number_of(element: Any, tag: str, default: int) -> int:
    """As `value_of`, as a number; `default` where it is missing or malformed."""
    value = value_of(element, tag)
    return int(value) if value is not None and re.fullmatch(r"-?\d{1,9}", value) else default


def spell(number: int, form: str) -> str:
    """A number in Word's number format `form`; unknown formats are decimal."""
    if form in ("lowerLetter", "upperLetter") and number > 0:
        text = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1)
    elif form in ("lowerRoman", "upperRoman") and 0 < number < 4000:
        text = ""
        for value, letters in _ROMAN:
            count, number = divmod(number, value)
            text += letters * count
    elif form == "decimalZero":
        text = f"{number:02d}"
    else:
        text = str(number)
    return text.upper() if form.startswith("upper") else text


class Numbering:
    """Stateful: the counters of a document's lists, advanced paragraph by paragraph."""

    def __init__(self, root: Any | None) -> None:
        """`root` is the element of `numbering.xml`, None where the document has none."""
        self._abstract: dict[str, dict[int, Any]] = {}
        self._lists: dict[str, tuple[str, dict[int, int]]] = {}
        self._counters: dict[str, list[int]] = defaultdict(lambda: [0] * _LEVELS)
        self._restarted: set[tuple[str, int]] = set()
        if root is None:
            return
        for abstract in root.findall(f"{W}abstractNum"):
            levels = {int(lvl.get(f"{W}ilvl", "0")): lvl for lvl in abstract.findall(f"{W}lvl")}
            self._abstract[abstract.get(f"{W}abstractNumId", "")] = levels
        for num in root.findall(f"{W}num"):
            starts = {
                int(override.get(f"{W}ilvl", "0")): number_of(override, "startOverride", 1)
                for override in num.findall(f"{W}lvlOverride")
                if override.find(f"{W}startOverride") is not None
            }
            self._lists[num.get(f"{W}numId", "")] = (value_of(num, "abstractNumId") or "", starts)

    def label(self, list_id: str, level: int) -> str:
        """The label of the next paragraph of that list and level; empty where it shows none."""
        if list_id not in self._lists or not 0 <= level < _LEVELS:
            return ""
        abstract, starts = self._lists[list_id]
        levels = self._abstract.get(abstract, {})
        definition = levels.get(level)
        if definition is None:
            return ""
        counters = self._counters[abstract]
        if level in starts and (list_id, level) not in self._restarted:
            self._restarted.add((list_id, level))
            counters[level] = starts[level]
        elif counters[level] == 0:
            counters[level] = number_of(definition, "start", 1)
        else:
            counters[level] += 1
        for above in range(level):
            counters[above] = counters[above] or number_of(levels.get(above), "start", 1)
        counters[level + 1 :] = [0] * (_LEVELS - level - 1)
        form = value_of(definition, "numFmt") or "decimal"
        if form == "bullet":
            return "-"
        if form == "none":
            return ""
        legal = definition.find(f"{W}isLgl") is not None

        def number(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            form = value_of(levels.get(at), "numFmt") or "decimal"
            return spell(counters[at], "decimal" if legal and at != level else form)

        return re.sub(r"%([1-9])", number, value_of(definition, "lvlText") or "").strip()
