"""Plain text and Markdown: the text as written, with its headings found."""

from __future__ import annotations

import itertools
import re

from agentkit.retrieval.draft import Draft, Heading
from agentkit.retrieval.formats import MARKDOWN, TEXT
from agentkit.retrieval.headings import find_headings

_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(?:.*?\n)?(?:---|\.\.\.)[ \t]*\r?(?:\n|$)", re.DOTALL)


def plain_draft(text: str) -> Draft:
    """The text itself; a form feed starts a page."""
    pages: tuple[int, ...] = ()
    if "\f" in text:
        pages = (0, *(match.end() for match in re.finditer("\f", text)))
        pages = tuple(page for page in pages if page < len(text) or page == 0)
    return Draft(text, TEXT, find_headings(text), pages)


def markdown_draft(text: str) -> Draft:
    """The text itself; ATX and setext headings, by CommonMark's rules, make its sections."""
    return Draft(text, MARKDOWN, markdown_headings(text))


def front_matter_lines(text: str) -> int:
    """Number of lines of a YAML front matter at the start, which is no Markdown."""
    match = _FRONT_MATTER.match(text)
    return match[0].count("\n") if match else 0


def markdown_headings(text: str) -> tuple[Heading, ...]:
    """Headings in order, at the start of their line."""
    from markdown_it import MarkdownIt

    # CommonMark's line ends, so that token.map indexes these lines.
    starts = [0, *(match.end() for match in re.finditer(r"\r\n?|\n", text))]
    skip = front_matter_lines(text)
    rest = text[starts[skip] :] if skip < len(starts) else ""
    tokens = MarkdownIt("commonmark").parse("\n" * skip + rest)
    found = []
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.map is not None and token.level == 0:
            title = "".join(
                " " if child.type in ("softbreak", "hardbreak") else child.content
                for child in inline.children or ()
            )
            found.append(Heading(starts[token.map[0]], int(token.tag[1:]), " ".join(title.split())))
    return tuple(found)
