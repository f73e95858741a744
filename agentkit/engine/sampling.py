"""From logits to a token."""

from __future__ import annotations

import torch
from torch import Tensor

from agentkit.types import Generation


class Sampler:
    """Stateful: one row's random numbers, so that a seed gives the same text in any batch."""

    def __init__(self, generation: Generation) -> None:
        self._temperature = generation.temperature
        self._top_p = generation.top_p
        self._random = torch.Generator()
        if generation.seed is not None:
            self._random.manual_seed(generation.seed)
        else:
            self._random.seed()

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken."""
        return self._temperature == 0

    def __call__(self, logits: Tensor) -> int:
        """The next token of logits `(vocabulary,)`: the best one at temperature 0.

        Otherwise one drawn from the smallest set of tokens that holds `top_p` of the probability
        (nucleus sampling, https://arxiv.org/abs/1904.09751).
        """
        if self.greedy:
            return int(logits.argmax())
        chances = torch.softmax(logits.double().cpu() / self._temperature, dim=-1)
        if self._top_p < 1:
            ordered, order = chances.sort(descending=True, stable=True)
            ordered[ordered.cumsum(0) - ordered >= self._top_p] = 0
            drawn = torch.multinomial(ordered, 1, generator=self._random)
            return int(order[drawn])
        return int(torch.multinomial(chances, 1, generator=self._random))
