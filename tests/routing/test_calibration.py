"""The router as a pure function of examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit.routing.calibration import Array, Examples, _ridge, fit
from agentkit.routing.features import LEXICAL_DIMENSION, features, lexical


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def cluster(seed: int, count: int, center: int, width: int = 16) -> Array:
    rows = np.random.default_rng(seed).normal(0, 0.1, (count, width))
    rows[:, center] += 1
    return unit(rows)


def skill(name: str, center: int, count: int) -> Examples:
    rows = cluster(center, count + 1, center)
    return Examples(name, rows, rows)


BACKGROUND = unit(np.random.default_rng(9).normal(size=(40, 16)) * ([0.1] * 4 + [1.0] * 12))


def test_held_out_predictions_equal_those_of_refitting_without_the_row() -> None:
    rng = np.random.default_rng(0)
    design, label = rng.normal(size=(12, 5)), np.arange(12) % 3
    target, weight = np.eye(3)[label], rng.uniform(0.5, 2.0, 12)
    ridge, _, held_out = _ridge(design, target, weight)
    for row in range(12):
        rest = np.arange(12) != row
        scaled = design[rest] * np.sqrt(weight[rest])[:, None]
        system = scaled.T @ scaled + ridge * np.eye(5)
        solution = np.linalg.solve(
            system, scaled.T @ (target[rest] * np.sqrt(weight[rest])[:, None])
        )
        np.testing.assert_allclose(held_out[row], design[row] @ solution, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(3)), counts=st.lists(st.integers(0, 8), min_size=3, max_size=3))
def test_the_order_of_skills_does_not_matter(order: list[int], counts: list[int]) -> None:
    skills = [skill(f"s{k}", k, count) for k, count in enumerate(counts)]
    one = fit(skills, BACKGROUND, BACKGROUND)
    other = fit([skills[k] for k in order], BACKGROUND, BACKGROUND)
    queries = cluster(5, 6, 1)
    assert one.names == other.names
    np.testing.assert_array_equal(
        one.predict(queries, queries).scores, other.predict(queries, queries).scores
    )


@pytest.mark.parametrize("count", [1, 3, 10])
def test_new_members_of_a_cluster_are_accepted_and_strangers_are_not(count: int) -> None:
    router = fit([skill(f"s{k}", k, count) for k in range(3)], BACKGROUND, BACKGROUND)
    for k in range(3):
        queries = cluster(100 + k, 5, k)
        scores = router.predict(queries, queries).scores
        assert (scores.argmax(axis=1) == k).all()
        assert (scores.max(axis=1) >= router.threshold).all()
    strangers = cluster(200, 5, 10)
    assert (router.predict(strangers, strangers).scores.max(axis=1) < router.threshold).all()


def test_skills_left_out_score_nothing_and_do_not_compete() -> None:
    router = fit([skill(f"s{k}", k, 5) for k in range(3)], BACKGROUND, BACKGROUND)
    queries = cluster(50, 4, 0)
    scores = router.predict(queries, queries, columns=[0, 2]).scores
    assert (scores[:, 1] == 0).all()
    every = router.predict(queries, queries).scores
    assert (scores[:, 0] >= every[:, 0] - 1e-12).all()


def test_background_that_resembles_a_skill_is_left_out() -> None:
    alike = unit(skill("s0", 0, 5).vectors + 0.001)
    router = fit(
        [skill("s0", 0, 5)], np.vstack([BACKGROUND, alike]), np.vstack([BACKGROUND, alike])
    )
    assert router.background_kept <= len(BACKGROUND)
    only = fit([skill("s0", 0, 5)], alike, alike)
    assert only.background_kept == len(alike)


@given(st.text(max_size=200))
def test_words_have_unit_length_or_none(text: str) -> None:
    length = float(np.linalg.norm(lexical(text)))
    assert length == pytest.approx(1.0) or length == 0.0
    rows = features(np.ones((2, 3), dtype=np.float32), [text, text])
    assert rows.shape == (2, 3 + LEXICAL_DIMENSION)
