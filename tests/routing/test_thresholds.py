"""Thresholds of confidence: fitted where there are examples, usual where there are few."""

from __future__ import annotations

import numpy as np
import pytest

from agentkit.routing.thresholds import (
    fit_thresholds,
    lonely_rows,
    needed_lead,
    sureness,
    usual_threshold,
)


def rows(count: int, inside: float, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """`count` rows of each of two skills at a confidence, and as many for neither."""
    label = np.repeat([0, 1, 2], count)
    confidence = np.zeros((3 * count, 2))
    confidence[label == 0, 0] = confidence[label == 1, 1] = inside
    confidence[label == 2, 0] = outside
    return confidence, label


def test_it_lies_between_what_fits_and_what_does_not() -> None:
    threshold, own = fit_thresholds(*rows(500, 0.3, 0.1), 2, np.ones(1500))
    # Drawn a little towards the usual one, which is higher.
    assert 0.1 < threshold < 0.31
    assert ((own > 0.1) & (own < 0.31)).all()


def test_few_examples_move_it_little() -> None:
    usual = usual_threshold(2)
    few, _ = fit_thresholds(*rows(2, 0.95, 0.9), 2, np.ones(6))
    many, _ = fit_thresholds(*rows(500, 0.95, 0.9), 2, np.ones(1500))
    assert usual < few < many


@pytest.mark.parametrize("skills", [0, 1, 5, 200])
def test_the_usual_threshold_asks_for_less_the_more_skills_there_are(skills: int) -> None:
    assert 0.25 <= usual_threshold(skills) <= 0.5
    assert usual_threshold(skills) >= usual_threshold(skills + 1)


def test_a_lead_is_measured_by_the_confidence_in_both() -> None:
    assert needed_lead(0.5, 0.5) == pytest.approx(0.1)
    assert needed_lead(0.05, 0.01) < 0.04


def test_rows_that_two_skills_share_are_refused_at_every_threshold() -> None:
    confidence, label = rows(500, 0.9, 0.1)
    outside = label == 2
    confidence[outside] = 0.45
    shared, _ = fit_thresholds(confidence, label, 2, np.ones(1500))
    confidence[outside, 1] = 0.0
    single, _ = fit_thresholds(confidence, label, 2, np.ones(1500))
    assert shared < single


def test_requests_that_somebody_spoke_for_outweigh_the_guessed_ones() -> None:
    assert sureness(np.arange(50), 0).tolist() == [1.0] * 50
    weight = sureness(np.arange(300), 100)
    assert (weight[:100] == 1.0).all()
    assert weight[100:].sum() == pytest.approx(10.0)
    assert sureness(np.arange(240), 40)[40:].sum() == pytest.approx(60.0)


def test_of_each_skill_the_half_that_is_least_like_the_others_is_taken_and_all_background() -> None:
    cosine = np.array([0.9, 0.2, 0.5, 0.8, 0.1, 0.3])
    own = np.array([0, 0, 0, 1, 2, 2])
    assert sorted(lonely_rows(cosine, own, 2).tolist()) == [1, 2, 3, 4, 5]
