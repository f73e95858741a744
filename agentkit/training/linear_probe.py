"""Cached lower states to a linear probe: logistic regression, calibrated by what it left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional

from agentkit.adapters.heads import LinearProbe, top_odds
from agentkit.training.lower import LowerStates
from agentkit.training.measure import platt, temperature
from agentkit.training.model import asked_rows, probed_features, questions
from agentkit.training.packs import Pack
from agentkit.training.rows import Row

_STRENGTHS = (3e-5, 1e-5, 3e-6, 1e-6)
"""Of the penalty on squared weights, from strong to weak."""
_USUAL = 1e-5

_FOLDS = 4
_SEEN = 3
"""A term is counted when so many training questions have it."""


def fit_probe(
    probe: LinearProbe,
    packs: Sequence[Pack],
    states: LowerStates,
    words: Sequence[str],
    rows: Sequence[Row],
    progress: Progress | None = None,
) -> None:
    """Fit a probe to the questions of some packs.

    `words` are the words of the vocabulary's tokens, in their order, and `rows` those that the
    packs were made of. How strongly the probe is held back, and how sure it may be of itself, is
    told by each fourth of the rows' groups in turn, with a probe that is fitted to the others.
    """
    probe.cpu()  # where cached states are
    _count_terms(probe, packs, words)
    features, gold = _examples(probe, packs, states)
    means = features[:, : probe.hidden]
    probe.center.copy_(means.mean(dim=0))
    probe.spread.copy_(means.std(dim=0, correction=0).clamp(min=1e-6))
    known = probe.directions(features)

    folds = _folds([rows[n].group for pack in packs for n in asked_rows(pack)])
    held_out = len(folds) > 1
    progress = progress or Progress(disable=True)
    task = progress.add_task("linear probe", total=1 + held_out * len(folds) * len(_STRENGTHS))

    def regression(some: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        means, counts = known[some, : probe.hidden], known[some, probe.hidden :]
        found = _regression(means, counts.to_sparse(), gold[some], len(probe.bias), strength)
        progress.advance(task)
        return found

    strength, heat = _USUAL, 1.0
    if held_out:
        best = float("inf")
        for tried in _STRENGTHS:
            logits = torch.empty(len(gold), len(probe.bias))
            for fold in folds:
                weight, bias = regression(_others(fold, len(gold)), tried)
                logits[fold] = known[fold] @ weight.T + bias
            spread = temperature(logits, gold)
            loss = float(functional.cross_entropy(logits / spread, gold))
            if loss < best:
                best, strength, heat = loss, tried, spread
                _trust(probe, logits / spread, gold)
    weight, bias = regression(torch.arange(len(gold)), strength)
    probe.weight.copy_(weight / heat)
    probe.bias.copy_(bias / heat)


def _trust(probe: LinearProbe, logits: Tensor, gold: Tensor) -> None:
    """Have a probe's first choice as likely as the first choices of logits `(n, choices)` were.

    Nothing is taken for certain, though all were right: as in Platt's own method, one more would
    have been wrong.
    """
    if logits.shape[1] > 1:
        right = (logits.argmax(dim=1) == gold).float()[:, None]
        hits = right.sum()
        likely, unlikely = (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2)
        slope, shift = platt(top_odds(logits), right * likely + (1 - right) * unlikely)
        probe.slope.fill_(slope)
        probe.shift.copy_(shift[0])


def _folds(groups: Sequence[str]) -> list[Tensor]:
    """The questions by fold, a group in one: four, or as many as there are groups."""
    order = sorted(set(groups))
    Random(0).shuffle(order)
    place = {group: number % _FOLDS for number, group in enumerate(order)}
    fold = torch.tensor([place[group] for group in groups])
    return [torch.nonzero(fold == one).flatten() for one in range(min(_FOLDS, len(order)))]


def _others(fold: Tensor, count: int) -> Tensor:
    kept = torch.ones(count, dtype=torch.bool)
    kept[fold] = False
    return torch.nonzero(kept).flatten()


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


def _regression(
    means: Tensor, counts: Tensor, gold: Tensor, choices: int, strength: float
) -> tuple[Tensor, Tensor]:
    """Weights `(choices, hidden + terms)` and biases `(choices,)` of a penalised regression.

    `means` is `(n, hidden)`, `counts` sparse and `(n, terms)`: few of the terms are in a question.
    """
    of_means = torch.zeros(means.shape[1], choices, requires_grad=True)
    of_counts = torch.zeros(counts.shape[1], choices, requires_grad=True)
    bias = torch.zeros(choices, requires_grad=True)
    weights = (of_means, of_counts)
    optimizer: Any = torch.optim.LBFGS([*weights, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = means @ of_means + torch.sparse.mm(counts, of_counts) + bias
        penalty = sum(one.square().sum() for one in weights)
        total: Any = functional.cross_entropy(logits, gold) + strength * penalty
        total.backward()
        result: Tensor = total
        return result

    optimizer.step(loss)
    return torch.cat(weights).T.detach(), bias.detach()
