"""Measures of a skill that picks one of a few answers and may point at its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agentkit.errors import InputError
from agentkit.evaluation import classes, spans
from agentkit.evaluation.resampling import Values, Weights
from agentkit.evaluation.scoring import Prediction
from agentkit.skill.manifest import ChoiceAnswer
from agentkit.types import Json


@dataclass(frozen=True, slots=True)
class _Evidence:
    gold: int
    found: int
    matched: int
    covered: int
    """Gold spans of which at least half is selected."""
    ranked: float | None
    """Average precision of all spans by their score; None without gold spans or scores."""


class ChoiceScorer:
    """Stateful: right and said classes, confidence and evidence counts of the rows so far.

    Figures: `accuracy`, `macro_f1`, `ece`, `brier`; where rows give evidence, F1 of the selected
    spans that overlap a gold one by a Jaccard similarity of 0.5 (`evidence_f1`), the share of gold
    spans of which at least half was selected (`evidence_recall`), and the mean over the rows with
    evidence of the average precision of all spans ranked by score (`evidence_map`; a span is
    relevant if half of it lies in gold ones).
    """

    def __init__(self, answer: ChoiceAnswer) -> None:
        self._answer = answer
        self._gold: list[int] = []
        self._said: list[int] = []
        self._confidence: list[float] = []
        self._evidence: list[_Evidence | None] = []

    def add(self, input: Json, expected: Json, prediction: Prediction) -> None:
        answer = self._answer
        gold = expected.get(answer.field)
        if gold not in answer.choices:
            raise InputError(
                f"{answer.field} is {gold!r}, not one of {', '.join(answer.choices)}",
                where="expected",
            )
        output = prediction.output if isinstance(prediction.output, Mapping) else {}
        said = output.get(answer.field)
        self._gold.append(answer.choices.index(gold))
        self._said.append(answer.choices.index(said) if said in answer.choices else -1)
        self._confidence.append(float(output.get("score", 0.0)))
        field = answer.evidence_field
        # What never points at evidence, as a prior does not, is not measured by it.
        points = prediction.error is not None or field in output
        known = field is not None and expected.get(field) is not None and points
        self._evidence.append(
            _evidence_of(expected[field], output.get(field), prediction.scores, str(field))
            if known
            else None
        )

    def figures(self, weights: Weights) -> Values:
        gold, said = np.array(self._gold, dtype=np.int64), np.array(self._said, dtype=np.int64)
        counts = classes.confusion(gold, said, len(self._answer.choices), weights)
        sure, right = np.array(self._confidence), (gold == said).astype(np.float64)
        answered = weights * (said >= 0)
        return {
            "accuracy": classes.accuracy(counts),
            "macro_f1": classes.macro_f1(counts),
            "ece": classes.calibration_error(sure, right, answered),
            "brier": classes.brier(sure, right, answered),
            **self._evidence_figures(weights),
        }

    def label_f1(self, weights: Weights) -> Values:
        names = self._answer.choices
        gold, said = np.array(self._gold, dtype=np.int64), np.array(self._said, dtype=np.int64)
        counts = classes.confusion(gold, said, len(names), weights)
        return dict(zip(names, classes.f1_by_class(counts), strict=True))

    def _evidence_figures(self, weights: Weights) -> Values:
        rows = [(w, e) for w, e in zip(weights, self._evidence, strict=True) if e is not None]
        if not any(e.gold for _, e in rows):
            return {}
        gold = sum(w * e.gold for w, e in rows)
        figures: dict[str, float | None] = {
            "evidence_f1": spans.f1(
                sum(w * e.matched for w, e in rows), gold, sum(w * e.found for w, e in rows)
            ),
            "evidence_recall": sum(w * e.covered for w, e in rows) / gold if gold else None,
        }
        ranked = [(w, e.ranked) for w, e in rows if e.ranked is not None]
        if ranked:
            total = sum(w for w, _ in ranked)
            figures["evidence_map"] = sum(w * r for w, r in ranked) / total if total else None
        return figures

    def details(self) -> dict[str, Json]:
        names = self._answer.choices
        gold, said = np.array(self._gold, dtype=np.int64), np.array(self._said, dtype=np.int64)
        counts = classes.confusion(gold, said, len(names), np.ones(len(gold)))
        each = classes.per_class(counts)
        answered = (said >= 0).astype(np.float64)
        right = (gold == said).astype(np.float64)
        return {
            "labels": {
                name: {
                    "precision": round(float(each.precision[at]), 4),
                    "recall": round(float(each.recall[at]), 4),
                    "f1": round(float(each.f1[at]), 4),
                    "rows": int(each.support[at]),
                }
                for at, name in enumerate(names)
            },
            "confusion": {"labels": [*names], "rows": counts.astype(int).tolist()},
            "reliability": classes.reliability_rows(np.array(self._confidence), right, answered),
        }


def _evidence_of(gold: Json, found: Json, scores: Json, field: str) -> _Evidence:
    right = sorted({_place(item) for item in gold})
    said = sorted({_place(item) for item in found or ()})
    every = scores.get(field) if isinstance(scores, Mapping) else None
    ranked = None
    if right and every is not None:
        hits = [spans.covered(_place(item), right) >= spans.LEAST for item in every]
        # Gold spans that the model was not shown are there to be found all the same.
        relevant = max(sum(hits), len(right))
        ranked = spans.average_precision(hits, [item["score"] for item in every], relevant)
    return _Evidence(
        gold=len(right),
        found=len(said),
        matched=spans.matched(right, said),
        covered=sum(spans.covered(place, said) >= spans.LEAST for place in right),
        ranked=ranked,
    )


def _place(item: Json) -> spans.Place:
    try:
        return int(item["start"]), int(item["end"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError('a span is {"start": ..., "end": ...}', where="expected") from error
