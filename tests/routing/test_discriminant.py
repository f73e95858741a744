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


def fitted(features: np.ndarray, label: np.ndarray) -> Discriminant:
    rows = features.astype(np.float64)
    shown = np.eye(3)[label]
    return Discriminant.fit(rows.T @ rows, shown.T @ rows, shown.sum(axis=0))


def test_held_out_scores_are_those_of_a_fit_without_the_row() -> None:
    model = fitted(FEATURES, LABEL)
    ratio, distance = model.held_out(FEATURES, LABEL, WEIGHT)
    for row in range(0, 120, 13):
        rest = np.arange(120) != row
        other = fitted(FEATURES[rest], LABEL[rest])
        expected, expected_distance = other.scores(FEATURES[row : row + 1])
        # The covariance's prior and its degrees of freedom are those of all rows.
        between = ratio[row] - ratio[row].mean()
        np.testing.assert_allclose(between, (expected - expected.mean())[0], rtol=0.05, atol=0.05)
        np.testing.assert_allclose(distance[row], expected_distance[0], rtol=0.05, atol=0.05)


def test_the_likeliest_class_is_the_right_one_for_most() -> None:
    model = fitted(FEATURES, LABEL)
    assert (model.scores(FEATURES)[0].argmax(axis=1) == LABEL).mean() > 0.85


@pytest.mark.parametrize("rows", [1, 2])
def test_classes_of_one_or_two_examples_are_enough(rows: int) -> None:
    label = np.repeat(np.arange(3), rows)
    features = np.eye(3, 6, dtype=np.float32)[label]
    model = fitted(features, label)
    ratio, distance = model.scores(features)
    assert (ratio.argmax(axis=1) == label).all()
    assert np.isfinite(distance).all()
    assert np.isfinite(model.held_out(features, label, np.ones(len(label)))[0]).all()


@pytest.mark.parametrize("copies", [1, 20])
def test_the_head_parts_the_classes_the_same_way_each_time(copies: int) -> None:
    features, label = np.repeat(FEATURES, copies, axis=0), np.repeat(LABEL, copies)
    start = fitted(features, label).directions(3)
    one = fit_head(features, label, start)
    assert ((FEATURES @ one).argmax(axis=1) == LABEL).mean() > 0.85
    np.testing.assert_array_equal(one, fit_head(features, label, start))


def test_directions_tell_a_class_from_the_mean_of_all() -> None:
    directions = fitted(FEATURES, LABEL).directions(3)
    np.testing.assert_allclose(directions.sum(axis=1), 0.0, atol=1e-9)
    assert ((FEATURES @ directions).argmax(axis=1) == LABEL).mean() > 0.8


@pytest.mark.parametrize("width", [5, 128, 301])
def test_features_are_whitened_by_the_inverse_of_their_covariance(width: int) -> None:
    features = np.random.default_rng(width).normal(size=(60, width)).astype(np.float32)
    model = fitted(features, np.arange(60) % 3)
    covariance = np.linalg.inv(model.whitening @ model.whitening.T)
    rows = features.astype(np.float64)
    means = np.stack([rows[k::3].mean(axis=0) for k in range(3)])
    scatter = rows.T @ rows - 20 * means.T @ means
    # Shrunk towards a round one, so the same but for their scales and their diagonals.
    off = ~np.eye(width, dtype=bool)
    assert np.corrcoef(covariance[off], scatter[off])[0, 1] > 0.999
