"""Linear discriminants over sentence vectors, with closed-form held-out scores.

Classes with one covariance, pooled and shrunk (Fisher, 1936; Friedman, "Regularized Discriminant
Analysis", 1989). It needs no iteration, one skill more changes little of it, and what it says of a
class is a Mahalanobis distance, which also tells what belongs to no class (Lee et al., "A Simple
Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_PRIOR = 1.6
"""Pseudo-examples per dimension that speak for a round covariance: 768 dimensions and 100
utterances for each of 150 skills give a shrinkage of a tenth, three utterances one of four
fifths."""


@dataclass(frozen=True, slots=True, eq=False)
class Discriminant:
    """Fitted; classes are columns."""

    whitening: Array
    """`(dimension, dimension)`: row vectors times this have a round within-class covariance."""
    means: Array
    """`(classes, dimension)`, whitened."""
    sizes: Array
    """`(classes,)`: summed example weights."""
    rows: float
    """Summed example weights behind the covariance, the prior's with them."""

    @classmethod
    def fit(cls, moment: NDArray[np.floating], sums: Array, sizes: Array) -> Discriminant:
        """Of weighted examples, by what is summed over them: `moment` `(dimension, dimension)`,
        the products of each with itself; `sums` `(classes, dimension)`; and `sizes` `(classes,)`,
        their weights, of which each class has some."""
        means = sums / sizes[:, None]
        scatter = moment.astype(np.float64) - (means * sizes[:, None]).T @ means
        classes, dimension = sums.shape
        free = max(float(sizes.sum()) - classes, 0.0)
        shrinkage = _PRIOR * dimension / (_PRIOR * dimension + free)
        level = float(np.trace(scatter)) / dimension / free if free > 0 else 0.0
        if level <= 0.0:  # one example a class: any round covariance
            level, free, shrinkage = 1.0 / dimension, 1.0, 1.0
        covariance = (1.0 - shrinkage) * scatter / free
        covariance[np.diag_indices(dimension)] += shrinkage * level
        lower = np.linalg.cholesky(covariance)
        whitening = _inverse(lower).T
        return cls(whitening, means @ whitening, sizes, free / (1.0 - min(shrinkage, 1 - 1e-9)))

    def directions(self, classes: int) -> Array:
        """`(dimension, classes)`: what of the first `classes` tells each from their mean."""
        means = self.means[:classes]
        return np.asarray(self.whitening @ (means - means.mean(axis=0)).T)

    def scores(self, features: NDArray[np.float32]) -> tuple[Array, Array]:
        """Log likelihood ratios `(n, classes)` and squared Mahalanobis distances by dimension."""
        return self._of(features @ self.whitening)

    def held_out(
        self, features: NDArray[np.float32], label: NDArray[np.intp], weight: Array
    ) -> tuple[Array, Array]:
        """`scores` of examples as if each had been left out of its class's mean and of the
        covariance (Sherman and Morrison, 1950)."""
        white = features @ self.whitening
        own = self.sizes[label]
        left = np.maximum(own - weight, 1e-9)
        alone = own - weight < 1e-6
        away = white - self.means[label]
        factor = np.where(alone, 0.0, weight * own / left) / self.rows
        # The covariance without the row is the identity less factor * away away^T.
        gain = factor / np.maximum(1.0 - factor * (away**2).sum(axis=1), 0.05)
        means = self.means[label] - away * np.where(alone, 0.0, weight / left)[:, None]
        inner = white @ self.means.T
        square = np.broadcast_to((self.means**2).sum(axis=1), inner.shape).copy()
        rows = np.arange(len(white))
        inner[rows, label] = (white * means).sum(axis=1)
        square[rows, label] = (means**2).sum(axis=1)
        along = away @ self.means.T
        along[rows, label] = (away * means).sum(axis=1)
        across = (white * away).sum(axis=1)[:, None]
        inner = inner + gain[:, None] * across * along
        square = square + gain[:, None] * along**2
        norm = (white**2).sum(axis=1)[:, None] + gain[:, None] * across**2
        ratio = inner - square / 2
        # A class of one example has nothing left: it counts as the mean of all.
        ratio[rows[alone], label[alone]] = 0.0
        return ratio, (norm - 2 * ratio) / white.shape[1]

    def _of(self, white: Array) -> tuple[Array, Array]:
        ratio = white @ self.means.T - (self.means**2).sum(axis=1) / 2
        return ratio, ((white**2).sum(axis=1)[:, None] - 2 * ratio) / white.shape[1]


def _inverse(lower: Array) -> Array:
    """Of a lower triangular matrix; by its halves, since numpy has none that spares the zeros."""
    half = len(lower) // 2
    if half < 64:
        return np.asarray(np.linalg.inv(lower))
    result = np.zeros_like(lower)
    first, last = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    result[:half, :half], result[half:, half:] = first, last
    result[half:, :half] = -last @ (lower[half:, :half] @ first)
    return result
