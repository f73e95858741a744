"""Scores and their fusion: BM25 over a small set of texts, reciprocal rank fusion."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)

RRF_K = 60
_TOKEN = re.compile(r"[^\W_]+")


def tokens(text: str) -> list[str]:
    """Lowercase words and numbers, with plural and past endings taken off."""
    return [_stem(word) for word in _TOKEN.findall(text.lower())]


def _stem(word: str) -> str:
    """A light stemmer: `parties`, `party` and `notices`, `notice` meet; nothing subtler."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


class BM25:
    """Okapi BM25 over a fixed list of texts (Robertson and Zaragoza, 2009; k1 = 1.2, b = 0.75).

    The idf is the variant that never turns negative: `log(1 + (n - df + 0.5) / (df + 0.5))`.
    """

    def __init__(self, texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        self._count = len(texts)
        lengths = np.zeros(self._count, dtype=np.float32)
        postings: dict[str, tuple[list[int], list[int]]] = {}
        for index, text in enumerate(texts):
            counts = Counter(tokens(text))
            lengths[index] = counts.total()
            for word, count in counts.items():
                rows, frequencies = postings.setdefault(word, ([], []))
                rows.append(index)
                frequencies.append(count)
        mean = float(lengths.mean()) if self._count else 0.0
        norm = k1 * (1 - b + b * lengths / (mean or 1.0))
        self._weights: dict[str, tuple[NDArray[np.intp], NDArray[np.float32]]] = {}
        for word, (rows, frequencies) in postings.items():
            at = np.asarray(rows, dtype=np.intp)
            frequency = np.asarray(frequencies, dtype=np.float32)
            idf = math.log(1 + (self._count - len(rows) + 0.5) / (len(rows) + 0.5))
            weight = idf * frequency * (k1 + 1) / (frequency + norm[at])
            self._weights[word] = (at, weight.astype(np.float32))

    def scores(self, query: str) -> NDArray[np.float32]:
        """`(n,)`: the score of each text; 0 where it shares no word with the query."""
        scores = np.zeros(self._count, dtype=np.float32)
        for word, times in Counter(tokens(query)).items():
            if word in self._weights:
                rows, weights = self._weights[word]
                scores[rows] += times * weights
        return scores


def standardised(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores with mean 0 and deviation 1, so that those of several searches can be added."""
    if not len(scores):
        return scores
    spread = float(scores.std())
    return np.asarray((scores - scores.mean()) / (spread or 1.0), dtype=np.float32)


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[Key]], *, k: int = RRF_K
) -> dict[Key, float]:
    """Sum of `1 / (k + rank)` over the rankings, rank from 1, best first.

    Cormack, Clarke and Büttcher (2009). The sum is scaled so that a first place in every ranking
    gives 1.
    """
    scores: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, 1):
            scores[key] = scores.get(key, 0.0) + (k + 1) / (k + rank) / len(rankings)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
