"""Scorers of each way of answering, on rows small enough to check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agentkit.errors import InputError
from agentkit.evaluation.choice_scorer import ChoiceScorer
from agentkit.evaluation.marks_scorer import MarksScorer
from agentkit.evaluation.scoring import Prediction, scorable, words_of
from agentkit.evaluation.text_scorer import TextScorer
from agentkit.skill.manifest import Manifest

TEXT = "Acme pays Beta each month. Beta keeps it secret."


def span(start: int, end: int, score: float | None = None) -> dict[str, Any]:
    return {"start": start, "end": end} | ({} if score is None else {"score": score})


def ones(rows: int) -> np.ndarray:
    return np.ones(rows)


# ---------------------------------------------------------------- choices


def verdict(said: str, score: float, *evidence: dict[str, Any], every: Any = None) -> Prediction:
    output = {"verdict": said, "score": score, "evidence": list(evidence)}
    return Prediction(output, {**output, "evidence": every} if every is not None else None)


def test_choices_are_measured_with_their_confidence_and_evidence(choice_manifest: Manifest) -> None:
    scorer = ChoiceScorer(choice_manifest.answer)
    every = [span(0, 26, 0.9), span(27, 48, 0.2)]
    scorer.add(
        {},
        {"verdict": "yes", "evidence": [span(0, 25)]},
        verdict("yes", 0.8, span(0, 26), every=every),
    )
    scorer.add(
        {},
        {"verdict": "no", "evidence": [span(27, 48)]},
        verdict("yes", 0.6, span(0, 26), every=every),
    )
    scorer.add({}, {"verdict": "silent", "evidence": []}, verdict("silent", 0.5, every=every))
    figures = scorer.figures(ones(3))
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert figures["brier"] == pytest.approx((0.2**2 + 0.6**2 + 0.5**2) / 3)
    assert figures["evidence_f1"] == pytest.approx(2 * 1 / (2 + 2))
    assert figures["evidence_recall"] == 0.5
    # First row: the gold span is ranked first; second row: it is ranked second of two.
    assert figures["evidence_map"] == pytest.approx((1 + 1 / 2) / 2)
    details = scorer.details()
    assert details["labels"]["yes"] == {"precision": 0.5, "recall": 1.0, "f1": 0.6667, "rows": 1}
    assert details["confusion"]["rows"] == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]


def test_a_row_that_failed_is_wrong_but_has_no_confidence(choice_manifest: Manifest) -> None:
    scorer = ChoiceScorer(choice_manifest.answer)
    scorer.add({}, {"verdict": "yes"}, verdict("yes", 1.0))
    scorer.add({}, {"verdict": "yes"}, Prediction(None, error="too long"))
    figures = scorer.figures(ones(2))
    assert figures["accuracy"] == 0.5
    assert figures["brier"] == 0.0
    assert "evidence_f1" not in figures


def test_evidence_is_measured_only_of_what_points_at_it(choice_manifest: Manifest) -> None:
    expected = {"verdict": "yes", "evidence": [span(0, 25)]}
    prior, failed = ChoiceScorer(choice_manifest.answer), ChoiceScorer(choice_manifest.answer)
    prior.add({}, expected, Prediction({"verdict": "yes", "score": 0.7}))
    failed.add({}, expected, Prediction(None, error="too long"))
    assert "evidence_f1" not in prior.figures(ones(1))
    assert failed.figures(ones(1))["evidence_f1"] == 0.0


def test_an_answer_that_cannot_be_right_is_an_error(choice_manifest: Manifest) -> None:
    scorer = ChoiceScorer(choice_manifest.answer)
    with pytest.raises(InputError, match="verdict is 'maybe', not one of yes, no, silent"):
        scorer.add({}, {"verdict": "maybe"}, verdict("yes", 1.0))
    with pytest.raises(InputError, match="a span is"):
        scorer.add({}, {"verdict": "yes", "evidence": ["all of it"]}, verdict("yes", 1.0))


# ---------------------------------------------------------------- marks


def mark(label: str, start: int, end: int, score: float = 1.0) -> dict[str, Any]:
    return {"category": label, "quote": TEXT[start:end], **span(start, end, score)}


def test_marks_are_measured_by_overlap_and_by_the_curve(marks_manifest: Manifest) -> None:
    scorer = MarksScorer(marks_manifest.answer, lambda input: input["document"])
    expected = {"clauses": [mark("duty", 0, 26), mark("duty", 27, 48), mark("party", 0, 4)]}
    kept = [mark("duty", 0, 26, 0.9), mark("party", 10, 14, 0.6)]
    every = [*kept, mark("duty", 27, 48, 0.2), mark("party", 0, 4, 0.1)]
    scorer.add(
        {"document": TEXT},
        expected,
        # A field that the row says nothing of is not measured.
        Prediction({"clauses": kept, "names": [{"name": "party"}]}, {"clauses": every}),
    )
    figures = scorer.figures(ones(1))
    assert figures["span_precision"] == 0.5
    assert figures["span_recall"] == pytest.approx(1 / 3)
    assert figures["span_f1"] == pytest.approx(2 * 1 / (3 + 2))
    assert figures["exact_f1"] == figures["span_f1"]
    assert figures["macro_span_f1"] == pytest.approx((2 / 3 + 0) / 2)
    # Right at .9, wrong at .6, right at .2 and .1: precision 1, then 2/3, then 3/4 (made monotone).
    assert figures["aupr"] == pytest.approx((1 / 3) * 1 + (1 / 3) * (3 / 4) + (1 / 3) * (3 / 4))
    assert figures["precision_at_80_recall"] == pytest.approx(3 / 4)
    labels = scorer.details()["labels"]
    assert labels["duty"]["aupr"] == 1.0
    assert labels["party"]["aupr"] == pytest.approx(0.5)
    assert (labels["party"]["gold"], labels["party"]["found"]) == (1, 1)


def test_a_given_mark_should_be_as_sure_as_it_is_right(marks_manifest: Manifest) -> None:
    scorer = MarksScorer(marks_manifest.answer, lambda input: input["document"])
    expected = {"clauses": [mark("duty", 0, 26), mark("duty", 27, 48)], "names": []}
    part = mark("duty", 0, 10, 0.9)  # all of it lies in a gold one
    more = mark("duty", 20, 48, 0.8)  # a gold one lies in it
    wrong = mark("party", 0, 4, 0.6)
    kept = {"clauses": [part, more, wrong], "names": [{"name": "party", **span(0, 4, 0.6)}]}
    scorer.add({"document": TEXT}, expected, Prediction(kept, kept))
    scorer.add({"document": TEXT}, expected, Prediction(None, error="x"))
    figures = scorer.figures(ones(2))
    assert figures["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.6**2) / 3)
    assert figures["ece"] == pytest.approx((0.1 + 0.2 + 0.6) / 3)
    assert scorer.figures(np.array([0.0, 1.0]))["ece"] is None
    assert [one["rows"] for one in scorer.details()["reliability"] if one["rows"]] == [1, 1, 1]


def test_marks_in_a_document_that_failed_are_all_missed(marks_manifest: Manifest) -> None:
    scorer = MarksScorer(marks_manifest.answer, lambda input: input["document"])
    scorer.add({"document": TEXT}, {"clauses": [mark("duty", 0, 26)]}, Prediction(None, error="x"))
    figures = scorer.figures(ones(1))
    assert (figures["span_recall"], figures["aupr"], figures["span_precision"]) == (0.0, 0.0, None)


def test_a_mark_listed_in_two_fields_counts_once(marks_manifest: Manifest) -> None:
    scorer = MarksScorer(marks_manifest.answer, lambda input: input["document"])
    named = {"name": "party", "value": "Acme", **span(0, 4)}
    both = {"clauses": [mark("party", 0, 4)], "names": [named]}
    scorer.add({"document": TEXT}, both, Prediction(both, both))
    labels = scorer.details()["labels"]
    assert (labels["party"]["gold"], labels["party"]["found"]) == (1, 1)
    assert scorer.figures(ones(1))["span_f1"] == 1.0


def test_marks_that_do_not_fit_are_an_error(marks_manifest: Manifest) -> None:
    scorer = MarksScorer(marks_manifest.answer, lambda input: input["document"])
    with pytest.raises(InputError, match="there is no label 'fee'"):
        scorer.add({"document": TEXT}, {"clauses": [mark("fee", 0, 4)]}, Prediction({}))
    with pytest.raises(InputError, match="clauses: a mark is"):
        scorer.add({"document": TEXT}, {"clauses": [{"category": "duty"}]}, Prediction({}))


# ---------------------------------------------------------------- texts


def test_labels_and_texts_of_an_object_are_measured_apart(text_manifest: Manifest) -> None:
    scorer = TextScorer(text_manifest.output)
    scorer.add(
        {"text": "Acme pays within 30 days."},
        {"grade": "good", "said": "Pay in 30 days"},
        Prediction({"grade": "good", "said": "Pay in 30 days"}),
    )
    scorer.add(
        {"text": "Acme pays within 30 days."},
        {"grade": "bad", "said": "They pay"},
        Prediction({"grade": "good", "said": "We pay 40 to Acme"}),
    )
    figures = scorer.figures(ones(2))
    assert figures["accuracy"] == 0.5
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert figures["rouge_l"] == pytest.approx((1 + 2 * 1 / (2 + 5)) / 2)
    assert figures["supported"] == pytest.approx(2 / 3)
    assert scorer.details()["confusion"]["rows"] == [[1, 0, 0], [1, 0, 0]]
    assert scorer.figures(np.array([1.0, 0.0]))["supported"] == 1.0


def test_how_sure_a_chosen_label_is_is_measured_where_it_is_said(text_manifest: Manifest) -> None:
    scorer = TextScorer(text_manifest.output, "grade")
    for gold, score in (("good", 0.9), ("bad", 0.7), (None, 0.1)):
        expected = {"said": "x"} if gold is None else {"grade": gold}
        scorer.add({}, expected, Prediction({"grade": "good", "said": "x", "score": score}))
    scorer.add({}, {"grade": "good"}, Prediction(None, error="x"))
    figures = scorer.figures(ones(4))
    assert figures["ece"] == pytest.approx((0.1 + 0.7) / 2)
    assert figures["brier"] == pytest.approx((0.1**2 + 0.7**2) / 2)
    assert "ece" not in TextScorer(text_manifest.output).figures(ones(0))
    held = [one for one in scorer.details()["reliability"] if one["rows"]]
    assert [(one["confidence"], one["accuracy"], one["rows"]) for one in held] == [
        (0.7, 0.0, 1),
        (0.9, 1.0, 1),
    ]


def test_of_a_label_with_many_values_those_are_told_of_that_occur() -> None:
    topics = [f"topic {number}" for number in range(40)]
    schema = {"properties": {"topic": {"enum": topics}, "grade": {"enum": ["good", "bad"]}}}
    scorer = TextScorer(schema)
    scorer.add({}, {"topic": "topic 3"}, Prediction({"topic": "topic 8", "grade": "good"}))
    assert list(scorer.details()["labels"]) == [
        "topic=topic 3",
        "topic=topic 8",
        "grade=good",
        "grade=bad",
    ]


def test_several_fields_of_a_sort_bear_their_names() -> None:
    schema = {"properties": {name: {"type": "string"} for name in ("one", "other")}}
    scorer = TextScorer(schema)
    scorer.add({}, {"one": "a"}, Prediction({"one": "a", "other": "b"}))
    figures = scorer.figures(ones(1))
    assert figures["rouge_l.one"] == 1.0
    assert figures["rouge_l.other"] is None


def test_a_plain_text_is_measured_as_one() -> None:
    scorer = TextScorer({"type": "string"})
    scorer.add("Acme", "it is so", Prediction("it is so"))
    scorer.add("Acme", "it is so", Prediction(None, error="x"))
    assert scorer.figures(ones(2)) == {"rouge_l": 0.5, "supported": None}


def test_only_rows_that_say_what_is_right_can_be_measured(
    choice_manifest: Manifest, marks_manifest: Manifest
) -> None:
    plain = Manifest(name="plain", description="Plain.")
    assert scorable(choice_manifest, {"verdict": "yes"})
    assert not scorable(choice_manifest, {"evidence": []})
    assert scorable(marks_manifest, {"clauses": []})
    assert not scorable(marks_manifest, {})
    assert scorable(plain, "text")
    assert not scorable(plain, None)


def test_the_words_of_an_input_are_all_its_texts() -> None:
    assert words_of({"a": "x", "b": {"c": ["y", 3, None]}}).split() == ["x", "y", "3"]
