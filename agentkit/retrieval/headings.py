"""Headings of texts that have no markup: numbered, ARTICLE and SECTION lines, ALL-CAPS lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agentkit.retrieval.draft import Heading

_MAX_LINE = 120
_MAX_WORDS = 14

_DIVISION = re.compile(
    r"(?P<kind>article|chapter|part|title|schedule|exhibit|annex|appendix|addendum)\s+"
    r"(?P<number>[IVXLC]{1,7}|\d{1,3}|[A-Z](?:-?\d{1,2})?)\b(?P<rest>.*)",
    re.IGNORECASE,
)
_SECTION = re.compile(
    r"(?:section|clause|§)\s*(?P<number>\d{1,3}(?:\.\d{1,3}){0,4})\.?(?P<rest>\s.*|:.*|)$",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"(?P<number>\d{1,3}(?:\.\d{1,3}){0,4})(?P<mark>[.)]?)\s+(?P<rest>[A-Z\"“(].*)$"
)
_ROMAN = re.compile(r"(?P<number>[IVX]{1,6})\.\s+(?P<rest>[A-Z].*)$")
# A numbered definition is found by the term that it defines.
_DEFINITION = re.compile(
    r"(?P<term>[\"“](?P<name>[^\"“”]{1,80})[\"”])"
    r"(?:\s*(?:\([^)]{0,80}\)|or\s+[\"“][^\"“”]{1,80}[\"”]|,[^,]{1,80},)){0,3}\s*"
    r"(?:shall\s+|will\s+)?(?:means?|ha(?:s|ve)\s+the\s+meaning|refers?\s+to|includes?)\b"
)
_RUN_IN = re.compile(r"(?P<title>[A-Z][^.:;\n]{1,70}?)(?:[.:]|\s[-–—])\s+\S")
_CONTENTS_LINE = re.compile(r"(?:\.\s?){4,}\s*\d*\s*$|\s{3,}\d{1,3}\s*$|\t\d{1,3}\s*$")
_GAP = re.compile(r"\s{3,}")
_LABEL = re.compile(
    r"(?:(?:article|chapter|part|schedule|exhibit|annex|appendix|section)\s+)?[\w.§()]{1,8}",
    re.IGNORECASE,
)
# fmt: off
_SMALL_WORDS = frozenset((
    "a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "its", "of", "on", "or", "per",
    "than", "the", "this", "to", "under", "upon", "via", "vs", "with",
))
# fmt: on


def _is_title(text: str) -> bool:
    """Short, and its words begin with capitals: what a heading's words look like."""
    words = [word for word in re.findall(r"[^\W_][\w'’&/-]*", text) if not word.isdigit()]
    if not words or len(words) > _MAX_WORDS:
        return False
    main = [word for word in words if word.lower() not in _SMALL_WORDS]
    capital = sum(word[0].isupper() for word in main)
    return bool(main) and main[0][0].isupper() and capital >= 0.75 * len(main)


def _is_short_title(rest: str) -> bool:
    """A numbered line that stands alone: a title, or a few words that end no sentence."""
    bare = rest.strip().rstrip(".:").strip()
    if not bare or len(bare) > _MAX_LINE or bare.endswith((",", ";")):
        return False
    return _is_title(bare) or (len(bare.split()) <= 5 and not rest.rstrip().endswith((".", ";")))


def _is_caps(line: str) -> bool:
    letters = [character for character in line if character.isalpha()]
    return (
        len(letters) >= 4
        and all(character.isupper() for character in letters)
        and len(letters) >= 0.6 * len(line.replace(" ", ""))
        and len(line.split()) <= _MAX_WORDS
        and not line.endswith((",", ";"))
    )


def heading_of_line(line: str, *, alone: bool = True) -> tuple[int, str] | None:
    """`(level, title)` if the line is or begins with a heading.

    `alone` says that the line starts a paragraph; an ALL-CAPS line is a heading only then.
    Divisions (ARTICLE, SCHEDULE) and ALL-CAPS lines have level 1, numbers the depth of their dots.
    """
    if len(line) <= 2 * _MAX_LINE and _CONTENTS_LINE.search(line):
        return None
    # Only the beginning of a long line can be a heading.
    short = len(line) <= _MAX_LINE
    line = " ".join(line[: 4 * _MAX_LINE].split())
    if not line:
        return None
    division = _DIVISION.match(line)
    if division and short:
        rest = division["rest"].strip(" .:-–—")
        capital = division["kind"][0].isupper()
        if capital and (not rest or _is_title(rest) or rest.isupper()):
            return 1, line.rstrip(" .:-–—")
    for pattern in (_SECTION, _NUMBERED, _ROMAN):
        match = pattern.match(line)
        if match is None:
            continue
        bare = pattern is _NUMBERED and not match["mark"] and "." not in match["number"]
        # "30 Days after" is a sentence's beginning; a bare number needs an ALL-CAPS title.
        if bare and not (alone and _is_caps(match["rest"])):
            return None
        level = 1 if pattern is _ROMAN else match["number"].count(".") + 1
        return _numbered(line, match, level, short=short, section=pattern is _SECTION)
    if alone and short and _is_caps(line):
        return 1, line.rstrip(" .:")
    return None


def _numbered(
    line: str, match: re.Match[str], level: int, *, short: bool, section: bool
) -> tuple[int, str] | None:
    rest = match["rest"].strip(" .:-–—\t") if section else match["rest"]
    if not rest:
        return (level, line.rstrip(" .:")) if section else None
    if short and _is_short_title(rest):
        return level, line.rstrip(" .:-–—")
    definition = _DEFINITION.match(rest)
    if definition:
        return level, line[: line.find(definition["term"]) + len(definition["term"])]
    run_in = _RUN_IN.match(rest)
    if run_in and len(run_in["title"].split()) <= 8 and _is_title(run_in["title"]):
        start = line.find(run_in["title"])
        return level, line[: start + len(run_in["title"])]
    return None


def find_headings(text: str) -> tuple[Heading, ...]:
    """Headings of a plain text, in order, at the offset of their line's first word.

    Where there are ARTICLE divisions, numbered headings are at level 2 or below.
    """
    found = list(_find(text))
    divided = any(level_one_division(heading.title) for heading in found)
    if not divided:
        return tuple(found)
    return tuple(
        Heading(heading.offset, max(heading.level, 2), heading.title)
        if heading.title[:1].isdigit() or _SECTION.match(heading.title)
        else heading
        for heading in found
    )


def level_one_division(title: str) -> bool:
    """Is the title an ARTICLE, CHAPTER or PART, under which numbered headings stand?"""
    return re.match(r"(?:article|chapter|part|title)\s", title, re.IGNORECASE) is not None


def _find(text: str) -> Iterator[Heading]:
    offset = 0
    after_blank = True
    for raw in text.split("\n"):
        if raw.strip():
            # A heading may be followed by its title's second line without a blank between.
            alone, after_blank = after_blank, False
            for number, (start, segment) in enumerate(_segments(raw)):
                found = heading_of_line(segment, alone=alone and number == 0)
                if found is not None:
                    yield Heading(offset + start, *found)
                    after_blank = after_blank or number == 0
        else:
            after_blank = True
        offset += len(raw) + 1


def _segments(line: str) -> Iterator[tuple[int, str]]:
    """Stretches of a line between wide gaps, which stand for lost line ends; `(start, text)`.

    A number or "ARTICLE I" stays with the words after it.
    """
    start = len(line) - len(line.lstrip())
    for gap in _GAP.finditer(line, start):
        piece = line[start : gap.start()]
        if gap.end() < len(line) and not _LABEL.fullmatch(piece):
            yield start, piece
            start = gap.end()
    yield start, line[start:].rstrip()
