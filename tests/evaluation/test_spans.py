"""Span measures by hand, against a plain rereading of the curve's definition, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score

from agentkit.evaluation import spans

PLACE = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda ends: tuple(sorted(ends)))


@given(PLACE, PLACE)
def test_overlap_is_jaccard_over_characters(one, other) -> None:
    a, b = set(range(*one)), set(range(*other))
    expected = len(a & b) / len(a | b) if a | b else 0.0
    assert spans.overlap(one, other) == pytest.approx(expected)
    assert spans.overlap(one, other) == spans.overlap(other, one)


def test_matches_are_pairs_the_best_first() -> None:
    gold = [(0, 10), (20, 30)]
    assert spans.matched(gold, [(0, 10), (2, 10), (20, 24)]) == 1
    assert spans.matched(gold, [(2, 10), (21, 30)]) == 2
    assert spans.matched([], [(0, 1)]) == 0
    assert spans.f1(1, 2, 3) == pytest.approx(2 * (1 / 2 * 1 / 3) / (1 / 2 + 1 / 3))
    assert spans.f1(0, 0, 0) is None


@given(st.lists(PLACE, max_size=6), st.lists(PLACE, max_size=6))
def test_there_are_never_more_matches_than_spans_and_all_match_themselves(gold, found) -> None:
    assert spans.matched(gold, found) <= min(len(gold), len(found))
    whole = [place for place in set(gold) if place[1] > place[0]]
    assert spans.matched(whole, whole) == len(whole)


def test_coverage_is_the_share_of_a_spans_characters() -> None:
    assert spans.covered((0, 10), [(0, 3), (2, 5), (50, 60)]) == 0.5
    assert spans.covered((3, 3), [(0, 9)]) == 0.0


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert spans.words("The Fees; and/or costs.") == {"the", "fees", "and", "or", "costs"}
    assert spans.word_jaccard(spans.words("a b c"), spans.words("B, C d")) == 0.5
    assert spans.word_jaccard(frozenset(), frozenset()) == 0.0


def test_area_and_precision_at_recall_by_hand() -> None:
    # Scores .95 right, .75 wrong, .55 right; the third gold span is never found.
    one = spans.tally(["alpha", "beta", "gamma"], [("alpha", 0.95), ("no", 0.75), ("beta", 0.55)])
    recall, precision = spans.curve(one.found, one.false, one.gold)
    # Precision 1 up to recall 1/3; the wrong one makes it 1/2 there, but 2/3 is reached after it.
    assert spans.area(recall, precision) == pytest.approx(1 / 3 + (1 / 3) * (2 / 3))
    assert spans.precision_at(recall, precision, 0.6) == pytest.approx(2 / 3)
    assert spans.precision_at(recall, precision, 0.8) == 0.0


def test_a_text_predicted_twice_counts_once_and_two_matches_of_one_gold_span_count_once() -> None:
    one = spans.tally(["a b c d"], [("x", 0.3), ("x", 0.5), ("a b c", 0.6), ("b c d", 0.7)])
    assert one.false.sum() == 1
    assert one.false.nonzero()[0][0] == (spans.THRESHOLDS < 0.5).sum()
    assert one.found.sum() == 1
    assert one.found.nonzero()[0][0] == (spans.THRESHOLDS < 0.7).sum()


WORDS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4).map(" ".join)
DOCUMENTS = st.lists(
    st.tuples(
        st.lists(WORDS, max_size=3),
        st.dictionaries(WORDS, st.integers(1, 9999).map(lambda n: n / 10_000), max_size=5),
    ),
    min_size=1,
    max_size=4,
)


def plain_curve(documents) -> tuple[list[float], list[float]]:
    """Recall and precision at each threshold, counted anew from the texts."""
    similar = {}

    def match(one: str, other: str) -> bool:
        a, b = set(one.split()), set(other.split())
        return similar.setdefault((one, other), len(a & b) / len(a | b) >= 0.5)

    recalls, precisions = [0.0], [1.0]
    for least in spans.THRESHOLDS:
        hits = misses = total = 0
        for gold, scored in documents:
            kept = [text for text, score in scored.items() if score > least]
            total += len(gold)
            hits += sum(any(match(g, k) for k in kept) for g in gold)
            misses += sum(not any(match(g, k) for g in gold) for k in kept)
        if hits + misses:
            recalls.append(hits / total if total else 0.0)
            precisions.append(hits / (hits + misses))
    best = precisions[:]
    for at in range(len(best) - 2, -1, -1):
        best[at] = max(best[at], best[at + 1])
    return recalls, best


@given(DOCUMENTS)
def test_the_curve_of_many_documents_is_the_definitions(documents) -> None:
    tallies = [spans.tally(gold, list(scored.items())) for gold, scored in documents]
    recall, precision = spans.curve(
        np.sum([t.found for t in tallies], axis=0),
        np.sum([t.false for t in tallies], axis=0),
        sum(t.gold for t in tallies),
    )
    recalls, precisions = plain_curve(documents)
    assert recall == pytest.approx(recalls)
    assert precision == pytest.approx(precisions)
    if len(recalls) > 1:
        assert spans.area(recall, precision) == pytest.approx(auc(recalls, precisions))


@given(DOCUMENTS)
def test_precision_never_rises_with_recall(documents) -> None:
    tallies = [spans.tally(gold, list(scored.items())) for gold, scored in documents]
    recall, precision = spans.curve(
        np.sum([t.found for t in tallies], axis=0),
        np.sum([t.false for t in tallies], axis=0),
        sum(t.gold for t in tallies),
    )
    assert (np.diff(recall) >= 0).all()
    assert (np.diff(precision) <= 0).all()
    assert 0 <= spans.area(recall, precision) <= 1 + 1e-9


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30).filter(
        lambda rows: any(hit for hit, _ in rows)
    )
)
def test_average_precision_is_scikit_learns_also_with_ties(rows) -> None:
    hits, scores = [hit for hit, _ in rows], [score / 5 for _, score in rows]
    expected = average_precision_score(hits, scores)
    assert spans.average_precision(hits, scores, sum(hits)) == pytest.approx(expected)


def test_relevant_items_that_were_not_ranked_lower_the_average_precision() -> None:
    assert spans.average_precision([True, False], [0.9, 0.1], 2) == 0.5
    assert spans.average_precision([], [], 2) == 0.0
