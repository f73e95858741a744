"""Words as a page shows them, from left to right, to the order in which they are read."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence

_MIRRORED = str.maketrans("()[]{}<>«»", ")(][}{><»«")


def reading_order(words: Sequence[str]) -> list[str]:
    """The words of one line in reading order, letters too.

    The inverse of Unicode's bidirectional algorithm (UAX 9) as far as lines of contracts need it:
    runs of right-to-left words are turned round, and the line as a whole where such words are most
    of it; numbers and other words keep their direction. Arabic presentation forms become letters.
    """
    backward = [is_right_to_left(word) for word in words]
    if not any(backward):
        return list(words)
    letters = sum(len(word) for word in words if any(map(str.isalpha, word)))
    turned = sum(len(word) for word, back in zip(words, backward, strict=True) if back)
    runs = [
        (back, [word for word, _ in run])
        for back, run in itertools.groupby(
            zip(words, backward, strict=True), key=lambda pair: pair[1]
        )
    ]
    if 2 * turned > letters:
        runs.reverse()
    result: list[str] = []
    for back, run in runs:
        result += [_turned(word) for word in reversed(run)] if back else run
    return result


def is_right_to_left(word: str) -> bool:
    """Does the word hold a letter of a script that is written from right to left?"""
    return not word.isascii() and any(unicodedata.bidirectional(c) in ("R", "AL") for c in word)


def _turned(word: str) -> str:
    word = word[::-1].translate(_MIRRORED)
    # A number inside a word keeps its direction.
    pieces = [
        "".join(run)[:: -1 if digits else 1]
        for digits, run in itertools.groupby(word, key=str.isdecimal)
    ]
    word = "".join(pieces)
    forms = any("\ufb1d" <= c <= "\ufefc" for c in word)
    return unicodedata.normalize("NFKC", word) if forms else word
