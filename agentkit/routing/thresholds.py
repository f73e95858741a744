"""Thresholds of confidence, fitted on held-out examples: one for all skills, and each its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agentkit.routing.regression import Array

__all__ = ["fit_thresholds", "usual_threshold"]

_GRID = np.linspace(0.05, 0.95, 91)
_LEVEL = 0.01
"""Thresholds whose merits differ by less than this are equally good: the one nearest to usual is
taken."""
_EXAMPLES = 40
"""Pseudo-examples that speak for the usual threshold, so that few real ones move it little."""
_OWN_EXAMPLES = 100
"""The same for a skill's own threshold, against that of all skills."""


def usual_threshold(skills: int) -> float:
    """Something fits rather than nothing (one half), and the best skill holds a fair part of it."""
    return 0.25 * (1.0 + 1.0 / max(skills, 1))


def fit_thresholds(confidence: Array, label: NDArray[np.intp], skills: int) -> tuple[float, Array]:
    """The threshold of all skills, and `(skills,)` those of each.

    `confidence` `(n, skills)` are held-out; `label` `(n,)` is the right skill, or `skills` for a
    row that none is for. A threshold is good as far as it accepts rows for their own skill and
    refuses the others, above all whichever of the two it does worse; it is drawn towards the usual
    one as far as rows are few.
    """
    best, chosen = confidence.max(axis=1), confidence.argmax(axis=1)
    inside, right = label < skills, chosen == label
    usual = usual_threshold(skills)
    accepted = np.array([(right & (best >= t))[inside].mean() for t in _GRID])
    refused = np.array([(best[~inside] < t).mean() for t in _GRID])
    worse = np.minimum(accepted, refused)
    every = _drawn(worse + (accepted + refused) / 4, usual, int(inside.sum()), _EXAMPLES)
    own = np.full(skills, every)
    for k in range(skills):
        mine, others = inside & (label == k) & right, (chosen == k) & ~right
        if mine.any() and others.any():
            # Others are rare among requests: they weigh as the share of rows that they are.
            accepted = np.array([(best[mine] >= t).mean() for t in _GRID])
            refused = np.array([(best[others] < t).mean() for t in _GRID])
            weight = others.sum() / (others.sum() + 5.0)
            own[k] = _drawn(accepted + weight * refused, every, int(mine.sum()), _OWN_EXAMPLES)
    return every, own


def _drawn(merit: Array, usual: float, rows: int, pseudo: int) -> float:
    candidates = _GRID[merit >= merit.max() - _LEVEL]
    fitted = float(min(candidates, key=lambda t: abs(t - usual)))
    trust = rows / (rows + pseudo)
    return float(round(usual + trust * (fitted - usual), 4))
