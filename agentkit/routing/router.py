"""Scores and confidences of texts, fitted from each skill's own examples.

Three scorings of a text are added up: linear discriminants over its sentence vector, and naive
Bayes over its words and over its letters; their sum is pooled with a logistic head. Whether a text
is for any skill at all is a question of its own, put to a logistic regression over signs of
belonging (`_signals`).

The sum, the signs and the thresholds are fitted on held-out scores in closed form: each example is
scored as if it had not been there, and once more as if its skill had not been there, when it is a
request that no skill is for. Nothing is drawn at random: the same examples always give the same
router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentkit.routing.discriminant import Discriminant
from agentkit.routing.head import fit_head
from agentkit.routing.lexical import NaiveBayes, count_terms
from agentkit.routing.regression import Array, blend, logistic, sigmoid, softmax
from agentkit.routing.thresholds import fit_thresholds, usual_threshold
from agentkit.routing.views import Views, join

__all__ = ["Array", "Examples", "Prediction", "Router", "fit"]

Rows = NDArray[np.intp]

_DESCRIPTION_WEIGHT = 0.5
_JUDGED = 1000
"""Held-out rows that calibration looks at, at most; evenly from all skills."""
_USUAL_SHARES = np.array([0.15, 0.15, 0.08])
"""Of discriminants, words and letters, before examples say otherwise."""
_SHARES_TRUST = 20.0
_USUAL_SIGNS = np.array([1.0, -0.5, 8.0, -4.0, 2.0, 0.3, -3.0])
_SIGNS_TRUST = np.array([4.0, 4.0, 1.0, 1.0, 2.0, 4.0, 1.0])
_WITHOUT_SKILL = 0.5
"""Share of the weight of requests for no skill that examples without their skill have; the
background has the rest."""
_RELATIVES = 0.1
"""Share of a skill's examples that may be as near to a text by chance, as examples written in one
sitting are to each other."""
_COSINE = 2
"""The column of `_signals` with the cosine to the skill's examples."""
_ALIKE = 0.5
"""Cosine from which a background example may be about the same thing as an utterance."""
_BARE_PRIOR = 0.8
"""The most confidence in a skill that is known by its description only."""
_BARE_RANGE = (0.25, 0.6)
"""Cosine to the description at which that confidence begins and is full."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """One skill's examples: rows are its description first, then its utterances."""

    name: str
    views: Views
    words: NDArray[np.float32]
    letters: NDArray[np.float32]
    """Both `(lexical.BUCKETS,)`: what `count_terms` gives."""

    @classmethod
    def of(cls, name: str, views: Views) -> Examples:
        return cls(name, views, count_terms(views.words), count_terms(views.letters))

    @property
    def bare(self) -> bool:
        return len(self.views) == 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a router says of `n` queries, for its skills in the order of `Router.names`."""

    scores: Array
    """`(n, skills)`: confidence in [0, 1]; a row sums to at most 1."""
    belongs: Array
    """`(n,)`: confidence that any of the skills is for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """A fitted router; frozen, so that threads may share it."""

    names: tuple[str, ...]
    threshold: float
    """The least confidence to accept, fitted on held-out scores of all skills."""
    thresholds: Array
    """`(skills,)`: the same for each skill, as far as its own examples say otherwise."""
    shares: Array
    """`(3,)`: what discriminants, words and letters count."""
    signs: Array
    """`(7,)`: coefficients of `_signals`."""
    background_kept: int
    fitted: Rows
    """Which skills have utterances; the classes of the models below, which have the background as
    one more."""
    head: NDArray[np.float32]
    """`(dimension, fitted skills)`."""
    discriminant: Discriminant
    words: NaiveBayes
    letters: NaiveBayes
    examples: tuple[Examples, ...]
    background: Views

    def predict(self, views: Views, columns: Sequence[int] | None = None) -> Prediction:
        """Confidences of queries.

        With `columns`, only those skills compete; the others score 0.
        """
        count = len(self.names)
        chosen = np.zeros(count, dtype=bool)
        chosen[np.arange(count) if columns is None else list(columns)] = True
        scores = np.zeros((len(views), count))
        belongs = np.zeros(len(views))
        fitted = self.fitted
        if chosen[fitted].any():
            ratio, distance = self.discriminant.scores(views.dense)
            logits = np.tensordot(
                self.shares,
                np.stack(
                    [ratio, self.words.scores(views.words), self.letters.scores(views.letters)]
                ),
                1,
            )
            # Each is calibrated by itself: their mean is a pool of two opinions.
            # In double precision, so that a batch says what each of its queries does alone.
            dense = views.dense.astype(np.float64)
            pooled = (logits[:, :-1] + dense @ self.head) / 2
            pooled[:, ~chosen[fitted]] = logits[:, :-1][:, ~chosen[fitted]] = -np.inf
            best = pooled.argmax(axis=1)
            cosine = np.array(
                [
                    _nearness(self.examples[fitted[k]].views.vectors @ vector)
                    for k, vector in zip(best, views.vectors, strict=True)
                ]
            )
            signals = _signals(
                logits,
                best,
                distance,
                cosine,
                (views.vectors.astype(np.float64) @ self.background.vectors.T).max(axis=1),
                self.words.coverage(views.words, best, held_out=False),
            )
            belongs = sigmoid(signals @ self.signs)
            scores[:, fitted] = belongs[:, None] * softmax(pooled)
        bare = [k for k in np.flatnonzero(chosen) if k not in set(fitted.tolist())]
        if bare:
            # Only what no other skill is for may be for one that is known by its description.
            own = np.stack([_bare(self.examples[k].views, views) for k in bare], axis=1)
            own *= (1.0 - scores.max(axis=1))[:, None]
            total = scores.sum(axis=1) + own.sum(axis=1)
            scores[:, bare] = own
            scores /= np.maximum(total, 1.0)[:, None]
        return Prediction(scores=scores, belongs=belongs)

    def nearest(self, views: Views, column: int) -> tuple[Array, Rows]:
        """Cosine `(n,)` to the skill's nearest example, and which of its rows that is."""
        cosines = (views.vectors @ self.examples[column].views.vectors.T).astype(np.float64)
        return cosines.max(axis=1), cosines.argmax(axis=1)


def fit(skills: Sequence[Examples], background: Views, *, certain: int = 0) -> Router:
    """A router over `skills`, at least one, in any order (it sorts them by name).

    `background` are requests that no skill is for. Those that resemble a skill's own examples are
    left out, except the first `certain` ones, which somebody said are for none of these skills.
    """
    ordered = sorted(skills, key=lambda skill: skill.name)
    fitted = np.array([k for k, skill in enumerate(ordered) if not skill.bare], dtype=np.intp)
    count = len(fitted)
    kept = background.take(np.flatnonzero(_unlike(ordered, background, certain)))
    parts = [ordered[k].views for k in fitted]
    every = join([*parts, kept])
    sizes = [*(len(part) for part in parts), len(kept)]
    label = np.repeat(np.arange(count + 1), sizes)
    starts = np.cumsum([0, *sizes])[:-1]
    weight = np.ones(len(label))
    weight[starts[:count]] = _DESCRIPTION_WEIGHT
    discriminant = Discriminant.fit(every.dense, label, weight, count + 1)
    words = NaiveBayes.fit([*(ordered[k].words for k in fitted), count_terms(kept.words)])
    letters = NaiveBayes.fit([*(ordered[k].letters for k in fitted), count_terms(kept.letters)])
    head = np.zeros((every.dense.shape[1], count), np.float32)
    if count > 1:
        own_rows = slice(0, len(label) - len(kept))
        head = fit_head(every.dense[own_rows], label[own_rows], count)
    shares, signs = _USUAL_SHARES, _USUAL_SIGNS
    threshold = usual_threshold(count)
    thresholds = np.full(len(ordered), threshold)
    if count:
        judged = _judged(sizes, starts, count)
        rows, own = every.take(judged), label[judged]
        ratio, distance = discriminant.held_out(rows.dense, own, weight[judged])
        scorings = np.stack(
            [ratio, words.held_out(rows.words, own), letters.held_out(rows.letters, own)]
        )
        mass = _balanced(own, count)
        inside = np.flatnonzero(own < count)
        if count > 1:
            shares = blend(
                scorings[:, inside, :count], own[inside], mass[inside], _USUAL_SHARES, _SHARES_TRUST
            )
        logits = np.tensordot(shares, scorings, 1)
        signals = _held_out_signals(logits, distance, rows, own, judged, every, starts, words)
        truth = (own < count).astype(np.float64)
        taught, taught_truth, taught_mass = [signals], [truth], [mass]
        if count > 2:
            without = logits[inside].copy()
            without[np.arange(len(inside)), own[inside]] = -np.inf
            some = rows.take(inside)
            strangers = _held_out_signals(
                without, distance[inside], some, own[inside], judged[inside], every, starts, words
            )
            taught.append(strangers)
            taught_truth.append(np.zeros(len(inside)))
            taught_mass[0] = np.where(own < count, mass, mass * (1 - _WITHOUT_SKILL))
            taught_mass.append(mass[inside] * _WITHOUT_SKILL)
        signs = logistic(
            np.vstack(taught),
            np.concatenate(taught_truth),
            np.concatenate(taught_mass),
            _USUAL_SIGNS,
            _SIGNS_TRUST,
        )
        confidence = sigmoid(signals @ signs)[:, None] * softmax(logits[:, :count])
        lonely = _lonely(signals[:, _COSINE], own, count)
        threshold, per_skill = fit_thresholds(confidence[lonely], own[lonely], count)
        thresholds = np.full(len(ordered), threshold)
        thresholds[fitted] = per_skill
    return Router(
        names=tuple(skill.name for skill in ordered),
        threshold=threshold,
        thresholds=thresholds,
        shares=shares,
        signs=signs,
        background_kept=len(kept),
        fitted=fitted,
        head=head,
        discriminant=discriminant,
        words=words,
        letters=letters,
        examples=tuple(ordered),
        background=kept,
    )


def _signals(
    logits: Array,
    best: Rows,
    distance: Array,
    cosine: Array,
    background_cosine: Array,
    coverage: Array,
) -> Array:
    """Signs `(n, 7)` that a text belongs to its best skill: how far that leads the background,
    its Mahalanobis distance, the cosine to its nearest examples and to the nearest of the
    background, the share of its terms that are known, how far the best skill leads the second
    (Hendrycks and Gimpel, ICLR 2017), and one.

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


def _held_out_signals(
    logits: Array,
    distance: Array,
    rows: Views,
    own: Rows,
    place: Rows,
    every: Views,
    starts: Rows,
    words: NaiveBayes,
) -> Array:
    count = logits.shape[1] - 1
    best = logits[:, :count].argmax(axis=1)
    ends = [*starts[1:], len(every)]
    cosine = np.zeros(len(rows))
    background = rows.vectors @ every.vectors[starts[count] :].T
    outside = np.flatnonzero(own == count)
    background[outside, place[outside] - starts[count]] = -1.0
    held = best == own
    coverage = np.where(
        held,
        words.coverage(rows.words, best, held_out=True),
        words.coverage(rows.words, best, held_out=False),
    )
    for row, k in enumerate(best):
        cosines = every.vectors[starts[k] : ends[k]] @ rows.vectors[row]
        if held[row]:
            cosines[place[row] - starts[k]] = -1.0
        cosine[row] = _nearness(cosines)
    return _signals(logits, best, distance, cosine, background.max(axis=1), coverage)


def _lonely(cosine: Array, own: Rows, count: int) -> Rows:
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


def _nearness(cosines: NDArray[np.float32]) -> float:
    """The cosine to one of the nearest examples, the nearest where they are few."""
    skipped = int(_RELATIVES * len(cosines))
    return float(np.partition(cosines, -1 - skipped)[-1 - skipped])


def _judged(sizes: Sequence[int], starts: Rows, count: int) -> Rows:
    """Rows whose held-out scores are looked at: utterances and background, no descriptions, which
    are written about a task, while queries are by those who want it."""
    most = max(2, _JUDGED // max(count, 1))
    chosen = []
    for k, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        first = 1 if k < count else 0
        number = min(size - first, most if k < count else _JUDGED)
        spread = np.linspace(first, size - 1, number).round().astype(np.intp)
        chosen.append(start + spread)
    return np.concatenate(chosen)


def _balanced(own: Rows, count: int) -> Array:
    """Weights under which skills weigh alike and the background as much as all of them."""
    sizes = np.bincount(own, minlength=count + 1).astype(np.float64)
    inside = sizes[:count].sum()
    each = np.concatenate([np.full(count, inside / max(count, 1)), [inside]])
    return np.asarray((each / np.maximum(sizes, 1.0))[own])


def _unlike(skills: Sequence[Examples], background: Views, certain: int) -> NDArray[np.bool_]:
    """Which background examples are farther from every skill than its examples from each other."""
    keep = np.ones(len(background), dtype=bool)
    for skill in skills:
        own = skill.views.vectors
        within = own @ own.T
        np.fill_diagonal(within, -1.0)
        usual = float(np.quantile(within.max(axis=1), 0.25)) if len(own) > 2 else _ALIKE
        keep &= (background.vectors @ own.T).max(axis=1) < max(_ALIKE, usual)
    keep[:certain] = True
    if not keep.any():
        # Something must stand for `none of these`: the examples least like any skill.
        every = np.vstack([skill.views.vectors for skill in skills])
        nearest = (background.vectors @ every.T).max(axis=1)
        keep[np.argsort(nearest, kind="stable")[:10]] = True
    return keep


def _bare(skill: Views, views: Views) -> Array:
    low, high = _BARE_RANGE
    cosine = (views.vectors @ skill.vectors.T)[:, 0].astype(np.float64)
    return np.asarray(_BARE_PRIOR * np.clip((cosine - low) / (high - low), 0.0, 1.0))
