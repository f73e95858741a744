"""Discriminants and the head: closed forms against what they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from agentkit.routing.discriminant import Discriminant
from agentkit.routing.head import fit_head

RNG = np.random.default_rng(0)
LABEL = np.repeat(np.arange(3), 40)
FEATURES = (RNG.normal(0, 0.4, (120, 6)) + np.eye(3, 6)[LABEL]).astype(np.float32)
WEIGHT = np.ones(120)


def test_held_out_scores_are_those_of_a_fit_without_the_row() -> None:
    model = Discriminant.fit(FEATURES, LABEL, WEIGHT, 3)
    ratio, distance = model.held_out(FEATURES, LABEL, WEIGHT)
    for row in range(0, 120, 13):
        rest = np.arange(120) != row
        other = Discriminant.fit(FEATURES[rest], LABEL[rest], WEIGHT[rest], 3)
        expected, expected_distance = other.scores(FEATURES[row : row + 1])
        # The covariance's prior and its degrees of freedom are those of all rows.
        between = ratio[row] - ratio[row].mean()
        np.testing.assert_allclose(between, (expected - expected.mean())[0], rtol=0.05, atol=0.05)
        np.testing.assert_allclose(distance[row], expected_distance[0], rtol=0.05, atol=0.05)


def test_the_likeliest_class_is_the_right_one_for_most() -> None:
    model = Discriminant.fit(FEATURES, LABEL, WEIGHT, 3)
    assert (model.scores(FEATURES)[0].argmax(axis=1) == LABEL).mean() > 0.85


@pytest.mark.parametrize("rows", [1, 2])
def test_classes_of_one_or_two_examples_are_enough(rows: int) -> None:
    label = np.repeat(np.arange(3), rows)
    features = np.eye(3, 6, dtype=np.float32)[label]
    model = Discriminant.fit(features, label, np.ones(len(label)), 3)
    ratio, distance = model.scores(features)
    assert (ratio.argmax(axis=1) == label).all()
    assert np.isfinite(distance).all()
    assert np.isfinite(model.held_out(features, label, np.ones(len(label)))[0]).all()


@pytest.mark.parametrize("copies", [1, 20])
def test_the_head_parts_the_classes_the_same_way_each_time(copies: int) -> None:
    features, label = np.repeat(FEATURES, copies, axis=0), np.repeat(LABEL, copies)
    one = fit_head(features, label, 3)
    assert ((FEATURES @ one).argmax(axis=1) == LABEL).mean() > 0.85
    np.testing.assert_array_equal(one, fit_head(features, label, 3))
