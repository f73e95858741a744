"""A multinomial logistic head, trained for a fixed number of steps on batches in a fixed order.

Discriminants assume how examples scatter, which is a gain while they are few; a logistic head looks
only at what parts the skills, and does better on requests unlike the examples (Ng and Jordan, "On
Discriminative vs. Generative Classifiers", NeurIPS 2001). Steps are Adam's (Kingma and Ba, ICLR
2015), and the weights are averaged over the second half of them (Polyak and Juditsky, 1992). They
begin at what the discriminants found, which spares more than half of the steps.
The time is bounded whatever the number of examples, and the same examples give the same head.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

_STEPS = 50
_BATCH = 500
_RATE = 0.15
_START = 0.03
"""Share of the discriminants' directions to start from: about what calibration gives them where
examples are many."""
_SHRINK = 1e-5
_FIRST, _SECOND = 0.9, 0.99


def fit_head(
    features: NDArray[np.float32], label: NDArray[np.intp], directions: NDArray[np.float64]
) -> Weights:
    """`(dimension, classes)`: what features are multiplied by to give logits.

    `features` `(n, dimension)` are in the order of their classes, so that every batch, which takes
    rows evenly spaced, has its share of each class. `directions` `(dimension, classes)` are the
    discriminants'.
    """
    weights = (_START * directions).astype(np.float32)
    average, momentum, scale = np.zeros((3, *weights.shape), np.float32)
    batches = max(1, round(len(features) / _BATCH))
    for step in range(_STEPS):
        # Neighbours are alike: batches follow each other by a stride that is prime to most counts.
        rows = slice(step * 7 % batches if batches % 7 else step % batches, None, batches)
        some, wanted = features[rows], label[rows]
        share = some @ weights
        share -= share.max(axis=1, keepdims=True)
        np.exp(share, out=share)
        share /= share.sum(axis=1, keepdims=True)
        share[np.arange(len(wanted)), wanted] -= 1.0
        slope = some.T @ share / np.float32(len(wanted)) + np.float32(_SHRINK) * weights
        momentum += np.float32(1 - _FIRST) * (slope - momentum)
        scale += np.float32(1 - _SECOND) * (slope * slope - scale)
        rate = np.float32(_RATE * np.sqrt(1 - step / _STEPS) / (1 - _FIRST ** (step + 1)))
        root = np.sqrt(scale / np.float32(1 - _SECOND ** (step + 1))) + np.float32(1e-8)
        weights -= rate * momentum / root
        if step >= _STEPS // 2:
            average += weights
    return np.asarray(average / np.float32(_STEPS - _STEPS // 2))
