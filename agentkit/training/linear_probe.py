"""Cached lower states to a linear probe: logistic regression, spread by a temperature."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agentkit.adapters.heads import LinearProbe
from agentkit.training.lower import LowerStates
from agentkit.training.measure import temperature
from agentkit.training.model import probed_features, questions
from agentkit.training.packs import Pack

_STRENGTHS = (1e-4, 3e-5, 1e-5, 3e-6)
"""Of the penalty on squared weights, from strong to weak."""
_USUAL = 1e-5


_SEEN = 3
"""A term is counted when so many training questions have it."""


def fit_probe(
    probe: LinearProbe,
    packs: Sequence[Pack],
    tuning: Sequence[Pack],
    states: LowerStates,
    words: Sequence[str],
) -> None:
    """Fit a probe to the questions of some packs; others decide how strongly it is held back.

    `words` are the words of the vocabulary's tokens, in their order. Of several strengths of the
    penalty the one is taken under which the tuning packs' choices are likeliest, each with the
    temperature that suits it.
    """
    probe.cpu()  # where cached states are
    _count_terms(probe, packs, words)
    features, gold = _examples(probe, packs, states)
    means = features[:, : probe.hidden]
    probe.center.copy_(means.mean(dim=0))
    probe.spread.copy_(means.std(dim=0, correction=0).clamp(min=1e-6))
    known = probe.directions(features)
    if not any(pack.answer_at for pack in tuning):
        _set(probe, *_regression(known, gold, len(probe.bias), _USUAL))
        return
    asked, answers = _examples(probe, tuning, states)
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


def token_words(tokenizer: Any) -> list[str]:
    """The word, or part of one, that each token stands for, whatever its case and spaces."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return [tokenizer.convert_tokens_to_string([one]).strip().casefold() for one in tokens]


def _count_terms(probe: LinearProbe, packs: Sequence[Pack], words: Sequence[str]) -> None:
    """Let a probe count the words that tell some of the packs' questions from others."""
    whole = [pack for pack in packs if pack.answer_at]
    asked = [{words[i] for i in pack.ids[one]} for pack in whole for one in questions(pack)]
    seen = Counter(word for found in asked for word in found)
    terms = sorted(word for word, count in seen.items() if _SEEN <= count < len(asked))
    place = {word: number for number, word in enumerate(terms)}
    owners = [place.get(word, len(terms)) for word in words]
    probe.term_of = torch.tensor(owners, dtype=torch.float32)
    rarity = [math.log((1 + len(asked)) / (1 + seen[word])) for word in terms]
    probe.idf = torch.tensor(rarity, dtype=torch.float32)
    probe.weight = torch.zeros(len(probe.bias), probe.hidden + len(terms))


def _examples(
    probe: LinearProbe, packs: Sequence[Pack], states: LowerStates
) -> tuple[Tensor, Tensor]:
    """Features `(n, hidden + terms)` and gold choices `(n,)` of the packs' questions."""
    asked = [pack for pack in packs if pack.answer_at]
    features = torch.cat([probed_features(probe, pack, states.get(pack)) for pack in asked])
    return features, torch.tensor([choice for pack in asked for choice in pack.choice])


def _set(probe: LinearProbe, weight: Tensor, bias: Tensor) -> None:
    probe.weight.copy_(weight)
    probe.bias.copy_(bias)


def _regression(
    features: Tensor, gold: Tensor, choices: int, strength: float
) -> tuple[Tensor, Tensor]:
    """Weights `(choices, features)` and biases `(choices,)` of a penalised logistic regression."""
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
