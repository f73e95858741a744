"""From ranked passages to what is shown: no duplicates, lead-ins and neighbours, a budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from agentkit.types import Chunk

CountTokens = Callable[[str], int]

_ENUMERATOR = re.compile(
    r"\s*(?:(?:and|or)\s+)?(?:\(?(?:[ivxlc]{1,5}|[a-z]{1,2}|\d{1,3})\)|\d{1,3}(?:\.\d{1,3})*[.)]?(?=\s)"
    r"|[A-Za-z]\.(?=\s)|[•●▪■◦–—*-](?=\s))\s*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+")
_MAX_ITEMS = 40


def said(text: str) -> tuple[str, ...]:
    """The words of a passage without its number, case and punctuation.

    Two passages that say the same are duplicates. One word more or less makes another passage:
    `shall` and `shall not` are close for every measure of similarity, and opposite.
    """
    number = _ENUMERATOR.match(text)
    bare = text[number.end() :] if number else text
    return tuple(_WORD.findall((bare or text).lower()))


def lead_in(chunks: Sequence[Chunk], item: int) -> int | None:
    """The passage that introduces the list in which `item` stands ("The Recipient shall not:").

    It ends in a colon or a dash, under the same heading, with list items alone between; None
    where there is none.
    """
    if not _ENUMERATOR.match(chunks[item].text):
        return None
    for number in range(item - 1, max(item - _MAX_ITEMS, 0) - 1, -1):
        if chunks[number].heading != chunks[item].heading:
            return None
        if chunks[number].text.rstrip().endswith((":", ":-", "—", "–")):
            return number
        if not _ENUMERATOR.match(chunks[number].text):
            return None
    return None


def beside(chunks: Sequence[Chunk], hits: Sequence[int], taken: Collection[int]) -> Iterator[int]:
    """The passages after and before each hit that was taken, under the same heading."""
    for hit in hits:
        if hit in taken:
            for number in (hit + 1, hit - 1):
                if 0 <= number < len(chunks) and chunks[number].heading == chunks[hit].heading:
                    yield number


def select(
    chunks: Sequence[Chunk],
    hits: Sequence[int],
    *,
    budget: int,
    count_tokens: CountTokens,
    allowed: Callable[[int], bool] = lambda _: True,
    neighbours: bool = True,
) -> list[int]:
    """Numbers of the chunks to show, in order of use, at most `budget` tokens together.

    `hits` are taken in their order while they fit; one that does not fit is passed over, one that
    says what was taken already is dropped. With `neighbours`, a list item brings its lead-in, and
    what is left of the budget goes to the passages beside the hits.
    """
    taken: dict[int, int] = {}
    known: set[tuple[str, ...]] = set()

    def take(number: int) -> None:
        nonlocal budget
        words = said(chunks[number].text)
        if number in taken or words in known or not allowed(number):
            return
        cost = count_tokens(chunks[number].text)
        if cost <= budget:
            taken[number] = cost
            known.add(words)
            budget -= cost

    for hit in hits:
        if budget <= 0:
            break
        take(hit)
        above = lead_in(chunks, hit) if neighbours and hit in taken else None
        if above is not None:
            take(above)
    if neighbours:
        for number in list(beside(chunks, hits, taken)):
            if budget <= 0:
                break
            take(number)
    return list(taken)
