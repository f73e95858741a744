"""Percentile bootstrap over documents: rows of one document are drawn together.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. A measure is a function of how
often each row counts, so that a resample costs no copy of the rows. All measures see the same
resamples: the interval of a difference between two of them is a paired one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Weights: TypeAlias = Floats
"""`(rows,)`: how often each row counts; ones are the rows as they are."""
Values: TypeAlias = Mapping[str, float | None]
"""Figures by name; None where the rows do not define one."""
Measure: TypeAlias = Callable[[Weights], Values]

RESAMPLES = 1000
TAIL = 0.025
"""Of each side: intervals hold 95% of the resamples."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and its 95% bootstrap interval; None where the rows do not define it."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """The figure with its interval, to four digits."""
        return {
            name: None if value is None else round(value, 4)
            for name, value in (("value", self.value), ("low", self.low), ("high", self.high))
        }


@dataclass(frozen=True, slots=True)
class Intervals:
    """Each measure's figures, and by how much each of the others exceeds the first."""

    figures: Mapping[str, Mapping[str, Figure]]
    """By measure, then by figure."""
    differences: Mapping[str, Mapping[str, Figure]]
    """By measure other than the first: the first's figure less this one's."""


def intervals(
    measures: Mapping[str, Measure],
    groups: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Intervals:
    """Figures of every measure with intervals over `groups`, the document of each row.

    With fewer than two documents, or `resamples=0`, intervals are left out. The same rows and seed
    always give the same figures.
    """
    ones = np.ones(len(groups))
    values = {name: dict(measure(ones)) for name, measure in measures.items()}
    drawn: dict[str, dict[str, list[float]]] = {
        name: {figure: [] for figure in found} for name, found in values.items()
    }
    for weights in document_weights(groups, resamples=resamples, seed=seed):
        for name, measure in measures.items():
            found = measure(weights)
            for figure, kept in drawn[name].items():
                value = found.get(figure)
                kept.append(np.nan if value is None else value)
    figures = {
        name: {f: _figure(value, np.array(drawn[name][f])) for f, value in found.items()}
        for name, found in values.items()
    }
    first, *others = measures
    differences = {
        name: {
            f: _figure(mine - theirs, np.array(drawn[first][f]) - np.array(drawn[name][f]))
            for f, mine in values[first].items()
            if mine is not None and (theirs := values[name].get(f)) is not None
        }
        for name in others
    }
    return Intervals(figures, differences)


def document_weights(groups: Sequence[str], *, resamples: int, seed: int) -> Iterator[Weights]:
    """For each resample how often each row counts: as often as its document was drawn."""
    if not groups:
        return
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = int(member.max()) + 1
    if count < 2:
        return
    draw = np.random.default_rng(seed)
    for _ in range(resamples):
        times = np.bincount(draw.integers(count, size=count), minlength=count)
        yield times[member].astype(np.float64)


def _figure(value: float | None, drawn: Floats) -> Figure:
    defined = drawn[~np.isnan(drawn)]
    if value is None or not len(defined):
        return Figure(value)
    low, high = np.quantile(defined, [TAIL, 1 - TAIL])
    return Figure(float(value), float(low), float(high))
