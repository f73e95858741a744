"""HTML: what a browser would show as text, block by block."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from agentkit.errors import DocumentError
from agentkit.retrieval.decoding import decode_html
from agentkit.retrieval.draft import Draft, DraftBuilder
from agentkit.retrieval.formats import HTML
from agentkit.retrieval.headings import find_headings

# fmt: off
_DROPPED = frozenset((
    "script", "style", "template", "head", "noscript", "svg", "math", "iframe", "object",
    "canvas", "audio", "video", "select", "button",
))
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em",
    "font", "i", "img", "input", "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span",
    "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr", "br", "td", "th",
))
# fmt: on
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_LONE_MARK = re.compile(r"\s*(?:-|\w{1,6}\.)\s+")
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
    walker = _Walker()
    walker.walk(root)
    draft = walker.builder.build()
    if walker.hidden:
        warnings += (f"{walker.hidden} hidden passages of the page were left out",)
    headings = draft.headings or find_headings(draft.text)
    return Draft(draft.text, HTML, headings, (), warnings)


class _Walker:
    """Stateful: one pass over a page's elements, collecting its blocks."""

    def __init__(self) -> None:
        self.builder = DraftBuilder(HTML)
        self.hidden = 0
        self._inline: list[str] = []
        self._level: int | None = None
        self._tight = False
        self._pre = 0
        self._counters: list[Iterator[str]] = []

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
            self._counters.append(_marks(element) if tag == "ol" else itertools.repeat("-"))
        elif tag == "li":
            if self._tight and _LONE_MARK.fullmatch("".join(self._inline)):
                self._inline.clear()
            mark = next(self._counters[-1], "-") if self._counters else "-"
            self._inline.append(f"{mark} ")
            self._tight = True
        elif tag == "tr":
            self._tight = True
        elif tag in ("td", "th") and element.getprevious() is not None:
            self._inline.append(" | ")
        elif tag == "pre":
            self._pre += 1
        self._level = _HEADINGS.get(tag, self._level)
        self._text(element.text)

    def _end(self, tag: str) -> None:
        if tag not in _INLINE:
            self._flush()
        if tag in ("ol", "ul") and self._counters:
            self._counters.pop()
        elif tag == "pre":
            self._pre -= 1
        if tag in _HEADINGS:
            self._level = None

    def _text(self, text: str | None) -> None:
        if text:
            self._inline.append(text if self._pre else _WHITE.sub(" ", text))

    def _flush(self) -> None:
        text = "".join(self._inline)
        if not self._pre:
            text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text))
        text = re.sub(r"^\s*\| ", "", text)
        # A mark alone waits for the block inside its item.
        if self._tight and _LONE_MARK.fullmatch(text):
            return
        self._inline.clear()
        if text.strip():
            self.builder.paragraph(text, level=self._level, tight=self._tight)
            self._tight = False


def _marks(element: Any) -> Iterator[str]:
    """The numbers of an ordered list, which its source does not spell out."""
    start = element.get("start", "1")
    number = int(start) if re.fullmatch(r"\d{1,6}", start) else 1
    kind = element.get("type", "1")
    while True:
        if kind in ("a", "A") and 1 <= number <= 26:
            yield f"{chr(ord(kind) + number - 1)}."
        else:
            yield f"{number}."
        number += 1


def _is_hidden(element: Any) -> bool:
    return element.get("hidden") is not None or bool(
        _HIDDEN_STYLE.search(element.get("style") or "")
    )
