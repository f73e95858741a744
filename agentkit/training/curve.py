"""A calibration's curve, fitted to what a choice head said of questions whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agentkit.adapters.novelty import CURVE, calibrated

_FREE, _HELD = 1 / 500, 1 / 5
"""What a number's distance from zero costs, squared: as much as some hundred rows tell, or more.
Levels are held where questions are told apart by novelty: what a training asked, it calibrated."""


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What a head said of the questions of one part, and what would have been right."""

    logits: Tensor
    """`(n, choices)`, before any calibration."""
    novelty: Tensor
    """`(n,)`, as `NoveltyCalibration.novelty` gives it."""
    gold: Tensor
    """`(n,)`: numbers of the right choices."""


def fit_curve(parts: Sequence[Heard], silent: Tensor) -> Tensor:
    """The curve `(6,)` by which the right choices are likeliest; `silent` is `(choices,)`.

    Each part counts as much as any other, however many questions it has, and within a part each
    choice: how often which is right says more of where the rows came from than of what will be
    asked. A Gaussian prior draws the curve to zero, which changes nothing.
    """
    apart = any(bool(part.novelty.any()) for part in parts)
    costs = torch.tensor([_HELD if apart else _FREE, _FREE] * (CURVE // 2), dtype=torch.float64)
    curve = torch.zeros(CURVE, dtype=torch.float64, requires_grad=True)
    known = [(p.logits.double(), p.novelty.double(), p.gold, _shares(p.gold)) for p in parts]
    optimizer: Any = torch.optim.LBFGS(
        [curve], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-10
    )

    def unlikeliness() -> Tensor:
        optimizer.zero_grad()
        total: Any = (costs * curve.square()).sum()
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


def _shares(gold: Tensor) -> Tensor:
    """`(n,)`: what each row counts, the same in sum for each choice that is ever right."""
    counts = torch.bincount(gold).double()
    return 1.0 / (counts[gold] * (counts > 0).sum())
