"""Signs that a text is for some skill at all, and for examples what they would be without them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agentkit.routing.lexical import NaiveBayes
from agentkit.routing.regression import Array
from agentkit.routing.views import Views

__all__ = ["COSINE", "SIGNS_TRUST", "USUAL_SIGNS", "held_out_signals", "nearness", "signals_of"]

Rows = NDArray[np.intp]

USUAL_SIGNS = np.array([1.0, -0.5, 8.0, -4.0, 2.0, 0.3, -3.0])
"""Coefficients of the signs before examples say otherwise."""
SIGNS_TRUST = np.array([4.0, 4.0, 1.0, 1.0, 2.0, 4.0, 1.0])
"""Precisions of their prior."""
COSINE = 2
"""The column of the nearness to the skill's examples."""
_NEAREST = 3
"""Examples that a text is compared with: one alone may be near by chance, as examples written in
one sitting are to each other. Chosen by cross-validation on training data."""


def signals_of(
    logits: Array,
    best: Rows,
    distance: Array,
    cosine: Array,
    background_cosine: Array,
    coverage: Array,
) -> Array:
    """Signs `(n, 7)` that a text belongs to its best skill: how far that leads the background,
    its Mahalanobis distance, how near its nearest examples and the nearest of the background are,
    the share of its terms that are known, how far the best skill leads the second (Hendrycks and
    Gimpel, ICLR 2017), and one.

    Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection" (2021), take
    the first of them, against a class of everything; Sun et al., "Out-of-Distribution Detection
    with Deep Nearest Neighbors" (ICML 2022), the third.
    """
    skills = logits[:, :-1]
    rows = np.arange(len(logits))
    top = skills[rows, best]
    others = skills.copy()
    others[rows, best] = -np.inf
    second = others.max(axis=1, initial=-np.inf)
    lead = np.clip(top - second, 0.0, 8.0) / 4
    return np.stack(
        [
            np.clip(top - logits[:, -1], -12.0, 12.0) / 4,
            np.log(np.maximum(distance[rows, best], 1e-3)),
            cosine,
            background_cosine,
            coverage,
            lead,
            np.ones(len(logits)),
        ],
        axis=1,
    )


def held_out_signals(
    logits: Array,
    distance: Array,
    rows: Views,
    own: Rows,
    place: Rows,
    every: Views,
    starts: Rows,
    words: NaiveBayes,
) -> Array:
    """`signals_of` examples as if each had not been there.

    `logits` and `distance` are held out already. `own` `(n,)` are the classes of `rows`, whose
    places among all examples (`every`, in the order of classes, which begin at `starts`) are
    `place`.
    """
    count = logits.shape[1] - 1
    best = logits[:, :count].argmax(axis=1)
    ends = [*starts[1:], len(every)]
    cosine = np.zeros(len(rows))
    background = rows.dense @ every.dense[starts[count] :].T
    outside = np.flatnonzero(own == count)
    background[outside, place[outside] - starts[count]] = -1.0
    held = best == own
    coverage = words.coverage(rows.words, best, held)
    for row, k in enumerate(best):
        cosines = every.dense[starts[k] : ends[k]] @ rows.dense[row]
        if held[row]:
            cosines[place[row] - starts[k]] = -1.0
        cosine[row] = nearness(cosines)
    return signals_of(logits, best, distance, cosine, background.max(axis=1), coverage)


def nearness(cosines: NDArray[np.float32]) -> float:
    """How near the nearest of `cosines` `(n,)` are; examples are not counted beside themselves."""
    few = min(_NEAREST, len(cosines) - 1) or 1
    return float(np.partition(cosines, -few)[-few:].mean())
