"""Thresholds of confidence, fitted on held-out examples: one for all skills, and each its own.

Where they lie follows from the examples and the requests for no skill that a controller is fitted
on, and from nothing else. What is fixed here was chosen by cross-validation over training data (a
fifth of the utterances held out, a fifth of the requests for no skill, or whole skills), so that
what is accepted and what is refused are balanced.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from agentkit.routing.regression import Array

__all__ = [
    "AMBIGUITY_MARGIN",
    "fit_thresholds",
    "lonely_rows",
    "needed_lead",
    "sureness",
    "usual_threshold",
]

Rows = NDArray[np.intp]
Number = TypeVar("Number", float, Array)

AMBIGUITY_MARGIN = 0.1
"""Share of the confidence in the two best skills by which the best must lead the second, else the
route is ambiguous. (A lead that does not shrink with the confidence refuses what is weakly for the
best and not at all for the second.)"""
_GRID = np.linspace(0.05, 0.95, 91)
_LEVEL = 0.01
"""Thresholds whose merits differ by less than this are equally good: of all skills, the middle one
is taken; of one skill, that nearest to the one of all."""
_EXAMPLES = 100
"""Pseudo-examples that speak for the usual threshold, so that few real ones move it little."""
_OWN_EXAMPLES = 100
"""The same for a skill's own threshold, against that of all skills."""
_ENOUGH, _GUESSED = 100, 10
"""Requests known to be for no skill that are enough to fit thresholds on; and as how many those
count, all together, that are only likely to be such, where there are enough."""


def usual_threshold(skills: int) -> float:
    """Something fits rather than nothing (one half), and the best skill holds a fair part of it."""
    return 0.25 * (1.0 + 1.0 / max(skills, 1))


def needed_lead(best: Number, second: Number) -> Number:
    """By how much `best` must lead `second`."""
    return AMBIGUITY_MARGIN * (best + second)


def lonely_rows(cosine: Array, own: Rows, count: int) -> Rows:
    """The background, and of each skill's rows the half that is least like the others.

    Examples are more like each other than requests to come are like them, so thresholds that suited
    all of them would refuse too much.
    """
    kept = [np.flatnonzero(own == count)]
    for k in range(count):
        rows = np.flatnonzero(own == k)
        order = np.argsort(cosine[rows], kind="stable")
        kept.append(rows[order[: (len(rows) + 1) // 2]])
    return np.concatenate(kept)


def sureness(background: Rows, known: int) -> Array:
    """What each background row counts for thresholds; the first `known` are for no skill for sure.

    Of the others some may be for a skill after all, which no likeness shows, so they only fill up
    the number of the known ones.
    """
    guessed = background >= known
    share = max(_ENOUGH - known, _GUESSED) / max(int(guessed.sum()), 1)
    return np.where(guessed, min(share, 1.0), 1.0)


def fit_thresholds(
    confidence: Array, label: NDArray[np.intp], skills: int, weight: Array
) -> tuple[float, Array]:
    """The threshold of all skills, and `(skills,)` those of each.

    `confidence` `(n, skills)` are held-out; `label` `(n,)` is the right skill, or `skills` for a
    row that none is for; `weight` `(n,)` is how much a row counts among such. A threshold is good
    as far as it accepts rows for their own skill and refuses the others, above all whichever of the
    two it does worse; it is drawn towards the usual one as far as rows are few. Rows that would be
    refused as ambiguous are so whatever the threshold.
    """
    chosen = confidence.argmax(axis=1)
    ranked = np.sort(confidence, axis=1)
    best = ranked[:, -1]
    if skills > 1:
        best = np.where(best - ranked[:, -2] < needed_lead(best, ranked[:, -2]), 0.0, best)
    inside, right = label < skills, chosen == label
    usual = usual_threshold(skills)
    reached = best[:, None] >= _GRID
    accepted = (reached & right[:, None])[inside].mean(axis=0)
    refused = 1.0 - np.average(reached[~inside], axis=0, weights=weight[~inside])
    worse = np.minimum(accepted, refused)
    merit = worse + (accepted + refused) / 4
    middle = float(np.median(_good(merit)))
    every = _drawn(middle, usual, int(inside.sum()), _EXAMPLES)
    own = np.full(skills, every)
    for k in range(skills):
        mine, others = inside & (label == k) & right, (chosen == k) & ~right
        if mine.any() and others.any():
            # Others are rare among requests: they weigh as the share of rows that they are.
            accepted = reached[mine].mean(axis=0)
            refused = 1.0 - np.average(reached[others], axis=0, weights=weight[others])
            rare = weight[others].sum() / (weight[others].sum() + 5.0)
            near = min(_good(accepted + rare * refused), key=lambda t: abs(t - every))
            own[k] = _drawn(float(near), every, int(mine.sum()), _OWN_EXAMPLES)
    return every, own


def _good(merit: Array) -> Array:
    return np.asarray(_GRID[merit >= merit.max() - _LEVEL])


def _drawn(fitted: float, usual: float, rows: int, pseudo: int) -> float:
    return float(round(usual + rows / (rows + pseudo) * (fitted - usual), 4))
