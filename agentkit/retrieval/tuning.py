"""Fits the tuned reranker: listwise softmax loss by Adam, in numpy, in seconds.

A group is one question over one document (or over passages put together). The loss is the cross
entropy between the softmax of the group's scores and an even share for each relevant passage
(ListNet; Cao et al., 2007). The features' weights are fitted on whole documents first, and
kept while the bilinear part is fitted, so that they stay right for questions of which nothing was
learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentkit.retrieval.rerank_head import FEATURES, SCALE, Head
from agentkit.types import Vectors

Floats = NDArray[np.float32]
_BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A question, its passages, and which of them are relevant (one at least)."""

    query: Vectors
    """`(dimension,)`"""
    vectors: Vectors
    """`(n, dimension)`"""
    features: Floats
    """`(n, features)`; all zero after the first three columns where passages have no order."""
    relevant: NDArray[np.bool_]
    """`(n,)`"""
    whole: bool = True
    """Of a whole document, so that the features' weights can be fitted on it."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How to fit."""

    rank: int = 64
    weight_epochs: int = 12
    epochs: int = 3
    rate: float = 1e-3
    decay: float = 1e-2
    trust: float = 0.75
    """What the bilinear part is scaled by afterwards. Full trust is best for the questions that it
    was tuned on, none for the first place of others; between the two both gain."""
    seed: int = 7


def fit(groups: Sequence[Group], encoder: str, tuning: Tuning | None = None) -> Head:
    """A head fitted to the groups. Raises ValueError without a group of a whole document."""
    tuning = tuning or Tuning()
    whole = [group for group in groups if group.whole]
    if not whole:
        raise ValueError("no group of a whole document to fit the features' weights on")
    weights = fit_weights(whole, tuning)
    left, right, bias = _fit_bilinear(groups, weights, tuning)
    return Head(weights, tuning.trust * left, right, tuning.trust * bias, encoder)


def fit_weights(groups: Sequence[Group], tuning: Tuning) -> Floats:
    """`(features,)`: the weights of the features alone."""
    random = np.random.default_rng(tuning.seed)
    weights = np.zeros(len(FEATURES), dtype=np.float32)
    adam = _Adam({"weights": weights}, rate=0.05, decay=1e-3)
    for batch, left in _batches(len(groups), tuning.weight_epochs, random):
        gradient = np.zeros_like(weights)
        for index in batch:
            group = groups[index]
            slope = _slope(group.features @ weights, group.relevant)
            gradient += group.features.T @ slope / len(batch)
        adam.step({"weights": gradient}, left)
    return weights


def _fit_bilinear(
    groups: Sequence[Group], weights: Floats, tuning: Tuning
) -> tuple[Floats, Floats, Floats]:
    random = np.random.default_rng(tuning.seed)
    dimension = groups[0].query.shape[0]
    left = random.normal(0, 0.02, (dimension, tuning.rank)).astype(np.float32)
    right = np.zeros((dimension, tuning.rank), dtype=np.float32)
    bias = np.zeros(dimension, dtype=np.float32)
    adam = _Adam({"left": left, "right": right, "bias": bias}, tuning.rate, tuning.decay)
    base = [group.features @ weights for group in groups]
    for batch, remaining in _batches(len(groups), tuning.epochs, random):
        slopes = {"left": np.zeros_like(left), "right": np.zeros_like(right)}
        slopes["bias"] = np.zeros_like(bias)
        for index in batch:
            group = groups[index]
            asked = right.T @ group.query
            scores = base[index] + SCALE * (group.vectors @ (left @ asked + bias))
            pull = SCALE * (group.vectors.T @ _slope(scores, group.relevant)) / len(batch)
            slopes["left"] += np.outer(pull, asked)
            slopes["right"] += np.outer(group.query, left.T @ pull)
            slopes["bias"] += pull
        adam.step(slopes, remaining)
    return left, right, bias


def _slope(scores: Floats, relevant: NDArray[np.bool_]) -> Floats:
    """Gradient of the loss by the scores: softmax less the share of each relevant passage."""
    share = np.exp(scores - scores.max())
    return np.asarray(share / share.sum() - relevant / relevant.sum(), dtype=np.float32)


def _batches(
    count: int, epochs: int, random: np.random.Generator
) -> list[tuple[NDArray[np.intp], float]]:
    """Shuffled batches of indices, and what share of the steps is left at each."""
    batches = [
        order[at : at + _BATCH]
        for order in (random.permutation(count) for _ in range(epochs))
        for at in range(0, count, _BATCH)
    ]
    return [(batch, 1.0 - step / len(batches)) for step, batch in enumerate(batches)]


class _Adam:
    """Stateful: moves the arrays in place. AdamW (Loshchilov and Hutter, 2019), linear decay."""

    def __init__(self, arrays: Mapping[str, Floats], rate: float, decay: float) -> None:
        self._arrays = arrays
        self._rate, self._decay = rate, decay
        self._first = {name: np.zeros_like(array) for name, array in arrays.items()}
        self._second = {name: np.zeros_like(array) for name, array in arrays.items()}
        self._steps = 0

    def step(self, slopes: Mapping[str, Floats], share: float) -> None:
        self._steps += 1
        for name, array in self._arrays.items():
            first, second, slope = self._first[name], self._second[name], slopes[name]
            first *= 0.9
            first += 0.1 * slope
            second *= 0.99
            second += 0.01 * slope * slope
            move = first / (1 - 0.9**self._steps)
            move /= np.sqrt(second / (1 - 0.99**self._steps)) + 1e-8
            array -= self._rate * share * (move + self._decay * array)
