"""Pictures of a controller: its skills' utterances in the plane, and its evaluation's curves.

SVG by matplotlib, the optional extra `plots`. The same values always give the same file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentkit.pictures import picture
from agentkit.routing.evaluation import Evaluation, reliability, risk_coverage

__all__ = ["Plane", "draw_confusion", "draw_map", "draw_reliability", "draw_risk_coverage", "plane"]

Floats: TypeAlias = NDArray[np.float64]

_LEGEND = 10
"""More skills than this are named at their place in the map."""
_CONFUSED = 30
"""Rows of a confusion matrix, at most; the skills with the most errors."""
_BLUE, _GREY, _RED = "#2f5d8a", "#888888", "#b03a2e"


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A projection of vectors onto two axes."""

    method: Literal["lda", "pca"]
    origin: Floats
    """`(dimension,)`."""
    axes: Floats
    """`(dimension, 2)`."""

    def project(self, vectors: NDArray[Any]) -> Floats:
        """`(n, dimension)` to `(n, 2)`."""
        return np.asarray((vectors.astype(np.float64) - self.origin) @ self.axes)


def plane(groups: Sequence[NDArray[Any]]) -> Plane:
    """The plane in which groups of vectors `(n, dimension)` lie farthest apart.

    From three groups on by linear discriminant analysis (Fisher, 1936; Rao, 1948), else by
    principal components. Dimensions outnumber utterances, so the within-class covariance is shrunk;
    otherwise any groups at all would look apart.
    """
    every = np.vstack(groups).astype(np.float64)
    origin = every.mean(axis=0)
    if len(groups) < 3 or len(every) <= len(groups):
        axes = np.linalg.svd(every - origin, full_matrices=False)[2][:2].T
        if axes.shape[1] < 2:
            axes = np.hstack([axes, np.zeros((len(origin), 2 - axes.shape[1]))])
        return Plane("pca", origin, _signed(axes))
    means = np.array([group.mean(axis=0, dtype=np.float64) for group in groups])
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    residuals = [group - mean for group, mean in zip(groups, means, strict=True)]
    values, basis = np.linalg.eigh(_shrunk_covariance(np.vstack(residuals)))
    whiten = basis / np.sqrt(np.maximum(values, 1e-12))
    between = ((means - origin) * np.sqrt(sizes)[:, None]) @ whiten
    axes = whiten @ np.linalg.svd(between, full_matrices=False)[2][:2].T
    return Plane("lda", origin, _signed(axes / np.linalg.norm(axes, axis=0)))


def _shrunk_covariance(centred: Floats) -> Floats:
    """Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis, 2004; of rows `(n, dimension)` with mean zero."""
    count, dimension = centred.shape
    covariance = centred.T @ centred / count
    level = float(np.trace(covariance)) / dimension
    spread = float(((centred**2).sum(axis=1) ** 2).mean() - (covariance**2).sum()) / count
    distance = float((covariance**2).sum()) - dimension * level**2
    share = min(1.0, max(0.0, spread / distance)) if distance > 0 else 1.0
    return np.asarray((1 - share) * covariance + share * level * np.eye(dimension))


def _signed(axes: Floats) -> Floats:
    """Each axis with its largest component positive: the sign is else left to the library."""
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return np.asarray(axes * np.where(largest < 0, -1.0, 1.0))


def draw_map(
    path: Path,
    utterances: Mapping[str, NDArray[Any]],
    *,
    query: NDArray[Any] | None = None,
    nearest: Mapping[str, tuple[int, str]] | None = None,
    wrong: NDArray[Any] | None = None,
) -> None:
    """Draw each skill's utterances `(n, dimension)` in the plane in which skills lie apart.

    `query` `(dimension,)` is marked in it, with lines to the `nearest` utterance (row and text) of
    some skills; `wrong` `(m, dimension)` are queries that were routed wrong. Raises
    `MissingExtraError` without matplotlib.
    """
    found = plane(list(utterances.values()))
    with picture(path, (7.5, 5.5)) as axes:
        named = len(utterances) > _LEGEND
        places = {name: found.project(vectors) for name, vectors in utterances.items()}
        for k, (name, points) in enumerate(places.items()):
            colour = f"C{k % 10}"
            axes.scatter(*points.T, s=18, color=colour, alpha=0.75, linewidths=0, label=name)
            if named:
                axes.annotate(
                    name, points.mean(axis=0), color=colour, fontsize=6, ha="center", va="center"
                )
        if wrong is not None and len(wrong):
            axes.scatter(
                *found.project(wrong).T, s=22, marker="x", color="black", label="routed wrong"
            )
        if query is not None:
            x, y = found.project(query[None])[0]
            for name, (row, text) in (nearest or {}).items():
                end = places[name][row]
                axes.plot([x, end[0]], [y, end[1]], color=_GREY, linewidth=0.8, zorder=1)
                axes.annotate(
                    _short(text),
                    end,
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color="#333333",
                    parse_math=False,
                )
            axes.scatter([x], [y], s=150, marker="*", color="black", zorder=3, label="query")
        if not named or query is not None or wrong is not None:
            handles, labels = axes.get_legend_handles_labels()
            kept = [k for k, label in enumerate(labels) if not named or label not in places]
            axes.legend(
                [handles[k] for k in kept], [labels[k] for k in kept], fontsize=7, frameon=False
            )
        axes.set(xticks=[], yticks=[], title=f"Utterances of {len(utterances)} skills")
        kind = "linear discriminants" if found.method == "lda" else "principal components"
        axes.set_xlabel(f"two {kind} of the sentence vectors", fontsize=8)


def draw_risk_coverage(path: Path, evaluation: Evaluation) -> None:
    """Draw the share of wrong routes against the share of rows accepted, and where the fitted
    threshold stands. Raises `MissingExtraError` without matplotlib."""
    coverage, risk = risk_coverage(evaluation.judged)
    judged = evaluation.judged
    with picture(path, (5.5, 4)) as axes:
        axes.plot(coverage, risk, color=_BLUE)
        if judged.accepted.any():
            chosen = float(judged.accepted.mean())
            here = float((~judged.best_right[judged.accepted]).mean())
            axes.scatter([chosen], [here], color=_RED, zorder=3, label="as it decides")
            axes.legend(frameon=False, fontsize=8)
        area = evaluation.figures["aurc"].value
        axes.set(
            xlabel="coverage (share of rows accepted)",
            ylabel="risk (share of them routed wrong)",
            title=f"Risk and coverage, area {area:.4f}",
            xlim=(0, 1),
            ylim=(0, None),
        )


def draw_reliability(path: Path, evaluation: Evaluation) -> None:
    """Draw how often the best skill is right against how confident the controller was. Raises
    `MissingExtraError` without matplotlib."""
    bins = [one for one in reliability(evaluation.judged) if one.rows]
    largest = max(one.rows for one in bins)
    with picture(path, (5, 4.5)) as axes:
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
        axes.bar(
            [one.low for one in bins],
            [one.accuracy for one in bins],
            width=[one.high - one.low for one in bins],
            align="edge",
            color=_BLUE,
            alpha=0.35,
        )
        axes.scatter(
            [one.confidence for one in bins],
            [one.accuracy for one in bins],
            s=[10 + 90 * one.rows / largest for one in bins],
            color=_BLUE,
            zorder=3,
        )
        error = evaluation.figures["ece"].value
        axes.set(
            xlabel="confidence",
            ylabel="share right",
            title=f"Calibration, expected error {error:.4f}",
            xlim=(0, 1),
            ylim=(0, 1.02),
        )


def draw_confusion(path: Path, evaluation: Evaluation) -> None:
    """Draw right skills against decided ones; of many skills, those with the most errors. Raises
    `MissingExtraError` without matplotlib."""
    confusion = evaluation.confusion
    errors: dict[str | None, int] = dict.fromkeys([*evaluation.skills, None], 0)
    seen: set[str | None] = set()
    for (expected, decided), count in confusion.items():
        seen |= {expected, decided}
        if expected != decided:
            errors[expected] += count
            errors[decided] += count
    names = sorted(
        (name for name in errors if name in seen and name is not None),
        key=lambda name: (-errors[name], name),
    )
    labels: list[str | None] = [*sorted(names[: _CONFUSED - 1]), None]
    counts = np.array([[confusion.get((row, column), 0) for column in labels] for row in labels])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.28 * len(labels)
    with picture(path, (side + 0.5, side)) as axes:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(counts):
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=6,
                color="white" if shares[row, column] > 0.5 else "black",
            )
        shown = [name or "(none)" for name in labels]
        axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=7)
        axes.set_yticks(range(len(shown)), shown, fontsize=7)
        left = len(names) - len(labels) + 1
        note = f", without {left} skills that have fewer errors" if left > 0 else ""
        axes.set(xlabel="decided", ylabel="right", title=f"Confusion{note}")


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
