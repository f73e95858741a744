"""How good a controller's routes are: accuracy, abstention, risk against coverage, calibration.

Every figure comes with a percentile bootstrap interval over the rows (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993). The same rows and seed always give the same figures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentkit.errors import InputError
from agentkit.routing.controller import Controller
from agentkit.types import Json, Query, Route

__all__ = [
    "FIGURES",
    "Bin",
    "Case",
    "Evaluation",
    "Figure",
    "Judged",
    "cases_from_jsonl",
    "evaluate",
    "figures_of",
    "judge",
    "reliability",
    "risk_coverage",
]

Flags: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]

BINS = 10
RESAMPLES = 1000
_TAIL = 0.025
"""Of each side: intervals hold 95% of the resamples."""

FIGURES: Mapping[str, str] = {
    "accuracy": "rows decided as they should be: the right skill, or abstained where none fits",
    "in_scope_accuracy": "in-scope rows whose best-scoring skill is right, abstained or not",
    "in_scope_accuracy_with_abstention": "in-scope rows routed right; abstaining counts as wrong",
    "coverage": "in-scope rows that were not abstained on",
    "oos_recall": "out-of-scope rows that were abstained on",
    "oos_precision": "abstained rows that are out of scope",
    "oos_auroc": "area under the ROC of the best score, in scope against out of scope",
    "aurc": "area under the risk-coverage curve, over all rows; lower is better",
    "ece": f"expected calibration error of the best score, {BINS} equal bins; lower is better",
}
"""Each figure's name and what it is a share or an area of; all lie within 0 and 1."""


@dataclass(frozen=True, slots=True)
class Case:
    """A query and the skill that is right for it; None: no skill is."""

    query: Query
    skill: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What became of `n` cases; every array is `(n,)`."""

    inside: Flags
    """A skill is right for it."""
    best_right: Flags
    """The best-scoring skill is that one, whether it was accepted or not."""
    accepted: Flags
    confidence: Floats
    """The best skill's score."""

    @property
    def right(self) -> Flags:
        """The decision was right."""
        return np.where(self.inside, self.accepted & self.best_right, ~self.accepted)

    def take(self, rows: NDArray[np.intp]) -> Judged:
        return Judged(
            self.inside[rows], self.best_right[rows], self.accepted[rows], self.confidence[rows]
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and its 95% bootstrap interval; None where the rows do not define it."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Bin:
    """The rows whose best score lies within `[low, high)`; the last bin holds its end too."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean best score; 0 in an empty bin, as is `accuracy`."""
    accuracy: float
    """Share whose best-scoring skill is right."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Routes over labelled cases, and what they amount to."""

    skills: tuple[str, ...]
    cases: tuple[Case, ...]
    routes: tuple[Route, ...]
    judged: Judged
    figures: Mapping[str, Figure]

    @property
    def confusion(self) -> Mapping[tuple[str | None, str | None], int]:
        """How many rows of each right skill were decided for each skill; None is none."""
        pairs = [(c.skill, r.skill) for c, r in zip(self.cases, self.routes, strict=True)]
        return dict(sorted(Counter(pairs).items(), key=lambda one: (-one[1], str(one[0]))))

    def to_json(self) -> dict[str, Json]:
        """Everything but the rows, as plain JSON."""
        inside = int(self.judged.inside.sum())
        return {
            "rows": len(self.cases),
            "in_scope": inside,
            "out_of_scope": len(self.cases) - inside,
            "skills": list(self.skills),
            "metrics": {
                name: {"value": figure.value, "low": figure.low, "high": figure.high}
                for name, figure in self.figures.items()
            },
            "by_skill": self._by_skill(),
            "confusion": [
                {"expected": expected, "decided": decided, "rows": count}
                for (expected, decided), count in self.confusion.items()
            ],
            "reliability": [
                {
                    "from": one.low,
                    "to": one.high,
                    "rows": one.rows,
                    "confidence": one.confidence,
                    "accuracy": one.accuracy,
                }
                for one in reliability(self.judged)
            ],
        }

    def _by_skill(self) -> dict[str, Json]:
        expected = Counter(case.skill for case in self.cases)
        decided = Counter(route.skill for route in self.routes)
        confusion = self.confusion
        shares: dict[str, Json] = {}
        for name in self.skills:
            hits = confusion.get((name, name), 0)
            if expected[name] or decided[name]:
                shares[name] = {
                    "rows": expected[name],
                    "recall": hits / expected[name] if expected[name] else None,
                    "precision": hits / decided[name] if decided[name] else None,
                }
        return shares


def evaluate(
    controller: Controller, cases: Sequence[Case], *, resamples: int = RESAMPLES, seed: int = 0
) -> Evaluation:
    """Route the cases and judge the routes; with `resamples=0` the intervals are left out.

    Raises `InputError` if there is no case, or none of the skills that it names.
    """
    if not cases:
        raise InputError("there is nothing to evaluate: no rows")
    unknown = {case.skill for case in cases} - {None, *controller.skills}
    if unknown:
        raise InputError(
            f"there is no skill {min(str(name) for name in unknown)!r} to route to",
            hint=f"installed: {', '.join(controller.skills) or 'none'}",
        )
    routes = controller.route_many([case.query for case in cases])
    judged = judge(cases, routes)
    return Evaluation(
        controller.skills,
        tuple(cases),
        tuple(routes),
        judged,
        _with_intervals(judged, resamples, seed),
    )


def judge(cases: Sequence[Case], routes: Sequence[Route]) -> Judged:
    """What became of each case."""
    best = [next(iter(route.scores), None) for route in routes]
    return Judged(
        inside=np.array([case.skill is not None for case in cases], dtype=bool),
        best_right=np.array(
            [
                case.skill is not None and name == case.skill
                for case, name in zip(cases, best, strict=True)
            ],
            dtype=bool,
        ),
        accepted=np.array([not route.abstained for route in routes], dtype=bool),
        confidence=np.array([max(route.scores.values(), default=0.0) for route in routes]),
    )


def figures_of(judged: Judged) -> dict[str, float | None]:
    """Each of `FIGURES`; None where no row defines it (no row is out of scope, say)."""
    inside, accepted = judged.inside, judged.accepted
    return {
        "accuracy": _share(judged.right),
        "in_scope_accuracy": _share(judged.best_right[inside]),
        "in_scope_accuracy_with_abstention": _share(judged.right[inside]),
        "coverage": _share(accepted[inside]),
        "oos_recall": _share(~accepted[~inside]),
        "oos_precision": _share(~inside[~accepted]),
        "oos_auroc": _auroc(judged.confidence, inside),
        "aurc": float(risk_coverage(judged)[1].mean()) if len(inside) else None,
        "ece": _calibration_error(judged),
    }


def risk_coverage(judged: Judged) -> tuple[Floats, Floats]:
    """`(n,)` coverages and the risk at each: the share of wrong routes if only the most confident
    `coverage` of all rows were accepted (El-Yaniv and Wiener, JMLR 2010; the area under it is the
    mean of the risks: Geifman, Uziel and El-Yaniv, ICLR 2019).

    Accepting an out-of-scope row is always wrong. Rows of one confidence count by their mean, so
    that their order does not matter.
    """
    _, group, size = np.unique(-judged.confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=~judged.best_right, minlength=len(size)) / size
    count = np.arange(1, len(group) + 1)
    return count / len(group), np.cumsum(np.repeat(wrong, size)) / count


def reliability(judged: Judged) -> list[Bin]:
    """`BINS` bins of equal width over the best score."""
    place = np.minimum((judged.confidence * BINS).astype(int), BINS - 1)
    rows = np.bincount(place, minlength=BINS)
    confidence = np.bincount(place, weights=judged.confidence, minlength=BINS)
    right = np.bincount(place, weights=judged.best_right, minlength=BINS)
    return [
        Bin(
            b / BINS,
            (b + 1) / BINS,
            int(rows[b]),
            float(confidence[b] / max(rows[b], 1)),
            float(right[b] / max(rows[b], 1)),
        )
        for b in range(BINS)
    ]


def cases_from_jsonl(path: Path, skills: Collection[str]) -> list[Case]:
    """Cases of a JSONL file of rows `{"text" or "instruction": ..., "skill": name or null}`, with
    the start of the step's input under "input" where wanted.

    Raises `InputError` naming file and line, also for a skill that is not among `skills`.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read it", where=str(path)) from error
    cases = [
        _case(line, f"{path}:{number}", skills)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not cases:
        raise InputError("no rows", where=str(path))
    return cases


def _case(line: str, where: str, skills: Collection[str]) -> Case:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", where=where) from error
    shape = 'a row is {"text": ..., "skill": a name or null}'
    if not isinstance(row, dict) or "skill" not in row:
        raise InputError(shape, where=where)
    text, skill, excerpt = (
        row.get("text", row.get("instruction")),
        row["skill"],
        row.get("input", ""),
    )
    if not isinstance(text, str) or not isinstance(skill, str | None):
        raise InputError(shape, where=where)
    if not isinstance(excerpt, str):
        raise InputError('"input" is the start of the input\'s text', where=where)
    if skill is not None and skill not in skills:
        raise InputError(
            f"there is no skill {skill!r}",
            where=where,
            hint=f"installed: {', '.join(sorted(skills)) or 'none'}",
        )
    return Case(Query(instruction=text, excerpt=excerpt), skill)


def _with_intervals(judged: Judged, resamples: int, seed: int) -> dict[str, Figure]:
    draw = np.random.default_rng(seed)
    count = len(judged.inside)
    drawn: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(resamples):
        for name, value in figures_of(judged.take(draw.integers(count, size=count))).items():
            if value is not None:
                drawn[name].append(value)
    figures: dict[str, Figure] = {}
    for name, value in figures_of(judged).items():
        low = high = None
        if value is not None and drawn[name]:
            low, high = (float(q) for q in np.quantile(drawn[name], [_TAIL, 1 - _TAIL]))
        figures[name] = Figure(value, low, high)
    return figures


def _share(flags: Flags) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _auroc(confidence: Floats, inside: Flags) -> float | None:
    """By ranks (Mann and Whitney); equal confidences count half."""
    positives = int(inside.sum())
    negatives = len(inside) - positives
    if not positives or not negatives:
        return None
    _, group, size = np.unique(confidence, return_inverse=True, return_counts=True)
    rank = np.cumsum(size) - (size - 1) / 2
    above = float(rank[group][inside].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def _calibration_error(judged: Judged) -> float | None:
    """Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017."""
    total = len(judged.inside)
    if not total:
        return None
    return sum(one.rows * abs(one.accuracy - one.confidence) for one in reliability(judged)) / total
