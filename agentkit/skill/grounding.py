"""Text whose numbers and names were all shown to the model.

Where a schema says `x-grounded: true` of a string, whatever in it holds a digit or a capital letter
is a word of the prompt, in its own capitals or with its first letter large; a sentence may begin
with a common opening word, too. The grammar has no others, so an amount, a date or a party that is
not there cannot be written. `may` of a prompt makes no `May`, nor any other month.
A number is taken whole: of `8.5` neither `8` nor `5` was shown. Signs of a currency and `%` are
there if the prompt has them: what is 500 euros there cannot become $500.
Between words there is a space, so that none is made of two; names and numbers that follow each
other (`Section 7.4`, `Do Not Track`) do so in the prompt, so that no name is made of two either.
Numbers spelt out (`thirty`) are words like others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from agentkit.skill.opening_words import OPENING_WORDS
from agentkit.types import Json, Prompt

GROUNDED = "x-grounded"

WORD = re.compile(r"[^\W_]*\d[^\W_]*(?:[.,:]\d[^\W_]*)*|[^\W_]+")
"""A number with its separators, or a run of letters."""
_JOINED = re.compile(r"[^\W_]+(?:[.,:&/'’–-][^\W_]+)+")
"""Words that stand together without a space: `AT&T`, `24/7`, `e-mail`."""
_WHOLE = re.compile(f"{_JOINED.pattern}|{WORD.pattern}")
_COMMON = "[a-zß-öø-ÿ]+(?:['’/-][a-zß-öø-ÿ]+)*"
_MONTHS = frozenset(
    WORD.findall(
        "january february march april may june july august september october november december"
    )
)
_ALONE = re.compile(r"(?<!\S)[(“‘\"']?([a-zß-öø-ÿ]{3,})[,;:.!?)”’\"']{0,2}(?!\S)")
"""A common word that stands between spaces, and is no part of an address or of a contraction."""
_SIGNS = "%$€£"
"""What makes an amount of a number, or another amount of it."""
_NEAR = re.compile(r"-| ?\n?")
"""What stands between the words of a name."""
_LONGEST = 6
"""Words of the longest name that is taken whole."""
_MOST = 500
"""Words and names of several words that a grammar may list: those that a prompt has first."""


def shown_text(prompt: Prompt) -> str:
    """What a prompt shows to be named: its question and its spans, without the instructions."""
    return "\n".join([prompt.question.text, *(span.text for span in prompt.spans)])


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


def grounded_answer(schema: Json, answer: Json, shown: str) -> Json:
    """An answer as the schema lets it be written, for the same `shown`.

    Of a grounded string, a word whose capitals were not shown has small letters. A number that was
    not shown, or a name made of words that were shown apart, stays: there is no way to write it.
    """
    if not isinstance(schema, Mapping):
        return answer
    if isinstance(answer, str):
        return _in_small_letters(answer, shown) if schema.get(GROUNDED) is True else answer
    if isinstance(answer, Mapping):
        known = schema.get("properties", {})
        return {name: grounded_answer(known.get(name), one, shown) for name, one in answer.items()}
    if isinstance(answer, list):
        return [grounded_answer(schema.get("items"), one, shown) for one in answer]
    return answer


@lru_cache(maxsize=1)
def _nameless() -> re.Pattern[str]:
    """Matches what may be written whatever was shown: a prompt's own pattern takes far longer."""
    return re.compile(grounded_pattern(""))


def _in_small_letters(text: str, shown: str) -> str:
    if _nameless().search(text):
        return text
    pattern = re.compile(grounded_pattern(shown))

    def written(match: re.Match[str]) -> str:
        before = text[: match.start()].rstrip(" (“‘'$€£")
        word = match.group()
        tried = word if not before or before[-1] in ".!?" else f"a {word}"
        return word if pattern.search(tried) else word.lower()

    return text if pattern.search(text) else WORD.sub(written, text)


def grounded_pattern(shown: str) -> str:
    """A regular expression of the texts whose numbers and names are words of `shown`."""
    words = dict.fromkeys([*WORD.findall(shown), *_JOINED.findall(shown)])
    common = {word for word in words if re.fullmatch(_COMMON, word)}
    opening = "|".join(
        [_COMMON, *_listed([*OPENING_WORDS, *(w.capitalize() for w in words if w in common)])]
    )
    told = [form for word in words if word not in common for form in (word, word.capitalize())]
    # Terms may be spoken of as the Terms; whatever is a name by itself comes first.
    told += [
        word.capitalize() for word in dict.fromkeys(_ALONE.findall(shown)) if word not in _MONTHS
    ]
    runs = [*_runs(shown, WORD, common), *_runs(shown, _WHOLE, common)]
    named = f"(?:{'|'.join([*_listed(told), *_listed(runs)])})(?:['’]s)?"
    signs = "".join(sign for sign in _SIGNS if sign in shown)
    before = f"[(“‘'{signs.replace('%', '')}]"
    after, between = f"[,;:)’'”{signs}]", f"[{'%' if '%' in signs else ''}&+/–—-]"
    share = "(?: ?%)?" if "%" in signs else ""
    space = f"{after}{{0,2}} (?:{between} )?{before}?"
    # What says that a new name begins.
    apart = f"(?:{after}{{1,2}} (?:{between} )?{before}?| {between} {before}?| {before})"
    names = f"{named}(?:{apart}{named})*" if told else r"[^\s\S]"
    then = f"(?:{space}{names})?"
    sentence = rf"{before}?(?:{names}|(?:{opening}){then})(?:{space}{_COMMON}{then})*"
    return rf"^{sentence}(?:{share}[)”’']?[.!?] {sentence})*{share}[.!?)”’']{{0,3}}$"


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
