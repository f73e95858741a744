"""Cheap baselines: what a skill must beat to be worth its adapter.

They learn from labelled rows in a second and read no document with a model.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from agentkit.errors import InputError
from agentkit.evaluation.scoring import Prediction, expected_fields, scorable, words_of
from agentkit.skill.manifest import ChoiceAnswer, Manifest, MarksAnswer
from agentkit.training.rows import Row
from agentkit.types import Json

Predictor: TypeAlias = Callable[[Sequence[Row]], list[Prediction]]

NEIGHBOURS = 7
"""Of these nearest rows the most frequent value is a label's."""


def baselines(manifest: Manifest, rows: Sequence[Row]) -> dict[str, Predictor]:
    """The baselines that fit how a skill answers, by name, made from training rows.

    Raises `InputError` when no row says what is right, or the skill labels stretches: there is no
    cheap way to do that.
    """
    if isinstance(manifest.answer, MarksAnswer):
        raise InputError(
            "there is no cheap baseline for a skill that marks stretches",
            where=f"skill {manifest.name}",
            hint="compare with --base",
        )
    known = [row for row in rows if scorable(manifest, row.expected)]
    if not known:
        raise InputError("no row says what is right", where="training rows of the baseline")
    if isinstance(manifest.answer, ChoiceAnswer):
        prior = {"prior": _prior(manifest, manifest.answer, known)}
        if manifest.retrieval.document is not None:
            return prior
        return prior | {"tf-idf": _neighbours(manifest, known, {manifest.answer.field})}
    labels = {
        name
        for name, part in manifest.output.get("properties", {}).items()
        if "enum" in part or part.get("type") == "boolean"
    }
    return {"tf-idf": _neighbours(manifest, known, labels)}


def _prior(manifest: Manifest, answer: ChoiceAnswer, rows: Sequence[Row]) -> Predictor:
    """Each question's most frequent answer, whatever the document says.

    A question is the input without its document; one that was never asked gets the answer that is
    most frequent in all.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    every: Counter[str] = Counter()
    for row in rows:
        label = row.expected[answer.field]
        counts[_question(row, manifest)][label] += 1
        every[label] += 1

    def predict(asked: Sequence[Row]) -> list[Prediction]:
        predictions = []
        for row in asked:
            seen = counts.get(_question(row, manifest), every)
            label, times = seen.most_common(1)[0]
            output: dict[str, Json] = {answer.field: label, "score": times / seen.total()}
            predictions.append(Prediction(output))
        return predictions

    return predict


def _question(row: Row, manifest: Manifest) -> str:
    if not isinstance(row.input, Mapping):
        return json.dumps(row.input)
    document = manifest.retrieval.document
    asked = {key: value for key, value in row.input.items() if key != document}
    return json.dumps(asked, sort_keys=True)


def _neighbours(manifest: Manifest, rows: Sequence[Row], labels: set[str]) -> Predictor:
    """The text of the nearest training row, and its labels by the vote of the nearest few.

    A choice's score is its share of the votes. Nearness is the cosine of TF-IDF vectors over words
    and pairs of words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        known = vectorizer.fit_transform([words_of(row.input) for row in rows])
    except ValueError as error:
        raise InputError("no words to compare", where="training rows of the baseline") from error
    fields = expected_fields(manifest)

    def predict(asked: Sequence[Row]) -> list[Prediction]:
        near = (vectorizer.transform([words_of(row.input) for row in asked]) @ known.T).toarray()
        return [Prediction(_copied(rows, scores, fields, labels)) for scores in near]

    return predict


def _copied(rows: Sequence[Row], scores: Any, fields: set[str], labels: set[str]) -> Json:
    order = np.argsort(-scores, kind="stable")[:NEIGHBOURS]
    nearest = rows[int(order[0])].expected
    if not isinstance(nearest, Mapping):
        return nearest
    output = {name: value for name, value in nearest.items() if name in fields}
    for name in labels & set(output):
        votes = Counter(
            rows[int(at)].expected[name] for at in order if name in rows[int(at)].expected
        )
        output[name], times = votes.most_common(1)[0]
        output.setdefault("score", times / votes.total())
    return output
