"""Regressions by Newton's method: at the optimum, and drawn to the prior where nothing is known."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit.routing.regression import blend, logistic, sigmoid, softmax

RNG = np.random.default_rng(1)
LABEL = np.arange(60) % 3
GOOD = np.eye(3)[LABEL] * 2 + RNG.normal(size=(60, 3))
USUAL = np.array([0.5, 0.5])


def likelihood(shares: np.ndarray, views: np.ndarray) -> float:
    share = softmax(np.tensordot(shares, views, 1))
    return float(np.log(share[np.arange(60), LABEL]).sum())


def test_no_small_change_of_a_blend_makes_the_labels_likelier() -> None:
    views = np.stack([GOOD, RNG.normal(size=(60, 3))])
    shares = blend(views, LABEL, np.ones(60), USUAL, 1e-6)
    best = likelihood(shares, views)
    for step in ([0.02, 0], [-0.02, 0], [0, 0.02]):
        assert likelihood(np.maximum(shares + step, 0), views) <= best + 1e-6
    assert shares[0] > shares[1] >= 0


def test_a_strong_prior_holds_a_blend() -> None:
    views = np.stack([GOOD, GOOD])
    np.testing.assert_allclose(blend(views, LABEL, np.ones(60), USUAL, 1e9), USUAL, atol=1e-4)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_a_logistic_regression_ends_where_its_slope_is_zero(seed: int, trust: float) -> None:
    draw = np.random.default_rng(seed)
    signals, inside = draw.normal(size=(50, 3)), (draw.random(50) < 0.5).astype(float)
    usual, trusts, weight = draw.normal(size=3), np.full(3, trust), draw.uniform(0.5, 2, 50)
    at = logistic(signals, inside, weight, usual, trusts)
    slope = signals.T @ (weight * (sigmoid(signals @ at) - inside)) + trusts * (at - usual)
    np.testing.assert_allclose(slope, 0.0, atol=1e-3)
