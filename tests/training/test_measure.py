"""Scores that mean something: temperatures of choices."""

from __future__ import annotations

import pytest
import torch

from agentkit.training.measure import temperature


def drawn(heat: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `heat` times too sure, and choices drawn by what they should be."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, 3, generator=random) * 2
    gold = torch.multinomial(logits.softmax(dim=1), 1, generator=random)[:, 0]
    return logits * heat, gold


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.5])
def test_what_is_too_sure_or_unsure_is_spread_as_far_as_it_is_right(heat: float) -> None:
    assert temperature(*drawn(heat)) == pytest.approx(heat, rel=0.1)


def test_rows_that_are_all_right_do_not_make_it_sure_without_end() -> None:
    logits = torch.eye(3) * 4
    assert temperature(logits, torch.arange(3)) == pytest.approx(0.2)
    assert temperature(-logits, torch.arange(3)) == pytest.approx(5.0)
