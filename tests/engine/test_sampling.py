"""Sampling follows temperature, top-p and seed."""

import torch

from agentkit.engine.sampling import Sampler
from agentkit.types import Generation

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def draws(count: int = 400, **options: float) -> list[int]:
    sample = Sampler(Generation(**options))
    return [sample(LOGITS) for _ in range(count)]


def test_temperature_zero_takes_the_best() -> None:
    assert set(draws(5)) == {0}


def test_a_seed_repeats_and_another_differs() -> None:
    assert draws(temperature=1.0, seed=3) == draws(temperature=1.0, seed=3)
    assert draws(temperature=1.0, seed=3) != draws(temperature=1.0, seed=4)


def test_top_p_draws_only_from_the_smallest_set_that_holds_it() -> None:
    assert set(draws(temperature=1.0, top_p=0.5, seed=1)) == {0}
    assert set(draws(temperature=1.0, top_p=0.79, seed=1)) == {0, 1}
    assert set(draws(temperature=1.0, top_p=1.0, seed=1)) == {0, 1, 2, 3}


def test_frequencies_follow_the_probabilities() -> None:
    found = draws(2000, temperature=1.0, seed=5)
    assert abs(found.count(0) / 2000 - 0.5) < 0.05
    assert abs(found.count(3) / 2000 - 0.05) < 0.02


def test_a_low_temperature_sharpens() -> None:
    assert draws(temperature=0.1, seed=5).count(0) > 390
