"""Measures of one choice among a few: confusion, precision, recall, F1, calibration.

Every measure takes weights, how often each row counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentkit.evaluation.resampling import Floats, Weights

Classes: TypeAlias = NDArray[np.int64]
"""`(rows,)`: the number of each row's class; -1 in what was said is none of them."""

BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class PerClass:
    """`(classes,)` each; 0 where a share is of nothing, as scikit-learn's `zero_division=0`."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Floats
    """Rows of the class."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The rows whose confidence lies within `[low, high)`; the last bin holds its end too."""

    low: float
    high: float
    rows: float
    confidence: float
    """Mean; 0 in an empty bin, as is `accuracy`."""
    accuracy: float


def confusion(gold: Classes, said: Classes, classes: int, weights: Weights) -> Floats:
    """`(classes, classes + 1)`: rows by right class and by said one; the last column is none."""
    column = np.where(said < 0, classes, said)
    flat = np.bincount(
        gold * (classes + 1) + column, weights=weights, minlength=classes * (classes + 1)
    )
    return flat.astype(np.float64).reshape(classes, classes + 1)


def per_class(counts: Floats) -> PerClass:
    """Precision, recall and F1 of each class of a confusion matrix."""
    hits = np.diagonal(counts)
    support, said = counts.sum(axis=1), counts[:, :-1].sum(axis=0)
    return PerClass(
        precision=_share(hits, said),
        recall=_share(hits, support),
        f1=_share(2 * hits, support + said),
        support=support,
    )


def f1_by_class(counts: Floats) -> list[float | None]:
    """The F1 of each class of a confusion matrix; None for one that is neither right nor said."""
    occurs = (counts.sum(axis=1) + counts[:, :-1].sum(axis=0)) > 0
    each = per_class(counts).f1
    return [float(f1) if there else None for f1, there in zip(each, occurs, strict=True)]


def accuracy(counts: Floats) -> float | None:
    """Share of the rows on the diagonal; None without rows."""
    total = counts.sum()
    return float(np.trace(counts) / total) if total else None


def macro_f1(counts: Floats) -> float | None:
    """Mean F1 over the classes that are right or said at least once, as scikit-learn takes it."""
    occurs = (counts.sum(axis=1) + counts[:, :-1].sum(axis=0)) > 0
    return float(per_class(counts).f1[occurs].mean()) if occurs.any() else None


def reliability(confidence: Floats, right: Floats, weights: Weights) -> list[Bin]:
    """`BINS` bins of equal width over the confidence."""
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    rows = np.bincount(place, weights=weights, minlength=BINS)
    sure = _share(np.bincount(place, weights=weights * confidence, minlength=BINS), rows)
    hits = _share(np.bincount(place, weights=weights * right, minlength=BINS), rows)
    return [
        Bin(b / BINS, (b + 1) / BINS, float(rows[b]), float(sure[b]), float(hits[b]))
        for b in range(BINS)
    ]


def reliability_rows(confidence: Floats, right: Floats, weights: Weights) -> list[dict[str, float]]:
    """The bins of `reliability` as plain JSON."""
    return [
        {
            "from": one.low,
            "to": one.high,
            "rows": int(one.rows),
            "confidence": round(one.confidence, 4),
            "accuracy": round(one.accuracy, 4),
        }
        for one in reliability(confidence, right, weights)
    ]


def calibration_error(confidence: Floats, right: Floats, weights: Weights) -> float | None:
    """Expected calibration error: mean distance of confidence and accuracy over the bins.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """
    total = float(weights.sum())
    if not total:
        return None
    bins = reliability(confidence, right, weights)
    return sum(one.rows * abs(one.accuracy - one.confidence) for one in bins) / total


def brier(confidence: Floats, right: Floats, weights: Weights) -> float | None:
    """Mean squared distance of the confidence in what was said from whether it was right.

    Brier, "Verification of forecasts expressed in terms of probability", 1950, on the event that
    the answer is right.
    """
    total = float(weights.sum())
    return float((weights * (confidence - right) ** 2).sum() / total) if total else None


def numbered(names: Sequence[str], classes: Sequence[str]) -> Classes:
    """Names as numbers of classes; -1 for what is none of them."""
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place.get(name, -1) for name in names], dtype=np.int64)


def _share(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    share: Floats = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return share
