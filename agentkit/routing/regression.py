"""Small regularised regressions by Newton's method: convex, so each has one answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_STEPS = 25
_SETTLED = 1e-9


def softmax(logits: Array) -> Array:
    """Along the last axis; entries of minus infinity get nothing."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def blend(
    views: Array, label: NDArray[np.intp], weight: Array, usual: Array, trust: float
) -> Array:
    """How much each of several scorings counts: the shares under whose sum the labels are
    likeliest.

    `views` `(m, n, classes)` are scores of `n` rows, `label` and `weight` `(n,)`. The answer
    `(m,)` is at least 0 and drawn towards `usual` as by `trust` rows that prove it. With one view
    this is temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017).
    """
    shares = usual.copy()
    rows = np.arange(len(label))
    own = views[:, rows, label]

    def loss(at: Array) -> float:
        logits = np.tensordot(at, views, 1)
        highest = logits.max(axis=1)
        partition = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        penalty = trust * float((((at - usual) / usual) ** 2).sum()) / 2
        return float((weight * (partition - logits[rows, label])).sum()) + penalty

    now = loss(shares)
    for _ in range(_STEPS):
        share = softmax(np.tensordot(shares, views, 1))
        mean = np.einsum("mnk,nk->mn", views, share)
        slope = ((mean - own) * weight).sum(axis=1) + trust * (shares - usual) / usual**2
        weighted = views * (share * weight[:, None])
        curve = np.tensordot(weighted, views, ([1, 2], [1, 2])) - (mean * weight) @ mean.T
        curve += np.diag(trust / usual**2)
        # Shares at zero that would go below it stay there while the others move.
        free = np.flatnonzero((shares > 0.0) | (slope < 0.0))
        step, scale = np.zeros_like(shares), 1.0
        step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        while scale > 1e-4:
            tried = np.maximum(shares - scale * step, 0.0)
            then = loss(tried)
            if then <= now:
                break
            scale /= 2
        else:
            break
        moved = float(np.abs(tried - shares).max())
        shares, now = tried, then
        if moved < _SETTLED:
            break
    return shares


def logistic(signals: Array, inside: Array, weight: Array, usual: Array, trust: Array) -> Array:
    """Coefficients `(m,)` of a logistic regression of `inside` (0 or 1) on `signals` `(n, m)`,
    with a Gaussian prior around `usual` of precisions `trust` `(m,)`."""
    at = usual.copy()

    def loss(at: Array) -> float:
        logits = signals @ at
        fit = np.logaddexp(0.0, logits) - inside * logits
        return float((weight * fit).sum() + (trust * (at - usual) ** 2).sum() / 2)

    now = loss(at)
    for _ in range(_STEPS):
        share = sigmoid(signals @ at)
        slope = signals.T @ (weight * (share - inside)) + trust * (at - usual)
        curve = (signals.T * (weight * share * (1 - share))) @ signals + np.diag(trust + 1e-9)
        step, scale = np.linalg.solve(curve, slope), 1.0
        while scale > 1e-4 and loss(at - scale * step) > now:
            scale /= 2
        moved = float(np.abs(scale * step).max())
        at = at - scale * step
        now = loss(at)
        if moved < _SETTLED or scale <= 1e-4:
            break
    return at
