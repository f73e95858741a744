"""Intervals over documents: whole documents are drawn, and differences are paired."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.evaluation.resampling import Weights, document_weights, intervals


def mean_of(values: list[float]):
    array = np.array(values)

    def measure(weights: Weights) -> dict[str, float | None]:
        total = weights.sum()
        return {"mean": float((weights * array).sum() / total) if total else None}

    return measure


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30), st.integers(0, 5))
def test_rows_of_a_document_are_drawn_together_and_as_many_documents_as_there_are(
    groups: list[str], seed: int
) -> None:
    count = len(set(groups))
    drawn = list(document_weights(groups, resamples=5, seed=seed))
    assert len(drawn) == (5 if count > 1 else 0)
    for weights in drawn:
        by_document = {
            name: {w for w, g in zip(weights, groups, strict=True) if g == name} for name in groups
        }
        assert all(len(times) == 1 for times in by_document.values())
        assert sum(times.pop() for times in by_document.values()) == count


def test_the_interval_of_a_mean_is_that_of_its_sampling_distribution() -> None:
    values = list(np.random.default_rng(0).normal(size=400))
    found = intervals({"mine": mean_of(values)}, [str(n) for n in range(400)], resamples=4000)
    figure = found.figures["mine"]["mean"]
    error = np.std(values) / 20
    assert figure.value == pytest.approx(np.mean(values))
    assert figure.low == pytest.approx(np.mean(values) - 1.96 * error, abs=0.1 * error)
    assert figure.high == pytest.approx(np.mean(values) + 1.96 * error, abs=0.1 * error)


def test_rows_that_share_documents_give_a_wider_interval() -> None:
    values = [float(n // 10 % 2) for n in range(200)]
    alone = intervals({"mine": mean_of(values)}, [str(n) for n in range(200)])
    together = intervals({"mine": mean_of(values)}, [str(n // 10) for n in range(200)])
    wide, narrow = (found.figures["mine"]["mean"] for found in (together, alone))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_difference_is_taken_within_each_resample() -> None:
    values = list(np.random.default_rng(1).normal(size=50))
    other = [value - 0.5 for value in values]
    found = intervals(
        {"mine": mean_of(values), "theirs": mean_of(other)}, [str(n) for n in range(50)]
    )
    less = found.differences["theirs"]["mean"]
    assert (less.value, less.low, less.high) == pytest.approx((0.5, 0.5, 0.5))
    assert set(found.differences) == {"theirs"}


def test_the_same_seed_gives_the_same_figures() -> None:
    values = list(np.random.default_rng(2).normal(size=40))
    measure, groups = {"mine": mean_of(values)}, [str(n) for n in range(40)]
    assert intervals(measure, groups, seed=3) == intervals(measure, groups, seed=3)
    assert intervals(measure, groups, seed=3) != intervals(measure, groups, seed=4)


def test_one_document_has_figures_and_no_interval() -> None:
    figure = intervals({"mine": mean_of([1.0, 0.0])}, ["a", "a"]).figures["mine"]["mean"]
    assert (figure.value, figure.low, figure.high) == (0.5, None, None)


def test_a_figure_that_no_row_defines_is_none() -> None:
    found = intervals({"mine": lambda _: {"share": None}}, ["a", "b"])
    assert found.figures["mine"]["share"].to_json() == {"value": None, "low": None, "high": None}
