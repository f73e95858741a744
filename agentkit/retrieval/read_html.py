"""HTML: what a browser would show as text, block by block."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from agentkit.errors import DocumentError
from agentkit.retrieval.decoding import decode_html
from agentkit.retrieval.docx_numbering import spell
from agentkit.retrieval.draft import Draft, DraftBuilder
from agentkit.retrieval.formats import HTML
from agentkit.retrieval.headings import find_headings
from agentkit.retrieval.raised import lowered, raised

# fmt: off
_DROPPED = frozenset((
    "script", "style", "template", "head", "noscript", "svg", "math", "iframe", "object",
    "canvas", "audio", "video", "button", "datalist",
))
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em",
    "font", "i", "img", "input", "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span",
    "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr", "br", "td", "th", "select",
    "option", "optgroup", "textarea",
))
# fmt: on
_SHIFTS = {"sup": raised, "sub": lowered}
_TYPED = frozenset(("text", "number", "date", "email", "tel", "url", "search", "time", "month"))
_TICKED = frozenset(("checkbox", "radio"))
_FORMS = {"a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
_STYLES = {
    **dict.fromkeys(("lower-alpha", "lower-latin"), "lowerLetter"),
    **dict.fromkeys(("upper-alpha", "upper-latin"), "upperLetter"),
    "lower-roman": "lowerRoman",
    "upper-roman": "upperRoman",
    "decimal-leading-zero": "decimalZero",
    "decimal": "decimal",
}
_LIST_STYLE = re.compile(r"list-style(?:-type)?\s*:\s*([a-z-]+)", re.IGNORECASE)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_WHITE = re.compile(r"[ \t\n\r\f]+")


def read_html(data: bytes, name: str) -> Draft:
    """Paragraphs, list items with their marks, and table rows with ` | ` between cells.

    Links keep their text only. Hidden text is left out with a warning: a reader of the page would
    not see it.

    Raises:
        DocumentError: the page is empty, or nested too deeply to be read whole.
    """
    from lxml import etree, html

    text, warnings = decode_html(data, where=name)
    text = _XML_DECLARATION.sub("", text).replace("\x00", "")
    parser = html.HTMLParser(remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        root = html.document_fromstring(text, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as error:
        raise DocumentError(
            "HTML without content", where=name, hint="give a page that has text in it"
        ) from error
    # The parser goes no deeper than 2,048 elements and would leave out what is below.
    if any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        raise DocumentError(
            "HTML that is nested too deeply to be read whole", where=name, hint="give its text"
        )
    _show_choices(root)
    walker = _Walker()
    walker.walk(root)
    draft = walker.builder.build()
    if walker.hidden:
        warnings += (f"{walker.hidden} hidden passages of the page were left out",)
    if walker.formulas:
        warnings += (f"{walker.formulas} formulas of the page were left out",)
    headings = draft.headings or find_headings(draft.text)
    return Draft(draft.text, HTML, headings, (), warnings)


class _Walker:
    """Stateful: one pass over a page's elements, collecting its blocks."""

    def __init__(self) -> None:
        self.builder = DraftBuilder(HTML)
        self.hidden = 0
        self.formulas = 0
        self._inline: list[str] = []
        self._level: int | None = None
        self._tight = False
        self._pre = 0
        self._lists: list[_List] = []
        self._mark = ""
        self._shifts: list[tuple[Callable[[str], str], int]] = []

    def walk(self, root: Any) -> None:
        from lxml import etree

        events = etree.iterwalk(root, events=("start", "end"))
        for event, element in events:
            tag = element.tag
            if not isinstance(tag, str):
                if event == "end":
                    self._text(element.tail)
                continue
            if event == "start":
                hidden = _is_hidden(element)
                if tag in _DROPPED or hidden:
                    self.hidden += bool(hidden and "".join(element.itertext()).strip())
                    self.formulas += tag == "math" and not hidden
                    events.skip_subtree()
                else:
                    self._start(tag, element)
            else:
                if tag not in _DROPPED and not _is_hidden(element):
                    self._end(tag)
                self._text(element.tail)
        self._flush()

    def _start(self, tag: str, element: Any) -> None:
        if tag == "br":
            self._inline.append("\n")
        elif tag not in _INLINE:
            self._flush()
        if tag in ("ol", "ul"):
            self._lists.append(_List(element))
        elif tag == "li":
            if self._is_mark("".join(self._inline)):
                self._inline.clear()
            self._mark = self._lists[-1].mark(element) if self._lists else "-"
            self._inline.append(f"{self._mark} " if self._mark else "")
            self._tight = True
        elif tag == "tr":
            self._tight, self._mark = True, ""
        elif tag in ("td", "th") and element.getprevious() is not None:
            self._inline.append(" | ")
        elif tag == "pre":
            self._pre += 1
        elif tag == "input":
            self._text(f" {_entered(element)} ")
        elif tag == "select":
            self._inline.append(" ")
        elif tag in _SHIFTS:
            self._shifts.append((_SHIFTS[tag], len(self._inline)))
        self._level = _HEADINGS.get(tag, self._level)
        self._text(element.text)

    def _end(self, tag: str) -> None:
        if tag not in _INLINE:
            self._flush()
        if tag in ("ol", "ul") and self._lists:
            self._lists.pop()
        elif tag == "pre":
            self._pre -= 1
        elif tag in _SHIFTS and self._shifts:
            shift, start = self._shifts.pop()
            self._inline[start:] = [shift("".join(self._inline[start:]))]
        elif tag == "select":
            self._inline.append(" ")
        if tag in _HEADINGS:
            self._level = None

    def _text(self, text: str | None) -> None:
        if text:
            self._inline.append(text if self._pre else _WHITE.sub(" ", text))

    def _is_mark(self, text: str) -> bool:
        """Whether it is the mark of an item alone, which waits for the item's words."""
        return bool(self._tight and self._mark) and text.strip() == self._mark

    def _flush(self) -> None:
        text = "".join(self._inline)
        if not self._pre:
            text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text))
        text = re.sub(r"^\s*\| ", "", text)
        # A mark alone waits for the block inside its item.
        if self._is_mark(text):
            return
        self._inline.clear()
        if text.strip():
            self.builder.paragraph(text, level=self._level, tight=self._tight)
            self._tight = False


class _List:
    """Stateful: the marks of a list's items, which its source does not spell out."""

    def __init__(self, element: Any) -> None:
        self._plain = element.tag == "ul"
        self._step = 1 if element.get("reversed") is None else -1
        items = sum(child.tag == "li" for child in element)
        self._next = _whole(element.get("start"), 1 if self._step == 1 else items)
        self._form = _FORMS.get(element.get("type", ""), "decimal")
        style = _LIST_STYLE.search(element.get("style") or "")
        if style:
            name = style[1].lower()
            self._form = _STYLES.get(name, "" if name == "none" else self._form)

    def mark(self, item: Any) -> str:
        """The mark of the next item; empty where the list shows none."""
        if self._plain:
            return "-" if self._form else ""
        number = _whole(item.get("value"), self._next)
        self._next = number + self._step
        if self._form.endswith("Letter"):
            return f"{_letters(number, upper=self._form == 'upperLetter')}."
        return f"{spell(number, self._form)}." if self._form else ""


def _letters(number: int, *, upper: bool) -> str:
    """`z` is followed by `aa` and `ab`; what no letters count is a number."""
    if number < 1:
        return str(number)
    letters = ""
    while number:
        number, at = divmod(number - 1, 26)
        letters = chr(ord("A" if upper else "a") + at) + letters
    return letters


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,6}", text.strip()) else otherwise


def _entered(element: Any) -> str:
    """What a field of a form shows."""
    kind = (element.get("type") or "text").lower()
    if kind in _TICKED:
        return "☐" if element.get("checked") is None else "☒"
    return str(element.get("value") or "") if kind in _TYPED else ""


def _show_choices(root: Any) -> None:
    """Leave of each list to choose from what it shows."""
    for listed in list(root.iter("select")):
        options = list(listed.iter("option"))
        chosen = [one for one in options if one.get("selected") is not None]
        several = listed.get("multiple") is not None
        shown = set(chosen if chosen or several else options[:1])
        for one in options:
            if one not in shown:
                one.drop_tree()


def _is_hidden(element: Any) -> bool:
    return element.get("hidden") is not None or bool(
        _HIDDEN_STYLE.search(element.get("style") or "")
    )
