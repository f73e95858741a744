"""The router as a pure function of examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit.routing.router import Examples, fit
from agentkit.routing.views import TextView, Views, letter_terms, stack, word_terms

WIDTH = 16
NO_MIDDLE = np.zeros(0, np.float32)


def views(rows: np.ndarray) -> Views:
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    text = "the same words"
    terms = word_terms(text), letter_terms(text)
    return stack([TextView(row, NO_MIDDLE, *terms) for row in unit], NO_MIDDLE)


def cluster(seed: int, count: int, center: int) -> Views:
    rows = np.random.default_rng(seed).normal(0, 0.1, (count, WIDTH))
    rows[:, center] += 1
    return views(rows)


def skill(name: str, center: int, count: int) -> Examples:
    return Examples.of(name, cluster(center, count + 1, center))


NOISE = np.random.default_rng(9).normal(size=(40, WIDTH)) * ([0.1] * 4 + [1.0] * 12)
BACKGROUND = views(NOISE)


@settings(max_examples=15)
@given(order=st.permutations(range(3)), counts=st.lists(st.integers(0, 8), min_size=3, max_size=3))
def test_the_order_of_skills_does_not_matter(order: list[int], counts: list[int]) -> None:
    skills = [skill(f"s{k}", k, count) for k, count in enumerate(counts)]
    one = fit(skills, BACKGROUND)
    other = fit([skills[k] for k in order], BACKGROUND)
    queries = cluster(5, 6, 1)
    assert one.names == other.names
    np.testing.assert_array_equal(one.predict(queries).scores, other.predict(queries).scores)


def test_a_refit_after_another_router_is_the_same_to_the_last_bit() -> None:
    skills = [skill(f"s{k}", k, 5) for k in range(8)]
    afresh = fit(skills, BACKGROUND)
    earlier = fit([*skills[2:], skill("gone", 9, 5)], BACKGROUND)
    again = fit(skills, BACKGROUND, before=earlier)
    np.testing.assert_array_equal(
        afresh.predict(cluster(5, 6, 1)).scores, again.predict(cluster(5, 6, 1)).scores
    )
    np.testing.assert_array_equal(afresh.thresholds, again.thresholds)
    shared = set(again.moments) & set(earlier.moments)
    assert shared
    assert all(again.moments[key] is earlier.moments[key] for key in shared)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_new_members_of_a_cluster_are_accepted_and_strangers_are_not(count: int) -> None:
    router = fit([skill(f"s{k}", k, count) for k in range(3)], BACKGROUND)
    for k in range(3):
        scores = router.predict(cluster(100 + k, 5, k)).scores
        assert (scores.argmax(axis=1) == k).all()
        assert (scores.max(axis=1) >= router.thresholds[k]).all()
    assert (router.predict(cluster(200, 5, 10)).scores.max(axis=1) < router.threshold).all()


def test_skills_left_out_score_nothing_and_do_not_compete() -> None:
    router = fit([skill(f"s{k}", k, 5) for k in range(3)], BACKGROUND)
    queries = cluster(50, 4, 0)
    scores = router.predict(queries, columns=[0, 2]).scores
    assert (scores[:, 1] == 0).all()
    assert (scores[:, 0] >= router.predict(queries).scores[:, 0] - 1e-12).all()


def test_background_that_resembles_a_skill_is_left_out_unless_it_is_certain() -> None:
    alike = views(skill("s0", 0, 5).views.vectors + 0.001)
    both = views(np.vstack([alike.vectors, BACKGROUND.vectors]))
    assert fit([skill("s0", 0, 5)], both).background_kept <= len(BACKGROUND)
    assert fit([skill("s0", 0, 5)], both, certain=len(alike)).background_kept >= len(alike)
    assert fit([skill("s0", 0, 5)], alike).background_kept == len(alike)


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_confidences_of_a_row_sum_to_at_most_one(count: int) -> None:
    router = fit([skill(f"s{k}", k, count) for k in range(4)], BACKGROUND)
    for k in (0, 3, 10):
        scores = router.predict(cluster(7, 5, k)).scores
        assert ((scores >= 0) & (scores <= 1)).all()
        assert (scores.sum(axis=1) <= 1 + 1e-9).all()
