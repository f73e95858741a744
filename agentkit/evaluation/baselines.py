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
from agentkit.evaluation.spans import Place
from agentkit.retrieval.spans import split_spans
from agentkit.skill.manifest import ChoiceAnswer, Manifest, MarksAnswer
from agentkit.training.rows import Row
from agentkit.types import Json

Predictor: TypeAlias = Callable[[Sequence[Row]], list[Prediction]]

NEIGHBOURS = 7
"""Of these nearest rows the most frequent value is a label's."""
_AT_ONCE = 256
"""Sentences that are compared together: each with every known one."""


def baselines(manifest: Manifest, rows: Sequence[Row]) -> dict[str, Predictor]:
    """The baselines that fit how a skill answers, by name, made from training rows.

    Raises `InputError` when no row says what is right, or a row of a skill that labels stretches
    does not hold its document's text.
    """
    known = [row for row in rows if scorable(manifest, row.expected)]
    if not known:
        raise InputError("no row says what is right", where="training rows of the baseline")
    if isinstance(manifest.answer, MarksAnswer):
        return {"tf-idf": _marked(manifest, manifest.answer, known)}
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


def _marked(manifest: Manifest, answer: MarksAnswer, rows: Sequence[Row]) -> Predictor:
    """Sentences labelled by those that are nearest in the training documents, whole ones always.

    A label's score is the share of the nearness that carries it.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    names = [label.name for label in answer.labels]
    sentences: list[str] = []
    held: list[list[bool]] = []
    for row in rows:
        text = _document(manifest, row)
        gold = _gold_places(answer, row)
        for span in split_spans(text):
            place = (span.start, span.end)
            sentences.append(text[span.start : span.end])
            held.append([any(_on(place, one) for one in gold.get(name, ())) for name in names])
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    try:
        known = vectorizer.fit_transform(sentences)
    except ValueError as error:
        raise InputError("no words to compare", where="training rows of the baseline") from error
    carried = np.array(held, dtype=np.float64)

    def predict(asked: Sequence[Row]) -> list[Prediction]:
        predictions = []
        for row in asked:
            text = _document(manifest, row)
            places = [(span.start, span.end) for span in split_spans(text)]
            parts = [np.zeros((0, len(names)))]
            for at in range(0, len(places), _AT_ONCE):
                said = [text[start:end] for start, end in places[at : at + _AT_ONCE]]
                near = (vectorizer.transform(said) @ known.T).toarray()
                parts.append(_votes(near, carried))
            scores = np.concatenate(parts)
            predictions.append(
                Prediction(
                    _marks(answer, text, places, scores, everything=False),
                    _marks(answer, text, places, scores, everything=True),
                )
            )
        return predictions

    return predict


def _votes(near: Any, carried: Any) -> Any:
    """`(asked, labels)`: of the nearness `(asked, known)` of the nearest few, what carries each."""
    few = min(NEIGHBOURS, near.shape[1])
    nearest = np.argpartition(-near, few - 1, axis=1)[:, :few]
    share = np.take_along_axis(near, nearest, axis=1)
    votes = (share[:, :, None] * carried[nearest]).sum(axis=1)
    return votes / np.maximum(share.sum(axis=1, keepdims=True), 1e-9)


def _marks(
    answer: MarksAnswer, text: str, places: Sequence[Place], scores: Any, *, everything: bool
) -> Json:
    marks: dict[str, list[Json]] = {field: [] for field in answer.fields}
    for column, label in enumerate(answer.labels):
        order = [int(at) for at in np.argsort(-scores[:, column], kind="stable")]
        least = 0.5 if label.threshold is None else label.threshold
        least = 1e-9 if everything else max(least, 1e-9)
        kept = [at for at in order if scores[at, column] >= least]
        for at in kept if everything else kept[: label.limit]:
            start, end = places[at]
            place = {"start": start, "end": end, "score": round(float(scores[at, column]), 4)}
            for field, spec in answer.fields.items():
                if spec.labels is None or label.name in spec.labels:
                    named = {spec.label_key: label.name, spec.quote_key: text[start:end]}
                    marks[field].append(named | place)
    return marks


def _document(manifest: Manifest, row: Row) -> str:
    field = manifest.retrieval.document
    text = row.input.get(field) if field and isinstance(row.input, Mapping) else None
    if not isinstance(text, str):
        raise InputError("the row does not hold its document's text", where="baseline")
    return text


def _gold_places(answer: MarksAnswer, row: Row) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = defaultdict(list)
    for field, spec in answer.fields.items():
        for item in row.expected.get(field) or ():
            places[item[spec.label_key]].append((int(item["start"]), int(item["end"])))
    return places


def _on(place: Place, gold: Place) -> bool:
    """Whether half of one lies in the other."""
    shared = min(place[1], gold[1]) - max(place[0], gold[0])
    return shared > 0 and 2 * shared >= min(place[1] - place[0], gold[1] - gold[0])


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
