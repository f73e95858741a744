"""The words of a text as evidence for a skill: naive Bayes over hashed words and letters.

Sentence vectors are led by the subject matter (`liability`), while what tells skills of one field
apart is the way of asking (`find`, `does it`, `explain`), which words show; runs of letters stand
for inflected and misspelt words. Multinomial naive Bayes with presence counts (McCallum and Nigam,
"A Comparison of Event Models for Naive Bayes Text Classification", 1998; Rennie et al., "Tackling
the Poor Assumptions of Naive Bayes Text Classifiers", 2003) needs no iteration, so a refit is cheap
and a row's held-out score has a closed form.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Terms = NDArray[np.int32]
"""The hashed terms of one text, sorted, each once."""

BUCKETS = 1 << 15
_WORD = re.compile(r"\w+")
_MAX_WORDS = 64
_LETTERS = (3, 4, 5)
_SMOOTHING = 0.03


def word_terms(text: str) -> Terms:
    """Words and pairs of words of the text's beginning, and its first words once more."""
    words = _words(text)
    terms = [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]
    if words:
        terms += [f"^{words[0]}", f"^{' '.join(words[:2])}"]
    return _hashed(terms)


def letter_terms(text: str) -> Terms:
    """Runs of three to five letters of the text's beginning, across the gaps between words."""
    line = f" {' '.join(_words(text))} "
    if not line.strip():
        return _hashed(())
    return _hashed(
        [line[at : at + size] for size in _LETTERS for at in range(len(line) - size + 1)]
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:2000].casefold())[:_MAX_WORDS]


def _hashed(terms: Sequence[str]) -> Terms:
    codes = {zlib.crc32(term.encode("utf-8", "surrogatepass")) % BUCKETS for term in terms}
    return np.array(sorted(codes), dtype=np.int32)


def count_terms(rows: Sequence[Terms]) -> NDArray[np.float32]:
    """`(BUCKETS,)`: how many of the rows hold each term."""
    flat = np.concatenate([np.empty(0, np.int32), *rows])
    return np.bincount(flat, minlength=BUCKETS).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class NaiveBayes:
    """A fitted model of `classes` classes."""

    log_likelihood: NDArray[np.float32]
    """`(BUCKETS, classes)`; zero for terms that no class has, which therefore say nothing."""
    count: NDArray[np.float32]
    """`(BUCKETS, classes)`: examples of the class that hold the term."""
    rows: NDArray[np.float32]
    """`(BUCKETS,)`: examples of any class that hold the term."""
    rarity: NDArray[np.float32]
    """`(BUCKETS,)`: the logarithm of how few classes have the term."""
    vocabulary: int
    """How many terms some class has."""

    @classmethod
    def fit(cls, counts: Sequence[NDArray[np.float32]]) -> NaiveBayes:
        """Of each class's `count_terms`."""
        count = np.stack(counts, axis=1)
        likelihood = np.zeros_like(count)
        rows = count.sum(axis=1)
        seen = np.flatnonzero(rows)
        total = count.sum(axis=0, dtype=np.float64) + _SMOOTHING * len(seen)
        logs = np.log(count[seen] + np.float32(_SMOOTHING))
        likelihood[seen] = logs - np.log(np.maximum(total, 1e-9)).astype(np.float32)
        spread = np.count_nonzero(count, axis=1).astype(np.float32)
        rarity = np.log((count.shape[1] + 1) / (spread + np.float32(0.5))) + np.float32(0.1)
        return cls(likelihood, count, rows, rarity, len(seen))

    def scores(self, rows: Sequence[Terms]) -> Array:
        """`(rows, classes)`: summed log likelihoods, centred on each row's mean."""
        result = np.zeros((len(rows), self.count.shape[1]))
        for row, terms in enumerate(rows):
            if len(terms):
                result[row] = self.log_likelihood[terms].sum(axis=0, dtype=np.float64)
        return np.asarray(result - result.mean(axis=1, keepdims=True))

    def held_out(self, rows: Sequence[Terms], label: NDArray[np.intp]) -> Array:
        """Scores of examples as if each had not been among those of its class."""
        result = np.zeros((len(rows), self.count.shape[1]))
        total = self.count.sum(axis=0, dtype=np.float64)
        for row, (terms, own) in enumerate(zip(rows, label, strict=True)):
            kept = terms[self.rows[terms] > 1.5]
            if not len(kept):
                continue
            result[row] = self.log_likelihood[kept].sum(axis=0, dtype=np.float64)
            left = total[own] - len(terms) + _SMOOTHING * self.vocabulary
            result[row, own] = float(
                np.log(self.count[kept, own].astype(np.float64) - 1.0 + _SMOOTHING).sum()
                - len(kept) * np.log(max(left, 1e-9))
            )
        return np.asarray(result - result.mean(axis=1, keepdims=True))

    def coverage(
        self, rows: Sequence[Terms], label: NDArray[np.intp], held_out: NDArray[np.bool_]
    ) -> Array:
        """`(rows,)`: the share of each row's terms that examples of class `label` have too, rarer
        terms counting more; another example than the row itself where it is `held_out`."""
        result = np.zeros(len(rows))
        for row, (terms, own, out) in enumerate(zip(rows, label, held_out, strict=True)):
            if len(terms):
                weight = self.rarity[terms]
                shared = self.count[terms, own] > (1.5 if out else 0.5)
                result[row] = float(weight[shared].sum(dtype=np.float64)) / float(
                    weight.sum(dtype=np.float64)
                )
        return result
