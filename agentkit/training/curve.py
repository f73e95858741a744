"""A calibration's curve, fitted to what a choice head said of questions whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agentkit.adapters.novelty import CURVE, calibrated

_WIDE, _NARROW = 1.0, 0.1
"""Widths of the Gaussian priors of a curve's numbers. Levels have narrow ones where questions are
told apart by novelty: what a training asked, it has calibrated."""
_ROWS = 250
"""A part counts as its rows do, and from so many on as this number."""
_ENOUGH = 25
"""A choice that is right of so many rows of a part counts in full; one of fewer is half noise."""


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What a head said of the questions of one part, and what would have been right."""

    logits: Tensor
    """`(n, choices)`, before any calibration."""
    novelty: Tensor
    """`(n,)`, as `NoveltyCalibration.novelty` gives it."""
    gold: Tensor
    """`(n,)`: numbers of the right choices."""


def fit_curve(parts: Sequence[Heard], silent: Tensor, silence: float | None = None) -> Tensor:
    """The curve `(6,)` by which the right choices are likeliest; `silent` is `(choices,)`.

    `silence` is the share of questions of which a silent choice is taken to be right; by default
    that of the silent choices among all.

    Large parts count alike, however many questions they have, and within a part each choice: how
    often which is right says more of where the rows came from than of what will be asked. Gaussian
    priors draw the curve to zero, which changes nothing: the fewer the rows, the more.
    """
    apart = any(bool(part.novelty.any()) for part in parts)
    level = _NARROW if apart else _WIDE
    widths = torch.tensor([level, _WIDE] * (CURVE // 2), dtype=torch.float64)
    curve = torch.zeros(CURVE, dtype=torch.float64, requires_grad=True)
    known = [
        (p.logits.double(), p.novelty.double(), p.gold, _shares(p.gold, silent, silence))
        for p in parts
    ]
    optimizer: Any = torch.optim.LBFGS(
        [curve], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-10
    )

    def unlikeliness() -> Tensor:
        optimizer.zero_grad()
        total: Any = (curve / widths).square().sum() / 2
        for logits, novelty, gold, shares in known:
            said = calibrated(logits, novelty, silent, curve)
            missed = functional.nll_loss(said, gold, reduction="none")
            total = total + (shares * missed).sum()
        total.backward()
        loss: Tensor = total.detach()
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(unlikeliness)
    return curve.detach().float()


def _shares(gold: Tensor, silent: Tensor, silence: float | None) -> Tensor:
    """`(n,)`: what each row counts, the same in sum for each choice that is right often enough."""
    counts = torch.bincount(gold, minlength=len(silent)).double()
    each = counts.clamp(max=_ENOUGH)
    quiet = silent.bool()
    if silence is not None and each[quiet].any() and each[~quiet].any():
        each[quiet] *= silence / each[quiet].sum()
        each[~quiet] *= (1 - silence) / each[~quiet].sum()
    return each[gold] / counts[gold] * min(len(gold), _ROWS) / each.sum()
