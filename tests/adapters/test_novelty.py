"""Calibration by novelty: what it keeps whatever the curve, and what novelty is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentkit.adapters.heads import ChoiceHead, build_head
from agentkit.adapters.novelty import CURVE, NoveltyCalibration, calibrated
from agentkit.errors import AdapterError
from agentkit.testing import tiny_choice_head

numbers = st.floats(-6, 6, allow_nan=False, width=32)
logits = st.lists(numbers, min_size=4, max_size=4).map(lambda row: torch.tensor([row]))
curves = st.lists(st.floats(-2, 2, width=32), min_size=CURVE, max_size=CURVE).map(torch.tensor)
novelties = st.floats(0, 2, width=32).map(lambda value: torch.tensor([value]))
silences = st.sampled_from([[], [3], [0, 2], [0, 1, 2, 3]]).map(
    lambda at: torch.zeros(4).index_fill(0, torch.tensor(at, dtype=torch.long), 1.0)
)


@given(logits, novelties, silences)
def test_a_curve_of_zeros_changes_no_probability(row, novelty, silent) -> None:
    found = calibrated(row, novelty, silent, torch.zeros(CURVE))
    assert torch.allclose(found.exp(), row.softmax(dim=1), atol=1e-5)


@given(logits, novelties, silences, curves)
def test_probabilities_sum_to_one_and_ranks_within_a_group_stay(
    row, novelty, silent, curve
) -> None:
    found = calibrated(row, novelty, silent, curve)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    for group in (silent.bool(), ~silent.bool()):
        if group.any():
            before, after = row[0, group], found[0, group]
            assert after[before.argmax()] == after.max()


@given(logits, novelties)
def test_a_shift_of_silence_leaves_how_the_others_stand_to_each_other(row, novelty) -> None:
    silent = torch.tensor([0.0, 0.0, 0.0, 1.0])
    curve = torch.tensor([0.0, 0.0, -1.5, 0.0, 0.0, 0.0])
    before, after = row.log_softmax(dim=1), calibrated(row, novelty, silent, curve)
    assert after[0, 3] < before[0, 3]
    apart = (after[0, :3] - after[0, 0]) - (before[0, :3] - before[0, 0])
    assert apart.abs().max().item() < 1e-3


def test_the_newer_a_question_the_more_a_slope_over_novelty_does() -> None:
    silent = torch.tensor([0.0, 0.0, 1.0])
    curve = torch.tensor([0.0, 0.0, 0.0, -2.0, 0.0, 0.0])
    row = torch.tensor([[0.0, -1.0, 1.0]]).expand(3, 3)
    found = calibrated(row, torch.tensor([0.0, 0.4, 0.9]), silent, curve).exp()[:, 2]
    assert found[0] > found[1] > found[2]
    assert found[0].item() == pytest.approx(row[0].softmax(0)[2].item(), abs=1e-6)


def test_a_known_question_is_not_new_and_its_opposite_direction_is_newest() -> None:
    torch.manual_seed(0)
    questions = torch.randn(20, 16)
    calibration = NoveltyCalibration.of(questions, 3, [2])
    assert calibration.novelty(questions).abs().max().item() < 1e-5
    other = calibration.novelty(torch.randn(50, 16))
    assert other.min().item() > 0.01
    assert other.max().item() <= 2.0
    calibration.furthest.fill_(0.5)
    assert calibration.novelty(-questions).max().item() == 0.5
    for few in (0, 1):
        alone = NoveltyCalibration.of(questions[:few], 3, [2])
        assert alone.novelty(questions).tolist() == [0.0] * 20


def calibrated_head() -> ChoiceHead:
    head = tiny_choice_head(24, 3).eval()
    head.calibration = NoveltyCalibration.of(torch.randn(5, 48), 3, [2])
    head.calibration.curve.copy_(torch.tensor([0.1, -0.2, -1.0, -0.5, 0.3, 0.2]))
    return head


def test_a_stored_calibration_answers_as_it_did_and_moves_no_evidence() -> None:
    head = calibrated_head()
    again = build_head("choice", head.state_dict(), where="x")
    question, spans = torch.randn(2, 48), torch.randn(5, 48)
    choices, evidence = again(question, spans)
    assert torch.equal(choices, head(question, spans)[0])
    plain = {n: t for n, t in head.state_dict().items() if not n.startswith("calibration.")}
    bare_choices, bare_evidence = build_head("choice", plain, where="x")(question, spans)
    assert torch.equal(evidence, bare_evidence)
    assert not torch.allclose(choices.softmax(1), bare_choices.softmax(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration.known": torch.zeros(5, 47)}, "other features"),
        ({"calibration.silent": torch.zeros(4)}, "other choices"),
        ({"calibration.known": torch.zeros(48)}, "misshapen"),
        ({"calibration.curve": torch.zeros(5)}, "curve"),
        ({"calibration.known": None}, "calibration.known"),
    ],
)
def test_a_calibration_that_does_not_fit_its_head_is_refused(change, message) -> None:
    tensors = calibrated_head().state_dict() | change
    with pytest.raises(AdapterError, match=message):
        build_head("choice", {n: t for n, t in tensors.items() if t is not None}, where="x")
