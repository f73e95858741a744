"""Measures of written text: likeness to a reference, and whether its facts stand in the input."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"[a-z0-9]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:[.,]\d+)*")
_MONTHS = [
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
]
_SHORT_MONTHS = {month[:3]: month for month in _MONTHS} | {"sept": "september"}
_SMALL = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_IN_WORDS = {word: str(n) for n, word in enumerate(_SMALL)} | {
    word: str(10 * n) for n, word in enumerate(_TENS, start=2)
}
_END = re.compile(r"[.!?:;]\W*$|\n")


def rouge_l(reference: str, candidate: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1, case and punctuation ignored.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, with precision and recall
    weighing the same and words not stemmed. Two texts without words are wholly alike.
    """
    one, other = (_TOKEN.findall(text.lower()) for text in (reference, candidate))
    if not one or not other:
        return float(one == other)
    common = _common_subsequence(one, other)
    return 2 * common / (len(one) + len(other))


def _common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for at, said in enumerate(other, start=1):
            above = row[at]
            row[at] = diagonal + 1 if word == said else max(above, row[at - 1])
            diagonal = above
    return row[-1]


def facts(statement: str) -> list[str]:
    """The numbers, names and parts of dates that a statement gives, in a common form.

    A name is a run of capitalised words; a single one that begins a sentence may owe its capital
    to its place, and does not count unless it has more than one.
    """
    found: list[str] = []
    run: list[str] = []
    begins, end = False, 0
    for match in _WORD.finditer(statement):
        word, gap = _bare(match.group()), statement[end : match.start()]
        first = end == 0 or bool(_END.search(gap))
        if run and (first or gap.strip()):
            found += _name(run, begins)
            run = []
        if word[0].isdecimal():
            found += [*_name(run, begins), _number(word)]
            run = []
        elif _month(word) and word[0].isupper() and not first:
            found += [*_name(run, begins), _month(word)]
            run = []
        elif word[0].isupper() and word not in ("I", "A"):
            begins = first if not run else begins
            run.append(word)
        else:
            found += _name(run, begins)
            run = []
        end = match.end()
    return found + _name(run, begins)


def _name(run: Sequence[str], begins: bool) -> list[str]:
    kept = list(run)
    if begins and kept and not any(c.isupper() for c in kept[0][1:]):
        kept = kept[1:]
    return [" ".join(kept).casefold()] if kept else []


def unsupported(statement: str, source: str) -> list[str]:
    """Those of a statement's `facts` that do not stand in the source."""
    numbers = {_number(text) for text in _NUMBER.findall(source)}
    plain = [_bare(word).casefold() for word in _WORD.findall(source)]
    numbers |= {_IN_WORDS[part] for word in plain for part in word.split("-") if part in _IN_WORDS}
    numbers |= set(_compounds(plain))
    known = {_month(word) for word in plain} - {""}
    text = _spaced(" ".join(plain))
    return [
        fact
        for fact in facts(statement)
        if not (fact in numbers or fact in known or _spaced(fact) in text)
    ]


def _spaced(text: str) -> str:
    """With a space around and for each hyphen: `Do-Not-Track` and `Do Not Track` are one name."""
    return f" {text.replace('-', ' ')} "


def _bare(word: str) -> str:
    """A word without the ending of a possessive."""
    return re.sub(r"['’]s?$", "", word) or word


def _compounds(words: Sequence[str]) -> list[str]:
    """`twenty-one` and the like as digits."""
    parts = [word.split("-") for word in words if "-" in word]
    return [
        str(int(_IN_WORDS[tens]) + int(_IN_WORDS[ones]))
        for tens, ones in (part for part in parts if len(part) == 2)
        if tens in _TENS and ones in _SMALL[1:10]
    ]


def _number(text: str) -> str:
    """Digits without thousands separators and trailing zeros of a fraction."""
    whole, point, fraction = re.sub(r",(?=\d{3}(?!\d))", "", text).partition(".")
    fraction = fraction.rstrip("0") if point and fraction.isdigit() else fraction
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{fraction}" if fraction else whole


def _month(word: str) -> str:
    """The full name of a month given in full or in short; empty for another word."""
    lower = word.casefold()
    return lower if lower in _MONTHS else _SHORT_MONTHS.get(lower, "")
