"""Scores that mean something: temperatures of choices, slopes and shifts of labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentkit.evaluation import classes
from agentkit.training.measure import platt, temperature


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


def labelled(slope: float, shift: float, rows: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of four labels and what holds; they are too sure, and think labels too frequent."""
    random = torch.Generator().manual_seed(2)
    honest = torch.randn(rows, 4, generator=random) * 2 - torch.tensor([1.0, 2.0, 3.0, 5.0])
    gold = torch.bernoulli(honest.sigmoid(), generator=random)
    return (honest - shift) / slope, gold


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.4, -2.0), (2.0, 1.5)])
def test_labels_come_out_as_sure_as_they_are_right(slope: float, shift: float) -> None:
    logits, gold = labelled(slope, shift)
    found, shifts = platt(logits, gold)
    assert found == pytest.approx(slope, rel=0.1)
    torch.testing.assert_close(shifts, torch.full((4,), shift), atol=0.25, rtol=0)
    sure = (logits * found + shifts).sigmoid().flatten().double().numpy()
    right = gold.flatten().double().numpy()
    assert classes.calibration_error(sure, right, np.ones(len(sure))) < 0.01


def test_a_label_without_examples_takes_the_others_shift() -> None:
    logits, gold = labelled(0.5, -1.0, rows=400)
    gold[:, 3] = 0
    _, shifts = platt(logits, gold)
    assert -5 < shifts[3] < shifts[:3].max()
    assert torch.isfinite(platt(logits[:20], torch.zeros(20, 4))[1]).all()


def test_labels_are_calibrated_from_within_an_inference_too() -> None:
    with torch.inference_mode():
        slope, shifts = platt(*labelled(0.5, -1.0, rows=200))
    assert slope > 0
    assert not shifts.requires_grad
