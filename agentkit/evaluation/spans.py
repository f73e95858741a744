"""Measures of stretches of text: overlap, matching, and the precision-recall curve.

The curve is that of the CUAD benchmark (Hendrycks, Burns, Chen and Ball, NeurIPS 2021): a gold
span is found if a predicted one has a Jaccard similarity of at least 0.5 with it, both taken as
sets of words; a predicted span that matches no gold one is a false positive. Precision is made
monotone in recall, the area is that of the trapezoids from recall 0 on, and what is never found
adds nothing. Its script lets one category match by containment as well; here none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentkit.evaluation.resampling import Floats

LEAST = 0.5
THRESHOLDS: Floats = np.array([*np.arange(0.99, 0, -0.01), 0.001, 0.0])
"""Scores that a prediction must exceed, descending: the benchmark's own steps."""

Place: TypeAlias = tuple[int, int]
"""`[start, end)` in characters."""


def overlap(one: Place, other: Place) -> float:
    """Jaccard similarity of two stretches as sets of characters; 0 where both are empty."""
    shared = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    union = (one[1] - one[0]) + (other[1] - other[0]) - shared
    return shared / union if union > 0 else 0.0


def words(text: str) -> frozenset[str]:
    """The words of a text without case, `.,;:` and slashes."""
    return frozenset(text.translate(_PLAIN).lower().split())


_PLAIN = str.maketrans({".": None, ",": None, ";": None, ":": None, "/": " "})


def word_jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words; 0 where both are empty."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def matched(gold: Sequence[Place], found: Sequence[Place], *, least: float = LEAST) -> int:
    """How many pairs of a gold and a found span overlap by `least`, each span in one pair at most.

    Pairs are taken by their overlap, the best first.
    """
    pairs = sorted(
        (
            (similarity, at, place)
            for at, right in enumerate(gold)
            for place, said in enumerate(found)
            if (similarity := overlap(right, said)) >= least
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    taken_gold: set[int] = set()
    taken_found: set[int] = set()
    for _, at, place in pairs:
        if at not in taken_gold and place not in taken_found:
            taken_gold.add(at)
            taken_found.add(place)
    return len(taken_gold)


def covered(gold: Place, found: Sequence[Place]) -> float:
    """Share of a gold span's characters that lie in any found one."""
    inside: set[int] = set()
    for start, end in found:
        inside.update(range(max(start, gold[0]), min(end, gold[1])))
    return len(inside) / (gold[1] - gold[0]) if gold[1] > gold[0] else 0.0


def f1(hits: float, gold: float, found: float) -> float | None:
    """Harmonic mean of `hits / gold` and `hits / found`; None where there is neither."""
    return 2 * hits / (gold + found) if gold + found else None


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """One document's part of a curve: counts by the number of thresholds that a score exceeds."""

    found: NDArray[np.int64]
    """`(thresholds + 1,)`: gold spans by the best score of a prediction that matches them."""
    false: NDArray[np.int64]
    """`(thresholds + 1,)`: predictions that match nothing, by their score."""
    gold: int


def tally(gold: Sequence[str], predicted: Sequence[tuple[str, float]]) -> Tally:
    """What one document adds to a label's curve, from the texts of gold and predicted spans.

    A text that is predicted twice counts once, with its better score.
    """
    scores: dict[str, float] = {}
    for text, score in predicted:
        if text:
            scores[text] = max(score, scores.get(text, 0.0))
    right = [words(text) for text in gold]
    best = np.full(len(right), -1.0)
    false = []
    for text, score in scores.items():
        said = words(text) if right else frozenset()
        hits = [at for at, one in enumerate(right) if word_jaccard(one, said) >= LEAST]
        best[hits] = np.maximum(best[hits], score)
        if not hits:
            false.append(score)
    return Tally(_passed(best), _passed(np.array(false)), len(right))


def _passed(scores: Floats) -> NDArray[np.int64]:
    number = (scores[:, None] > THRESHOLDS[None, :]).sum(axis=1)
    return np.bincount(number, minlength=len(THRESHOLDS) + 1)


def curve(found: Floats, false: Floats, gold: float) -> tuple[Floats, Floats]:
    """Recall and precision `(points,)` by falling threshold, from (0, 1) on; precision monotone.

    `found` and `false` are the sums of tallies `(thresholds + 1,)`.
    """
    hits = np.cumsum(found[:0:-1])
    misses = np.cumsum(false[:0:-1])
    said = hits + misses
    recall = np.concatenate([[0.0], hits[said > 0] / max(gold, 1e-12)])
    precision = np.concatenate([[1.0], hits[said > 0] / said[said > 0]])
    return recall, np.maximum.accumulate(precision[::-1])[::-1]


def area(recall: Floats, precision: Floats) -> float:
    """Area under a curve, by trapezoids."""
    return float(np.trapezoid(precision, recall))


def precision_at(recall: Floats, precision: Floats, least: float) -> float:
    """Precision where recall first reaches `least`; 0 if it never does."""
    reached = np.flatnonzero(recall >= least)
    return float(precision[reached[0]]) if len(reached) else 0.0


def average_precision(hits: Sequence[bool], scores: Sequence[float], gold: int) -> float:
    """Mean over `gold` relevant items of the precision at each one's rank; ties share a rank.

    Relevant items that were not ranked at all count as found never.
    """
    if not gold:
        return 0.0
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    flags = np.asarray(hits, dtype=np.float64)[order]
    ranked = np.asarray(scores, dtype=np.float64)[order]
    # Of equal scores none comes first: the precision of all of them is that after the last.
    last = np.searchsorted(-ranked, -ranked, side="right") - 1
    right = np.cumsum(flags)
    return float((flags * (right / np.arange(1, len(flags) + 1))[last]).sum() / gold)
