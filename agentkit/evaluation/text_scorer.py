"""Measures of a skill that writes its output: labels among it, and free text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agentkit.evaluation import classes, texts
from agentkit.evaluation.resampling import Floats, Values, Weights
from agentkit.evaluation.scoring import Prediction, words_of
from agentkit.skill.figures import figure_of, label_of, written_fields
from agentkit.types import Json

MOST_SHOWN = 30
"""Values of a label up to which each is told of, and their confusion is a picture."""


class TextScorer:
    """Stateful: per row, which labels are right and how like the texts are.

    A field whose schema lists its values is a label (`accuracy`, `macro_f1`), one that is another
    string is text: `rouge_l` (mean), and `supported`, the share of the numbers, names and dates of
    all written texts that stand in their input. With several fields of a sort the figures bear
    their names (`accuracy.grade`). Where `chosen` names a label that comes with a `score`, there
    are `ece` and `brier` of it. Other fields are not measured.
    """

    def __init__(self, schema: Mapping[str, Any], chosen: str | None = None) -> None:
        self._labels, self._texts = written_fields(schema)
        self._gold: dict[str, list[int]] = {name: [] for name in self._labels}
        self._said: dict[str, list[int]] = {name: [] for name in self._labels}
        self._rouge: dict[str, list[float]] = {name: [] for name in self._texts}
        self._facts: dict[str, list[tuple[int, int]]] = {name: [] for name in self._texts}
        """Per row how many facts the text gives, and how many of them are in the input."""
        self._chosen = chosen
        self._confidence: list[float] = []
        """Per row, of the label that was chosen; not a number where there is none."""

    def add(self, input: Json, expected: Json, prediction: Prediction) -> None:
        given = words_of(input)
        for name, values in self._labels.items():
            gold, said = _part(expected, name), _part(prediction.output, name)
            # A row that does not say what is right has no class, and counts nowhere.
            self._gold[name].append(values.index(gold) if gold in values else -1)
            self._said[name].append(values.index(said) if said in values else -1)
        score = _part(prediction.output, "score") if self._chosen else None
        self._confidence.append(float(score) if isinstance(score, int | float) else np.nan)
        for name in self._texts:
            gold, said = _part(expected, name), _part(prediction.output, name)
            written = said if isinstance(said, str) else ""
            known = isinstance(gold, str)
            self._rouge[name].append(texts.rouge_l(gold, written) if known else np.nan)
            total = len(texts.facts(written))
            self._facts[name].append((total, total - len(texts.unsupported(written, given))))

    def figures(self, weights: Weights) -> Values:
        figures: dict[str, float | None] = {}
        for name in self._labels:
            counts = self._confusion(name, weights)
            figures[figure_of("accuracy", name, self._labels)] = classes.accuracy(counts)
            figures[figure_of("macro_f1", name, self._labels)] = classes.macro_f1(counts)
        if self._chosen is not None:
            figures |= self._trust(self._chosen, weights)
        for name in self._texts:
            rouge = np.array(self._rouge[name])
            known = weights * ~np.isnan(rouge)
            total = known.sum()
            figures[figure_of("rouge_l", name, self._texts)] = (
                float((known * np.nan_to_num(rouge)).sum() / total) if total else None
            )
            facts = weights @ np.array(self._facts[name], dtype=np.float64).reshape(-1, 2)
            figures[figure_of("supported", name, self._texts)] = (
                float(facts[1] / facts[0]) if facts[0] else None
            )
        return figures

    def _trust(self, name: str, weights: Weights) -> dict[str, float | None]:
        """How far the confidence in a label is the share of it that is right."""
        sure, right, known = self._certainty(name)
        counted = np.asarray(weights) * known
        if not known.any():
            return {}
        return {
            "ece": classes.calibration_error(sure, right, counted),
            "brier": classes.brier(sure, right, counted),
        }

    def _certainty(self, name: str) -> tuple[Floats, Floats, Floats]:
        """Per row how sure a label is, whether it is right, and whether both are known."""
        gold, said = np.array(self._gold[name]), np.array(self._said[name])
        sure = np.array(self._confidence)
        known = (gold >= 0) & (said >= 0) & ~np.isnan(sure)
        return np.nan_to_num(sure), (gold == said).astype(np.float64), known.astype(np.float64)

    def _confusion(self, name: str, weights: Weights) -> Floats:
        gold = np.array(self._gold[name], dtype=np.int64)
        said = np.array(self._said[name], dtype=np.int64)
        known = gold >= 0
        return classes.confusion(
            gold[known], said[known], len(self._labels[name]), np.asarray(weights)[known]
        )

    def label_f1(self, weights: Weights) -> Values:
        return {
            label_of(value, name, self._labels): f1
            for name, values in self._labels.items()
            for value, f1 in zip(
                values, classes.f1_by_class(self._confusion(name, weights)), strict=True
            )
        }

    def details(self) -> dict[str, Json]:
        labels: dict[str, Json] = {}
        matrices: dict[str, Json] = {}
        for name, values in self._labels.items():
            counts = self._confusion(name, np.ones(len(self._gold[name])))
            each = classes.per_class(counts)
            for at, value in enumerate(values):
                if len(values) > MOST_SHOWN and not (counts[at].any() or counts[:, at].any()):
                    continue  # of many values those that occur
                labels[label_of(value, name, self._labels)] = {
                    "precision": round(float(each.precision[at]), 4),
                    "recall": round(float(each.recall[at]), 4),
                    "f1": round(float(each.f1[at]), 4),
                    "rows": int(each.support[at]),
                }
            matrices[name] = {
                "labels": [str(value) for value in values],
                "rows": counts.astype(int).tolist(),
            }
        details: dict[str, Json] = {"labels": labels} if labels else {}
        if len(matrices) == 1:
            details["confusion"] = next(iter(matrices.values()))
        elif matrices:
            details["confusions"] = matrices
        if self._chosen is not None:
            certainty = self._certainty(self._chosen)
            details["reliability"] = classes.reliability_rows(*certainty)
        return details


def _part(value: Json, name: str) -> Json:
    if not name:
        return value
    return value.get(name) if isinstance(value, Mapping) else None
