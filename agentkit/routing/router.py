"""Scores and confidences of texts, fitted from each skill's own examples.

Three scorings of a text are added up: linear discriminants over its sentence vector, and naive
Bayes over its words and over its letters. In the choice between skills a logistic head joins them.
Whether a text is for any skill at all is a question of its own, put to a logistic regression over
signs of belonging (`belonging`).

The sum, the signs and the thresholds are fitted on held-out scores in closed form: each example is
scored as if it had not been there, and once more as if its skill had not been there, when it is a
request that no skill is for. Nothing is drawn at random: the same examples always give the same
router.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentkit.routing.belonging import (
    COSINE,
    SIGNS_TRUST,
    USUAL_SIGNS,
    held_out_signals,
    nearness,
    signals_of,
)
from agentkit.routing.discriminant import Discriminant
from agentkit.routing.head import fit_head
from agentkit.routing.lexical import NaiveBayes, count_terms
from agentkit.routing.regression import Array, blend, logistic, sigmoid, softmax
from agentkit.routing.thresholds import fit_thresholds, lonely_rows, sureness, usual_threshold
from agentkit.routing.views import Views, join

__all__ = ["Array", "Examples", "Prediction", "Router", "fit"]

Rows = NDArray[np.intp]

_DESCRIPTION_WEIGHT = 0.5
_GROUPS = 8
"""Of skills whose products of features are summed, and remembered, together."""
_JUDGED = 1000
"""Held-out rows that calibration looks at, at most; evenly from all skills."""
_USUAL_SHARES = np.array([0.15, 0.15, 0.08])
"""Of discriminants, words and letters, before examples say otherwise."""
_SHARES_TRUST = 20.0
_POOLED, _POOLED_HEAD = np.array([0.15, 0.6, 0.6]), 1.2
"""What the scorings, as they are blended, and the head count in the choice between skills. The head
and the discriminants look at the same vector, so the latter add little to it; chosen by the
likelihood of held-out utterances where each skill has 5, 10 and 80 others."""
_WITHOUT_SKILL = 0.5
"""Share of the weight of requests for no skill that examples without their skill have; the
background has the rest."""
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
    weight: NDArray[np.float32]
    """`(rows,)`: how much each counts for the discriminants."""
    total: NDArray[np.float32]
    """`(dimension,)`: the weighted sum of the features."""
    words: NDArray[np.float32]
    letters: NDArray[np.float32]
    """Both `(lexical.BUCKETS,)`: what `count_terms` gives."""
    likeness: float
    """The cosine from which a text is as near to the examples as they are to each other."""

    @classmethod
    def of(cls, name: str, views: Views) -> Examples:
        weight = np.ones(len(views), np.float32)
        weight[0] = _DESCRIPTION_WEIGHT
        within = views.vectors @ views.vectors.T
        np.fill_diagonal(within, -1.0)
        usual = float(np.quantile(within.max(axis=1), 0.25)) if len(views) > 2 else _ALIKE
        return cls(
            name,
            views,
            weight,
            weight @ views.dense,
            count_terms(views.words),
            count_terms(views.letters),
            max(_ALIKE, usual),
        )

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
    """`(7,)`: coefficients of `signals_of`."""
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
    moments: Mapping[tuple[Examples, ...], NDArray[np.float32]]
    """What `_moments` sums over each group of skills, for the next fit."""

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
            scorings = np.stack(
                [ratio, self.words.scores(views.words), self.letters.scores(views.letters)]
            )
            logits = np.tensordot(self.shares, scorings, 1)
            # In double precision, so that a batch says what each of its queries does alone.
            dense = views.dense.astype(np.float64)
            pooled = np.tensordot(_POOLED * self.shares, scorings[:, :, :-1], 1)
            pooled += _POOLED_HEAD * (dense @ self.head)
            pooled[:, ~chosen[fitted]] = logits[:, :-1][:, ~chosen[fitted]] = -np.inf
            best = pooled.argmax(axis=1)
            cosine = np.array(
                [
                    nearness(self.examples[fitted[k]].views.dense @ row)
                    for k, row in zip(best, views.dense, strict=True)
                ]
            )
            signals = signals_of(
                logits,
                best,
                distance,
                cosine,
                (dense @ self.background.dense.T).max(axis=1),
                self.words.coverage(views.words, best, np.zeros(len(best), dtype=bool)),
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


def fit(
    skills: Sequence[Examples],
    background: Views,
    *,
    certain: int = 0,
    before: Router | None = None,
) -> Router:
    """A router over `skills`, at least one, in any order (it sorts them by name).

    What it has in common with the router `before`, where one is given, is not computed again; the
    result is the same to the last bit.

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
    weight = np.concatenate([*(ordered[k].weight for k in fitted), np.ones(len(kept))])
    moments = _moments([ordered[k] for k in fitted], {} if before is None else before.moments)
    discriminant = Discriminant.fit(
        sum(moments.values(), (kept.dense.T @ kept.dense).astype(np.float64)),
        np.stack([*(ordered[k].total for k in fitted), kept.dense.sum(axis=0)]).astype(np.float64),
        np.bincount(label, weights=weight).astype(np.float64),
    )
    words = NaiveBayes.fit([*(ordered[k].words for k in fitted), count_terms(kept.words)])
    letters = NaiveBayes.fit([*(ordered[k].letters for k in fitted), count_terms(kept.letters)])
    head = np.zeros((every.dense.shape[1], count), np.float32)
    if count > 1:
        own_rows = slice(0, len(label) - len(kept))
        directions = discriminant.directions(count)
        head = fit_head(every.dense[own_rows], label[own_rows], directions)
    shares, signs = _USUAL_SHARES, USUAL_SIGNS
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
        signals = held_out_signals(logits, distance, rows, own, judged, every, starts, words)
        truth = (own < count).astype(np.float64)
        taught, taught_truth, taught_mass = [signals], [truth], [mass]
        if count > 2:
            without = logits[inside].copy()
            without[np.arange(len(inside)), own[inside]] = -np.inf
            some = rows.take(inside)
            strangers = held_out_signals(
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
            USUAL_SIGNS,
            SIGNS_TRUST,
        )
        confidence = sigmoid(signals @ signs)[:, None] * softmax(logits[:, :count])
        lonely = lonely_rows(signals[:, COSINE], own, count)
        counts = np.ones(len(own))
        counts[own == count] = sureness(judged[own == count] - starts[count], certain)
        threshold, per_skill = fit_thresholds(
            confidence[lonely], own[lonely], count, counts[lonely]
        )
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
        moments=moments,
    )


def _moments(
    skills: Sequence[Examples], known: Mapping[tuple[Examples, ...], NDArray[np.float32]]
) -> dict[tuple[Examples, ...], NDArray[np.float32]]:
    """The weighted products of features with themselves, summed over each group of skills.

    Skills are grouped by their names, so that one more changes one group only, and every sum is
    taken in the same order whichever skill came last.
    """
    groups: dict[int, list[Examples]] = {}
    for skill in skills:
        groups.setdefault(zlib.crc32(skill.name.encode()) % _GROUPS, []).append(skill)
    result: dict[tuple[Examples, ...], NDArray[np.float32]] = {}
    for _, group in sorted(groups.items()):
        key = tuple(group)
        if (moment := known.get(key)) is None:
            scaled = np.vstack([np.sqrt(s.weight)[:, None] * s.views.dense for s in group])
            moment = scaled.T @ scaled
        result[key] = moment
    return result


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
        keep &= (background.vectors @ skill.views.vectors.T).max(axis=1) < skill.likeness
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
