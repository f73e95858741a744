"""Cached lower states to a linear probe: logistic regression, spread by a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agentkit.adapters.heads import LinearProbe
from agentkit.training.lower import LowerStates
from agentkit.training.measure import temperature
from agentkit.training.model import probed_features
from agentkit.training.packs import Pack

_STRENGTHS = (1e-4, 3e-5, 1e-5, 3e-6)
"""Of the penalty on squared weights, from strong to weak."""
_USUAL = 1e-5


def fit_probe(
    probe: LinearProbe, packs: Sequence[Pack], tuning: Sequence[Pack], states: LowerStates
) -> None:
    """Fit a probe to the questions of some packs; others decide how strongly it is held back.

    Of several strengths of the penalty the one is taken under which the tuning packs' choices are
    likeliest, each with the temperature that suits it.
    """
    features, gold = _examples(packs, states)
    probe.center.copy_(features.mean(dim=0))
    probe.spread.copy_(features.std(dim=0, correction=0).clamp(min=1e-6))
    known = probe.directions(features)
    if not any(pack.answer_at for pack in tuning):
        _set(probe, *_regression(known, gold, len(probe.bias), _USUAL))
        return
    asked, answers = _examples(tuning, states)
    new = probe.directions(asked)
    best = float("inf")
    for strength in _STRENGTHS:
        weight, bias = _regression(known, gold, len(probe.bias), strength)
        logits = new @ weight.T + bias
        heat = temperature(logits, answers)
        loss = float(functional.cross_entropy(logits / heat, answers))
        if loss < best:
            best = loss
            _set(probe, weight / heat, bias / heat)


def _examples(packs: Sequence[Pack], states: LowerStates) -> tuple[Tensor, Tensor]:
    """Features `(n, hidden)` and gold choices `(n,)` of the packs' questions."""
    asked = [pack for pack in packs if pack.answer_at]
    features = torch.cat([probed_features(pack, states.get(pack)) for pack in asked])
    return features, torch.tensor([choice for pack in asked for choice in pack.choice])


def _set(probe: LinearProbe, weight: Tensor, bias: Tensor) -> None:
    probe.weight.copy_(weight)
    probe.bias.copy_(bias)


def _regression(
    features: Tensor, gold: Tensor, choices: int, strength: float
) -> tuple[Tensor, Tensor]:
    """Weights `(choices, hidden)` and biases `(choices,)` of a penalised logistic regression."""
    weight = torch.zeros(choices, features.shape[1], requires_grad=True)
    bias = torch.zeros(choices, requires_grad=True)
    optimizer: Any = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        unlikely = functional.cross_entropy(features @ weight.T + bias, gold)
        total: Any = unlikely + strength * weight.square().sum()
        total.backward()
        result: Tensor = total
        return result

    optimizer.step(loss)
    return weight.detach(), bias.detach()
