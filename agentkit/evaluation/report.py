"""An evaluation as values: figures with intervals, comparisons, floors, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agentkit.errors import InputError
from agentkit.evaluation.resampling import Figure
from agentkit.skill.figures import figures_of, unknown_floors
from agentkit.skill.manifest import Manifest
from agentkit.types import Json


@dataclass(frozen=True, slots=True)
class Subject:
    """What one predictor got right."""

    figures: Mapping[str, Figure]
    differences: Mapping[str, Figure]
    """By how much the skill exceeds this one; empty for the skill itself."""
    details: Mapping[str, Json]
    failed: int
    seconds: float

    def to_json(self) -> dict[str, Json]:
        """Everything of it."""
        return {
            "metrics": {name: figure.to_json() for name, figure in self.figures.items()},
            **(
                {"differences": {n: g.to_json() for n, g in self.differences.items()}}
                if self.differences
                else {}
            ),
            **self.details,
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
        }


LOWER_IS_BETTER = ("ece", "brier")
"""Figures that are errors: what is promised of them is a ceiling."""


@dataclass(frozen=True, slots=True)
class Floor:
    """A figure that a skill promises to reach, and what it was; of an error, not to exceed."""

    metric: str
    floor: float
    value: float | None

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        if self.metric in LOWER_IS_BETTER:
            return self.value <= self.floor
        return self.value >= self.floor

    def to_json(self) -> dict[str, Json]:
        """Its parts, the value as the figures give it."""
        value = None if self.value is None else round(self.value, 4)
        return {"metric": self.metric, "floor": self.floor, "value": value, "met": self.met}

    def __str__(self) -> str:
        value = "undefined on these rows" if self.value is None else f"{self.value:.4f}"
        bound = "at most" if self.metric in LOWER_IS_BETTER else "at least"
        return f"{self.metric} is {value}, promised is {bound} {self.floor:g}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A skill beside what it is compared with; the first subject is the skill."""

    rows: int
    documents: int
    subjects: Mapping[str, Subject]

    @property
    def skill(self) -> Subject:
        """The skill's own figures."""
        return next(iter(self.subjects.values()))

    @property
    def others(self) -> Mapping[str, Subject]:
        """What the skill is compared with, by name."""
        return dict(list(self.subjects.items())[1:])

    def floors(self, manifest: Manifest) -> list[Floor]:
        """The floors of `metrics:` in `skill.yaml`, with what was reached.

        A figure that these rows say nothing of is undefined. Raises what `check_floors` raises.
        """
        check_floors(manifest)
        known = dict(_flat(self.skill))
        return [
            Floor(name, metric.floor, known.get(name))
            for name, metric in manifest.metrics.items()
            if metric.floor is not None
        ]

    def to_json(self) -> dict[str, Json]:
        """The skill's figures, then what it is compared with under `compared`."""
        return {
            "rows": self.rows,
            "documents": self.documents,
            **self.skill.to_json(),
            "compared": {name: one.to_json() for name, one in self.others.items()},
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: each figure with its interval, and beside it what it is compared with
        and the difference from it."""
        columns = ["metric", "value", "95% interval"]
        for name in self.others:
            columns += [name, f"less {name}"]
        lines = []
        for metric, figure in self.skill.figures.items():
            line = [metric, _number(figure.value), _interval(figure)]
            for other in self.others.values():
                theirs = other.figures.get(metric, Figure(None))
                difference = other.differences.get(metric, Figure(None))
                shown = f"{_number(difference.value, '+')} {_interval(difference)}".strip()
                line += [_number(theirs.value), shown]
            lines.append(line)
        return columns, lines


def check_floors(manifest: Manifest) -> None:
    """Raises `InputError` for a floor on what no evaluation of the skill can give.

    A floor may be on a figure, or on one of a label's (`f1.LABEL`).
    """
    unknown = unknown_floors(manifest)
    if unknown:
        figures, of_labels = figures_of(manifest)
        shown = [*figures, *(f"{name}.LABEL" for name in _first_words(of_labels))]
        raise InputError(
            f"there is no metric {', '.join(map(repr, unknown))}",
            where=f"skill {manifest.name}, metrics",
            hint=f"measured are: {', '.join(shown)}",
        )


def _first_words(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _flat(subject: Subject) -> Iterator[tuple[str, float | None]]:
    for label, figures in subject.details.get("labels", {}).items():
        for figure, value in figures.items():
            if not isinstance(value, list):  # an interval's ends
                yield f"{figure}.{label}", value
    for name, one in subject.figures.items():
        yield name, one.value


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4f}"


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{figure.low:.3f} to {figure.high:.3f}"
