"""The learning rate over a training that its steps or its minutes end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.training.fitting import share_of_rate


@given(st.integers(1, 100_000), st.integers(0, 100_000), st.floats(0, 1.5))
def test_the_rate_is_a_share(steps: int, step: int, spent: float) -> None:
    assert 0 <= share_of_rate(min(step, steps), steps, spent) <= 1


def test_the_steps_bring_it_up_and_down() -> None:
    rates = [share_of_rate(step, 200, 0.0) for step in range(201)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert max(rates) > 0.9
    assert rates[200] == 0


def test_minutes_that_end_first_bring_it_up_and_down_as_well() -> None:
    rates = [share_of_rate(step, 70_000, step / 30) for step in range(31)]
    assert max(rates) > 0.9
    assert rates.index(max(rates)) <= 3
    assert rates[30] == 0
