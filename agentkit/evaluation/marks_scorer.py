"""Measures of a skill that labels stretches of documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from agentkit.errors import InputError
from agentkit.evaluation import classes, spans
from agentkit.evaluation.resampling import Floats, Values, Weights
from agentkit.evaluation.scoring import Prediction, TextOf
from agentkit.skill.manifest import MarksAnswer
from agentkit.types import Json

_COUNTS = ("gold", "found", "matched", "exact")


class MarksScorer:
    """Stateful: per document and label the counts that span F1 and the curve are made of.

    Figures, over the marks of all labels together: `span_f1` at a Jaccard similarity of 0.5 in
    characters, `span_precision`, `span_recall`, `exact_f1`; `aupr` and `precision_at_80_recall` as
    `spans.curve` defines them; `macro_span_f1`, the mean over the labels that are right or found;
    `ece` and `brier` of the marks that are given, of which one is right if half of it lies in gold
    ones of its label, or half of a gold one lies in it: what a label head is trained to say.
    """

    def __init__(self, answer: MarksAnswer, text_of: TextOf) -> None:
        self._answer = answer
        self._text_of = text_of
        self._names = tuple(label.name for label in answer.labels)
        self._counts: list[Floats] = []
        """Per document `(labels, 4)`, columns as `_COUNTS`."""
        self._found: list[Floats] = []
        """Per document `(labels, thresholds + 1)`, as `spans.Tally`."""
        self._false: list[Floats] = []
        self._sure: list[float] = []
        """By mark that was given, as the next two."""
        self._right: list[bool] = []
        self._document: list[int] = []

    def add(self, input: Json, expected: Json, prediction: Prediction) -> None:
        text = self._text_of(input)
        asked = [field for field in self._answer.fields if expected.get(field) is not None]
        gold = _places(self._marks(expected, asked, "expected"))
        unknown = set(gold) - set(self._names)
        if unknown:
            raise InputError(f"there is no label {min(unknown)!r}", where="expected")
        said = self._said(prediction.output, asked, gold)
        scored: dict[str, list[tuple[str, float]]] = defaultdict(list)
        every = prediction.scores if prediction.scores is not None else prediction.output
        for name, (start, end), score in self._marks(every, asked, "output"):
            scored[name].append((text[start:end], score))
        counts = np.zeros((len(self._names), len(_COUNTS)))
        found = np.zeros((len(self._names), len(spans.THRESHOLDS) + 1))
        false = np.zeros_like(found)
        for at, name in enumerate(self._names):
            right, selected = sorted(gold.get(name, ())), sorted(said.get(name, ()))
            counts[at] = (
                len(right),
                len(selected),
                spans.matched(right, selected),
                len(set(right) & set(selected)),
            )
            texts = [text[start:end] for start, end in right]
            one = spans.tally(texts, scored.get(name, ()))
            found[at], false[at] = one.found, one.false
        self._counts.append(counts)
        self._found.append(found)
        self._false.append(false)

    def _said(
        self, output: Json, asked: Sequence[str], gold: Mapping[str, set[spans.Place]]
    ) -> dict[str, set[spans.Place]]:
        """The stretches that were given by label; keeps how sure each was, and if it is right."""
        places: dict[str, dict[spans.Place, float]] = defaultdict(dict)
        for name, place, score in self._marks(output, asked, "output"):
            places[name][place] = max(score, places[name].get(place, 0.0))
        for name, found in places.items():
            right = sorted(gold.get(name, ()))
            for place, score in found.items():
                self._sure.append(score)
                self._right.append(
                    spans.covered(place, right) >= spans.LEAST
                    or any(spans.covered(one, [place]) >= spans.LEAST for one in right)
                )
                self._document.append(len(self._counts))
        return {name: set(found) for name, found in places.items()}

    def _marks(
        self, value: Json, asked: Sequence[str], where: str
    ) -> Iterator[tuple[str, spans.Place, float]]:
        """Label, place and score of every mark in the fields that the row says something of."""
        for field in asked if isinstance(value, Mapping) else ():
            spec = self._answer.fields[field]
            for item in value.get(field) or ():
                try:
                    place = int(item["start"]), int(item["end"])
                    yield str(item[spec.label_key]), place, float(item.get("score", 1.0))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise InputError(
                        f'{field}: a mark is {{"{spec.label_key}": ..., "start": ..., "end": ...}}',
                        where=where,
                    ) from error

    def figures(self, weights: Weights) -> Values:
        counts = np.tensordot(weights, np.array(self._counts), axes=1)
        gold, found, matched, exact = counts.sum(axis=0)
        recall, precision = spans.curve(
            np.tensordot(weights, np.array(self._found), axes=1).sum(axis=0),
            np.tensordot(weights, np.array(self._false), axes=1).sum(axis=0),
            gold,
        )
        occurs = counts[:, 0] + counts[:, 1] > 0
        each = 2 * counts[occurs, 2] / (counts[occurs, 0] + counts[occurs, 1])
        return {
            "span_f1": spans.f1(matched, gold, found),
            "span_precision": float(matched / found) if found else None,
            "span_recall": float(matched / gold) if gold else None,
            "exact_f1": spans.f1(exact, gold, found),
            "macro_span_f1": float(each.mean()) if len(each) else None,
            "aupr": spans.area(recall, precision) if gold else None,
            "precision_at_80_recall": spans.precision_at(recall, precision, 0.8) if gold else None,
            "ece": classes.calibration_error(*self._given(weights)),
            "brier": classes.brier(*self._given(weights)),
        }

    def label_f1(self, weights: Weights) -> Values:
        counts = np.tensordot(weights, np.array(self._counts), axes=1)
        return {
            name: spans.f1(matched, gold, found)
            for name, (gold, found, matched, _) in zip(self._names, counts, strict=True)
        }

    def _given(self, weights: Weights) -> tuple[Floats, Floats, Weights]:
        """How sure each given mark was, whether it is right, and how often it counts."""
        sure, right = np.array(self._sure), np.array(self._right, dtype=np.float64)
        return sure, right, np.asarray(weights)[np.array(self._document, dtype=np.int64)]

    def details(self) -> dict[str, Json]:
        counts = np.sum(self._counts, axis=0)
        every, false = np.sum(self._found, axis=0), np.sum(self._false, axis=0)
        labels: dict[str, Json] = {}
        for at, name in enumerate(self._names):
            gold, found, matched, exact = (float(count) for count in counts[at])
            recall, precision = spans.curve(every[at], false[at], gold)
            labels[name] = {
                "span_f1": _rounded(spans.f1(matched, gold, found)),
                "exact_f1": _rounded(spans.f1(exact, gold, found)),
                "aupr": _rounded(spans.area(recall, precision)) if gold else None,
                "precision_at_80_recall": _rounded(spans.precision_at(recall, precision, 0.8))
                if gold
                else None,
                "gold": int(gold),
                "found": int(found),
            }
        recall, precision = spans.curve(every.sum(0), false.sum(0), float(counts[:, 0].sum()))
        return {
            "labels": labels,
            "curve": {
                "recall": [round(float(r), 4) for r in recall],
                "precision": [round(float(p), 4) for p in precision],
            },
            "reliability": classes.reliability_rows(*self._given(np.ones(len(self._counts)))),
        }


def _places(
    marks: Iterator[tuple[str, spans.Place, float]],
) -> dict[str, set[spans.Place]]:
    """Each label's stretches; one that several output fields list counts once."""
    places: dict[str, set[spans.Place]] = defaultdict(set)
    for name, place, _ in marks:
        places[name].add(place)
    return places


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
