"""Fitting of scores, confidences and a threshold from each skill's own examples; pure numpy.

The head is a ridge classifier: linear in the features, one column per skill and one for the
background (what no skill is for), each column's examples weighing the same in sum. Its
leave-one-out predictions have a closed form (Allen's PRESS; Rifkin and Lippert, "Notes on
Regularized Least Squares", 2007), so the strength of the ridge, the temperature that turns scores
into probabilities and the threshold are all fitted on held-out predictions, and the same examples
always give the same router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RIDGES = np.geomspace(0.05, 20.0, 14)
_TEMPERATURES = np.geomspace(0.02, 1.0, 40)
_MASS = 10.0
"""Sum of a column's example weights, so that a ridge means the same for 3 examples and 300."""
_FEW = 2.0
"""Pseudo-examples by which a skill with few examples weighs less."""
_DESCRIPTION_WEIGHT = 0.5
_BARE_PRIOR = 0.8
"""The most confidence in a skill that is known by its description only."""
_BARE_RANGE = (0.25, 0.6)
"""Cosine to the description at which that confidence begins and is full."""
_BARE_RIVAL = 0.4
_BARE_TEMPERATURE = 0.1
"""Background's score, and the temperature, where every skill is bare and nothing can be fitted."""
_THRESHOLD_EXAMPLES = 40
"""Pseudo-examples that speak for the usual threshold, so that few real ones move it little."""
_NEAR_QUANTILE = 0.1
_NEAR_RANGE = (0.2, 0.45)
_ALIKE = 0.5
"""Cosine from which a background example may be about the same thing as an utterance."""


@dataclass(frozen=True, slots=True)
class Examples:
    """One skill's examples: rows are its description first, then its utterances."""

    name: str
    features: Array
    """`(1 + utterances, dimension)`."""
    vectors: Array
    """`(1 + utterances, vector dimension)`, rows of unit length."""

    @property
    def bare(self) -> bool:
        return len(self.features) == 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a router says of `m` queries, for its skills in the order of `Router.names`."""

    scores: Array
    """`(m, skills)`: confidence in [0, 1]; a row sums to at most 1."""
    nearest: Array
    """`(m, skills)`: cosine to the skill's nearest example."""
    nearest_row: NDArray[np.intp]
    """`(m, skills)`: which of the skill's rows that is."""


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """A fitted router; frozen, so that threads may share it."""

    names: tuple[str, ...]
    threshold: float
    """The least confidence to accept, fitted on held-out predictions."""
    ridge: float
    temperature: float
    near: float
    """Cosine to the nearest example below which confidence falls off in proportion."""
    background_kept: int
    weights: Array
    """`(dimension + 1, fitted skills + 1)`; the last row is the intercept, the last column the
    background."""
    fitted: tuple[int, ...]
    """Which skills the columns of `weights` are for: those with utterances."""
    vectors: tuple[Array, ...]

    def predict(
        self, features: Array, vectors: Array, columns: Sequence[int] | None = None
    ) -> Prediction:
        """Scores of queries by `features` `(m, dimension)` and `vectors` `(m, vector dimension)`.

        With `columns`, only those skills compete (with each other and the background); the others
        score 0.
        """
        count = len(self.names)
        chosen = set(range(count) if columns is None else columns)
        nearest = np.zeros((len(features), count))
        rows = np.zeros(nearest.shape, dtype=np.intp)
        for k, own in enumerate(self.vectors):
            cosines = vectors @ own.T
            rows[:, k] = cosines.argmax(axis=1)
            nearest[:, k] = cosines.max(axis=1)
        fitted = list(self.fitted)
        bare = sorted(set(range(count)) - set(fitted))
        raw = np.full((len(features), count + 1), -np.inf)
        raw[:, [*fitted, count]] = _with_intercept(features) @ self.weights
        raw[:, bare] = _bare_scores(nearest[:, bare])
        raw[:, [k for k in range(count) if k not in chosen]] = -np.inf
        # The background was no example of a skill with utterances; it may be one of a bare skill.
        rivals = [k for k in bare if k in chosen]
        raw[:, count] *= 1.0 - raw[:, rivals].max(axis=1, initial=0.0)
        scores = _softmax(raw / self.temperature)[:, :-1]
        scores[:, fitted] *= _gate(nearest[:, fitted], self.near)
        scores[:, bare] *= _BARE_PRIOR
        return Prediction(scores=scores, nearest=nearest, nearest_row=rows)


def fit(skills: Sequence[Examples], background: Array, background_vectors: Array) -> Router:
    """A router over `skills`, at least one, in any order (it sorts them by name).

    `background` `(n, dimension)` and `background_vectors` are examples of what no skill is for;
    those that resemble a skill's own examples are left out.
    """
    every = sorted(skills, key=lambda skill: skill.name)
    fitted = tuple(k for k, skill in enumerate(every) if not skill.bare)
    ordered = [every[k] for k in fitted]
    count = len(ordered)
    keep = _unlike(every, background_vectors)
    rows, kept = [len(skill.features) for skill in ordered], int(keep.sum())
    design = _with_intercept(np.vstack([skill.features for skill in ordered] + [background[keep]]))
    label = np.repeat(np.arange(count + 1), [*rows, kept])
    weight = np.concatenate([_weights(skill) for skill in ordered] + [np.full(kept, _MASS / kept)])
    ridge, weights, held_out = _ridge(design, np.eye(count + 1)[label], weight)

    # Descriptions are written about a task and utterances by those who want it: queries are like
    # the latter, which alone are held out below.
    judged = np.ones(len(label), dtype=bool)
    judged[_starts(rows)] = False
    temperature, near, threshold = _BARE_TEMPERATURE, _NEAR_RANGE[1], _usual_threshold(1)
    if not count:
        weights = np.vstack([np.zeros((design.shape[1] - 1, 1)), [[_BARE_RIVAL]]])
    else:
        temperature = _temperature(held_out[judged], label[judged], weight[judged])
        distance = _held_out_nearest(ordered, background_vectors[keep])
        near = _near(distance[judged], label[judged], count)
        confidence = _softmax(held_out / temperature)[:, :-1] * _gate(distance, near)
        threshold = _threshold(confidence[judged], label[judged], count)
    return Router(
        names=tuple(skill.name for skill in every),
        threshold=threshold,
        ridge=ridge,
        temperature=temperature,
        near=near,
        background_kept=kept,
        weights=weights,
        fitted=fitted,
        vectors=tuple(skill.vectors for skill in every),
    )


def _weights(skill: Examples) -> Array:
    utterances = len(skill.features) - 1
    weight = np.ones(len(skill.features))
    weight[0] = _DESCRIPTION_WEIGHT
    mass = _MASS * (utterances + 1) / (utterances + 1 + _FEW)
    return np.asarray(weight * (mass / weight.sum()))


def _unlike(skills: Sequence[Examples], background: Array) -> NDArray[np.bool_]:
    """Which background examples are farther from every skill than its examples from each other."""
    keep = np.ones(len(background), dtype=bool)
    for skill in skills:
        within = skill.vectors @ skill.vectors.T
        np.fill_diagonal(within, -1.0)
        usual = float(np.quantile(within.max(axis=1), 0.25)) if len(skill.vectors) > 2 else _ALIKE
        keep &= (background @ skill.vectors.T).max(axis=1) < max(_ALIKE, usual)
    if not keep.any():
        # Something must stand for `none of these`: the examples least like any skill.
        every = np.vstack([skill.vectors for skill in skills])
        keep[np.argsort((background @ every.T).max(axis=1), kind="stable")[:10]] = True
    return keep


def _ridge(design: Array, target: Array, weight: Array) -> tuple[float, Array, Array]:
    """The strongest ridge within one standard error of the best held-out error, its weights, and
    the held-out predictions `(n, columns)`."""
    root = np.sqrt(weight)[:, None]
    left, singular, right = np.linalg.svd(design * root, full_matrices=False)
    projected = left.T @ (target * root)
    results = []
    for ridge in _RIDGES:
        shrink = (singular**2 / (singular**2 + ridge))[:, None]
        fitted = left @ (shrink * projected)
        leverage = (left**2) @ shrink
        residual = (target * root - fitted) / np.maximum(1.0 - leverage, 1e-9)
        held_out = target - residual / root
        errors = ((target - held_out) ** 2).sum(axis=1)
        mean = float(np.average(errors, weights=weight))
        spread = float(np.average((errors - mean) ** 2, weights=weight))
        results.append((mean, np.sqrt(spread / len(errors)), held_out))
    best_mean, best_error, _ = min(results, key=lambda result: result[0])
    choice = max(i for i, result in enumerate(results) if result[0] <= best_mean + best_error)
    ridge = float(_RIDGES[choice])
    shrink = (singular / (singular**2 + ridge))[:, None]
    return ridge, right.T @ (shrink * projected), results[choice][2]


def _temperature(held_out: Array, label: NDArray[np.intp], weight: Array) -> float:
    """The temperature under which the held-out predictions are likeliest."""

    def loss(temperature: float) -> float:
        likelihood = _softmax(held_out / temperature)[np.arange(len(label)), label]
        return float(np.average(-np.log(np.maximum(likelihood, 1e-12)), weights=weight))

    return float(min(_TEMPERATURES, key=loss))


def _starts(rows: Sequence[int]) -> list[int]:
    """The row of each skill's description."""
    return [sum(rows[:k]) for k in range(len(rows))]


def _held_out_nearest(skills: Sequence[Examples], background: Array) -> Array:
    """`(n, skills)`: cosine of each example to each skill's nearest example but itself."""
    every = np.vstack([skill.vectors for skill in skills] + [background])
    nearest = np.zeros((len(every), len(skills)))
    starts = _starts([len(skill.vectors) for skill in skills])
    for k, skill in enumerate(skills):
        cosines = every @ skill.vectors.T
        own = np.arange(len(skill.vectors))
        cosines[starts[k] + own, own] = -1.0
        nearest[:, k] = cosines.max(axis=1)
    return nearest


def _near(nearest: Array, label: NDArray[np.intp], count: int) -> float:
    inside = np.flatnonzero(label < count)
    own = nearest[inside, label[inside]]
    return float(np.clip(np.quantile(own, _NEAR_QUANTILE), *_NEAR_RANGE))


def _threshold(confidence: Array, label: NDArray[np.intp], count: int) -> float:
    """The threshold that parts held-out examples best (skills' examples accepted for their own
    skill, background examples refused), drawn towards the usual one as far as they are few."""
    best = confidence.max(axis=1)
    right = confidence.argmax(axis=1) == label
    inside = label < count
    grid = np.linspace(0.15, 0.8, 66)
    accepted = np.array([(best[inside] >= t)[right[inside]].sum() / inside.sum() for t in grid])
    refused = np.array([(best[~inside] < t).mean() for t in grid])
    merit = accepted + refused
    candidates = grid[merit >= merit.max() - 0.01]
    usual = _usual_threshold(count)
    fitted = float(min(candidates, key=lambda t: abs(t - usual)))
    trust = inside.sum() / (inside.sum() + _THRESHOLD_EXAMPLES)
    return float(round(usual + trust * (fitted - usual), 4))


def _usual_threshold(skills: int) -> float:
    """Something fits rather than nothing (one half), and the best skill holds a fair part of it."""
    return 0.25 * (1.0 + 1.0 / skills)


def _with_intercept(features: Array) -> Array:
    return np.hstack([features, np.ones((len(features), 1))])


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _gate(nearest: Array, near: float) -> Array:
    return np.clip(nearest / near, 0.0, 1.0)


def _bare_scores(nearest: Array) -> Array:
    """On the scale of the ridge's columns, where 1 is a certain example and 0 a certain other."""
    low, high = _BARE_RANGE
    return np.asarray(_BARE_PRIOR * np.clip((nearest - low) / (high - low), 0.0, 1.0))
