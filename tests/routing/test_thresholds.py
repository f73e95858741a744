"""Thresholds of confidence: fitted where there are examples, usual where there are few."""

from __future__ import annotations

import numpy as np
import pytest

from agentkit.routing.thresholds import fit_thresholds, usual_threshold


def rows(count: int, inside: float, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """`count` rows of each of two skills at a confidence, and as many for neither."""
    label = np.repeat([0, 1, 2], count)
    confidence = np.zeros((3 * count, 2))
    confidence[label == 0, 0] = confidence[label == 1, 1] = inside
    confidence[label == 2, 0] = outside
    return confidence, label


def test_it_lies_between_what_fits_and_what_does_not() -> None:
    threshold, own = fit_thresholds(*rows(500, 0.3, 0.1), 2)
    # Drawn a little towards the usual one, which is higher.
    assert 0.1 < threshold < 0.31
    assert ((own > 0.1) & (own < 0.31)).all()


def test_few_examples_move_it_little() -> None:
    usual = usual_threshold(2)
    few, _ = fit_thresholds(*rows(2, 0.95, 0.9), 2)
    many, _ = fit_thresholds(*rows(500, 0.95, 0.9), 2)
    assert usual < few < many


@pytest.mark.parametrize("skills", [0, 1, 5, 200])
def test_the_usual_threshold_asks_for_less_the_more_skills_there_are(skills: int) -> None:
    assert 0.25 <= usual_threshold(skills) <= 0.5
    assert usual_threshold(skills) >= usual_threshold(skills + 1)
