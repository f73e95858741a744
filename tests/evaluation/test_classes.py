"""Choice measures against hand-computed values and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    precision_recall_fscore_support,
)

from agentkit.evaluation import classes

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def ones(values) -> np.ndarray:
    return np.ones(len(values))


def arrays(rows):
    gold, said = np.array(rows, dtype=np.int64).T
    return gold, said


@given(ROWS)
def test_accuracy_and_macro_f1_are_scikit_learns(rows) -> None:
    gold, said = arrays(rows)
    counts = classes.confusion(gold, said, 4, ones(gold))
    assert classes.accuracy(counts) == pytest.approx(accuracy_score(gold, said))
    expected = f1_score(gold, said, average="macro", zero_division=0)
    assert classes.macro_f1(counts) == pytest.approx(expected)


@given(ROWS)
def test_figures_of_each_class_are_scikit_learns(rows) -> None:
    gold, said = arrays(rows)
    each = classes.per_class(classes.confusion(gold, said, 4, ones(gold)))
    expected = precision_recall_fscore_support(gold, said, labels=range(4), zero_division=0)
    for mine, theirs in zip(
        (each.precision, each.recall, each.f1, each.support), expected, strict=True
    ):
        assert mine == pytest.approx(theirs)


@given(ROWS, st.data())
def test_a_row_that_counts_twice_is_two_rows(rows, data) -> None:
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    gold, said = arrays(rows)
    weighted = classes.confusion(gold, said, 4, np.array(times, dtype=float))
    repeated = classes.confusion(
        np.repeat(gold, times), np.repeat(said, times), 4, np.ones(sum(times))
    )
    assert weighted.tolist() == repeated.tolist()


def test_an_answer_that_is_no_class_is_wrong_and_in_the_last_column() -> None:
    gold, said = np.array([0, 1]), np.array([0, -1])
    counts = classes.confusion(gold, said, 2, ones(gold))
    assert counts.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert classes.accuracy(counts) == 0.5
    assert classes.per_class(counts).recall.tolist() == [1, 0]


def test_calibration_error_by_hand() -> None:
    # Two bins: 0.9 sure and right in one of two; 0.65 and 0.61 sure and both right.
    sure = np.array([0.9, 0.9, 0.65, 0.61])
    right = np.array([1.0, 0.0, 1.0, 1.0])
    expected = (2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.63)) / 4
    assert classes.calibration_error(sure, right, ones(sure)) == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration_error_lies_within_0_and_1_and_brier_is_scikit_learns(rows) -> None:
    sure = np.array([value for value, _ in rows])
    right = np.array([flag for _, flag in rows], dtype=float)
    assert 0 <= classes.calibration_error(sure, right, ones(sure)) <= 1 + 1e-9
    expected = np.mean((sure - right) ** 2)
    assert classes.brier(sure, right, ones(sure)) == pytest.approx(expected)
    if len(set(right)) == 2:
        assert expected == pytest.approx(brier_score_loss(right, sure))


def test_without_rows_nothing_is_defined() -> None:
    counts = np.zeros((2, 3))
    none = np.zeros(1)
    assert classes.accuracy(counts) is None
    assert classes.macro_f1(counts) is None
    assert classes.calibration_error(none, none, none) is None
    assert classes.brier(none, none, none) is None
