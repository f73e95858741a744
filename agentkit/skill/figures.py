"""Names of the figures that a skill is measured by: what `metrics:` in `skill.yaml` may promise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agentkit.skill.manifest import ChoiceAnswer, Manifest, MarksAnswer

_CLASSES = ("accuracy", "macro_f1")
_TRUST = ("ece", "brier")
_OF_A_CLASS = ("precision", "recall", "f1", "rows")
_EVIDENCE = ("evidence_f1", "evidence_recall", "evidence_map")
_MARKS = (
    *("span_f1", "span_precision", "span_recall", "exact_f1", "macro_span_f1"),
    *("aupr", "precision_at_80_recall"),
)
_OF_A_MARK = ("span_f1", "exact_f1", "aupr", "precision_at_80_recall", "gold", "found")
_TEXTS = ("rouge_l", "supported")


def listed_values(schema: Any) -> list[Any]:
    """The values that a field's schema lists; none for another."""
    if not isinstance(schema, Mapping):
        return []
    if schema.get("type") == "boolean":
        return [True, False]
    return list(schema.get("enum", ()))


def written_fields(schema: Mapping[str, Any]) -> tuple[dict[str, list[Any]], list[str]]:
    """The labels among the fields of a written output with their values, and its texts.

    An output that is no object is one field without a name.
    """
    parts = schema.get("properties") or {"": schema}
    labels = {name: values for name, part in parts.items() if (values := listed_values(part))}
    texts = [
        name
        for name, part in parts.items()
        if name not in labels and isinstance(part, Mapping) and part.get("type") == "string"
    ]
    return labels, texts


def figure_of(figure: str, field: str, among: Iterable[str]) -> str:
    """A figure's name; with several fields of a sort it bears the field's."""
    return figure if len(list(among)) == 1 else f"{figure}.{field}"


def label_of(value: Any, field: str, among: Iterable[str]) -> str:
    """A label's name; with several fields it says whose value it is."""
    return str(value) if len(list(among)) == 1 else f"{field}={value}"


def figures_of(manifest: Manifest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The figures that an evaluation of the skill can give, and those of single labels."""
    answer = manifest.answer
    if isinstance(answer, ChoiceAnswer):
        evidence = _EVIDENCE if answer.evidence_field else ()
        return (*_CLASSES, *_TRUST, *evidence), _each(_OF_A_CLASS, answer.choices)
    if isinstance(answer, MarksAnswer):
        return (*_MARKS, *_TRUST), _each(_OF_A_MARK, (label.name for label in answer.labels))
    labels, texts = written_fields(manifest.output)
    figures = [figure_of(figure, name, labels) for name in labels for figure in _CLASSES]
    figures += _TRUST if answer.choice_field is not None else ()
    figures += [figure_of(figure, name, texts) for name in texts for figure in _TEXTS]
    named = (label_of(value, name, labels) for name in labels for value in labels[name])
    return tuple(figures), _each(_OF_A_CLASS, named)


def unknown_floors(manifest: Manifest) -> list[str]:
    """The metrics with a floor that no evaluation of the skill can give."""
    known = {name for names in figures_of(manifest) for name in names}
    return [
        name
        for name, metric in manifest.metrics.items()
        if metric.floor is not None and name not in known
    ]


def _each(figures: Iterable[str], labels: Iterable[str]) -> tuple[str, ...]:
    named = list(labels)
    return tuple(f"{figure}.{label}" for figure in figures for label in named)
