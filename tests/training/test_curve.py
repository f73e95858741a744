"""A calibration's curve: what distorted the logits is found, by novelty, from few questions."""

from __future__ import annotations

import pytest
import torch

from agentkit.adapters.novelty import calibrated
from agentkit.training.curve import Heard, fit_curve

SILENT = torch.tensor([0.0, 0.0, 1.0])


def heard(count: int, novelty: float, moved: float, seed: int, said: float = 2 / 3) -> Heard:
    """Questions of which the logits are right, but for silence being `moved` too likely."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2.5 * torch.randn(count, 3, generator=draw)
    logits[:, :2] += torch.log(torch.tensor(said / (1 - said)))
    gold = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    told = logits.clone()
    told[:, 2] += moved
    return Heard(told, torch.full((count,), novelty), gold)


def loss(part: Heard, curve: torch.Tensor) -> float:
    said = calibrated(part.logits, part.novelty, SILENT, curve)
    return float(-said[torch.arange(len(part.gold)), part.gold].mean())


def test_new_questions_that_are_passed_over_in_silence_are_answered_and_known_ones_stay() -> None:
    known, new = heard(600, 0.05, 0.0, 1), heard(300, 0.6, 2.5, 2)
    curve = fit_curve([known, new], SILENT)
    assert loss(new, curve) < loss(new, torch.zeros(6)) - 0.1
    assert loss(known, curve) < loss(known, torch.zeros(6)) + 0.02
    unseen = heard(2000, 0.6, 2.5, 3)
    before = (unseen.logits.argmax(1) == unseen.gold).float().mean()
    after = (
        (calibrated(unseen.logits, unseen.novelty, SILENT, curve).argmax(1) == unseen.gold)
        .float()
        .mean()
    )
    assert after > before + 0.1


def test_a_part_of_some_hundred_rows_counts_as_much_as_a_larger_one() -> None:
    large, small = heard(3000, 0.3, 0.0, 4), heard(250, 0.3, 3.0, 5)
    curve = fit_curve([large, small], SILENT)
    shift = curve[2] + 0.3 * curve[3]
    assert -2.5 < shift < -0.7


def test_a_single_wrong_row_hardly_moves_what_hundreds_say() -> None:
    rows = heard(400, 0.3, 0.0, 4)
    one = Heard(torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([0.3]), torch.tensor([2]))
    before, after = (fit_curve(parts, SILENT) for parts in ([rows], [rows, one]))
    assert loss(rows, after) < loss(rows, before) + 0.01


@pytest.mark.parametrize("count", [50, 100])
@pytest.mark.parametrize("seed", range(5))
def test_few_rows_that_are_right_already_cost_others_little(count: int, seed: int) -> None:
    curve = fit_curve([heard(count, 0.4, 0.0, seed)], SILENT)
    others = heard(4000, 0.4, 0.0, 100 + seed)
    assert loss(others, curve) < loss(others, torch.zeros(6)) + 0.06


def test_choices_of_which_none_is_silent_get_a_temperature() -> None:
    part = heard(2000, 0.0, 0.0, 7, said=0.5)
    sharp = Heard(3.0 * part.logits, part.novelty, part.gold)
    curve = fit_curve([sharp], torch.zeros(3))
    assert abs(float(curve[4].exp()) - 1 / 3) < 0.07
    assert curve[:4].abs().max() < 1e-3


def test_the_more_silence_is_expected_the_more_of_it_there_is() -> None:
    part = heard(2000, 0.4, 0.0, 8)
    shares = []
    for silence in (0.1, 0.5, 0.9):
        curve = fit_curve([part], SILENT, silence)
        said = calibrated(part.logits, part.novelty, SILENT, curve).exp()
        shares.append(float(said[:, 2].mean()))
    assert shares[0] < shares[1] - 0.1 < shares[2] - 0.2
