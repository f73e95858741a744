"""Text whose numbers and names were all shown to the model.

Where a schema says `x-grounded: true` of a string, whatever in it holds a digit or a capital letter
is a word of the prompt, in its own capitals or with its first letter large; a sentence may begin
with a common opening word, too. The grammar has no others, so an amount, a date or a party that is
not there cannot be written. A number is taken whole: of `8.5` neither `8` nor `5` was shown.
Between words there is a space, so that none is made of two; names and numbers that follow each
other (`Section 7.4`, `Do Not Track`) do so in the prompt, so that no name is made of two either.
Numbers spelt out (`thirty`) are words like others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from agentkit.types import Json

GROUNDED = "x-grounded"

WORD = re.compile(r"[^\W_]*\d[^\W_]*(?:[.,:]\d[^\W_]*)*|[^\W_]+")
"""A number with its separators, or a run of letters."""
_JOINED = re.compile(r"[^\W_]+(?:[.,:&/'’–-][^\W_]+)+")
"""Words that stand together without a space: `AT&T`, `24/7`, `e-mail`."""
_WHOLE = re.compile(f"{_JOINED.pattern}|{WORD.pattern}")
_COMMON = "[a-zß-öø-ÿ]+(?:['’/-][a-zß-öø-ÿ]+)*"
_OPENERS = WORD.findall(
    """
    A After All Also An Any As At Because Before Both By Each Either Every For From He However If In
    It Its Many Most Neither No Nobody None Nothing On Once One Only Or Other Our She Some Such That
    The Their There These They This Those To Under Unless Until We What When Where Whether Which
    While Who Whoever With Without You Your
    """
)
_SPACE = r"[,;:)’'”%$€£]{0,2} (?:[%&+/–—-] )?[(“‘'$€£]?"
_APART = r"(?:[,;:)’'”%$€£]{1,2} (?:[%&+/–—-] )?[(“‘'$€£]?| [%&+/–—-] [(“‘'$€£]?| [(“‘'$€£])"
"""What stands between words, and what says that a new name begins."""
_NEAR = re.compile(r"-| ?\n?")
"""What stands between the words of a name."""
_LONGEST = 6
"""Words of the longest name that is taken whole."""
_END = r"(?: ?%)?[.!?)”’']{0,3}"
_MOST = 500
"""Words and names of several words that a grammar may list: those that a prompt has first."""


def grounded_schema(schema: Json, shown: str) -> Any:
    """The schema with a pattern for each grounded string; `shown` is the text of the prompt."""

    def narrowed(part: Json) -> Any:
        if isinstance(part, list):
            return [narrowed(one) for one in part]
        if not isinstance(part, Mapping):
            return part
        new = {key: narrowed(one) for key, one in part.items() if key != GROUNDED}
        if part.get(GROUNDED) is True:
            new["pattern"] = grounded_pattern(shown)
        return new

    return narrowed(schema)


def grounded_pattern(shown: str) -> str:
    """A regular expression of the texts whose numbers and names are words of `shown`."""
    words = dict.fromkeys([*WORD.findall(shown), *_JOINED.findall(shown)])
    common = {word for word in words if re.fullmatch(_COMMON, word)}
    opening = "|".join(
        [_COMMON, *_listed([*_OPENERS, *(w.capitalize() for w in words if w in common)])]
    )
    told = [form for word in words if word not in common for form in (word, word.capitalize())]
    runs = [*_runs(shown, WORD, common), *_runs(shown, _WHOLE, common)]
    named = f"(?:{'|'.join([*_listed(told), *_listed(runs)])})(?:['’]s)?"
    names = f"{named}(?:{_APART}{named})*" if told else r"[^\s\S]"
    then = f"(?:{_SPACE}{names})?"
    sentence = rf"[(“‘'$€£]?(?:{names}|(?:{opening}){then})(?:{_SPACE}{_COMMON}{then})*"
    return rf"^{sentence}(?:(?: ?%)?[)”’']?[.!?] {sentence})*{_END}$"


def _runs(shown: str, words: re.Pattern[str], common: set[str]) -> list[str]:
    """Names and numbers of several words, as they follow each other in the text."""
    found: list[str] = []
    run: list[str] = []
    end = 0
    for match in words.finditer(shown):
        if match.group() in common or not _NEAR.fullmatch(shown, end, match.start()):
            run = []
        end = match.end()
        if match.group() not in common:
            run = [*run, match.group()][-_LONGEST:]
            for begin in range(len(run) - 1):
                name = run[begin:]
                found += [" ".join(name), " ".join(word.capitalize() for word in name)]
    return found


def _listed(words: list[str]) -> list[str]:
    return list(map(re.escape, list(dict.fromkeys(words))[:_MOST]))
