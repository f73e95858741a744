"""A calibration fitted to rows of several windows is the one by which they are served."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit.adapters.novelty import NoveltyCalibration
from agentkit.output import most_telling
from agentkit.training.calibration import Said, fit_calibration
from agentkit.training.curve import Heard, fit_curve

SILENT = [2]
WIDTH = 8


def said(seed: int, rows: int, most: int, new: float = 0.0) -> Said:
    """Rows of 1 to `most` windows; questions lie `new` from those that are known."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, most + 1, rows)
    logits = draw.normal(0, 2, (counts.sum(), 3))
    questions = draw.normal(0, 1, (counts.sum(), WIDTH)) + new * np.arange(WIDTH)
    return Said(
        chances=torch.tensor(logits).softmax(1).numpy().astype(np.float32),
        questions=questions.astype(np.float32),
        counts=counts.astype(np.int64),
        gold=draw.integers(0, 3, rows).astype(np.int64),
    )


def knowing() -> NoveltyCalibration:
    known = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(3))
    return NoveltyCalibration.of(known, 3, SILENT)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([0.0, 0.5]))
def test_what_is_told_of_rows_is_what_the_calibration_gives_them(
    seed: int, most: int, new: float
) -> None:
    part = said(seed, 60, most, new)
    calibration = knowing()
    found = fit_calibration(calibration, {"rows": part})["rows"]

    logits = torch.from_numpy(part.chances).clamp(min=1e-7).log()
    served = calibration(logits, torch.from_numpy(part.questions)).exp().numpy()
    starts = np.concatenate([[0], part.counts.cumsum()])
    for row, (first, end) in enumerate(pairwise(starts)):
        window = first + most_telling(served[first:end], SILENT)
        assert found.after[row] == pytest.approx(served[window], abs=1e-5)
        raw = first + most_telling(part.chances[first:end], SILENT)
        assert found.before[row] == pytest.approx(part.chances[raw])


def test_of_windows_that_decide_after_a_fit_the_curve_is_the_fit_again() -> None:
    part = said(5, 200, 4)
    calibration = knowing()
    fit_calibration(calibration, {"rows": part})
    logits = torch.from_numpy(part.chances).clamp(min=1e-7).log()
    novelty = calibration.novelty(torch.from_numpy(part.questions))
    served = calibration(logits, torch.from_numpy(part.questions)).exp().numpy()
    decides = part.deciding(served, SILENT)
    assert (decides != part.deciding(part.chances, SILENT)).any()  # the fit has moved some
    rows = Heard(logits[decides], novelty[decides], torch.from_numpy(part.gold))
    again = fit_curve([rows], calibration.silent)
    torch.testing.assert_close(again, calibration.curve, atol=2e-3, rtol=0)
