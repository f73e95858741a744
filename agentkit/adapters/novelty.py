"""What a choice head's answers are worth, the more so or the less the newer a question is.

A head knows the questions that it was trained on better than any other. Of one that is new to it,
it finds less and says more readily that nothing speaks of it, as sure as ever. How new a question
is can be told: by how far its features lie from those of the nearest question of the training
(Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

CURVE = 6
"""Numbers of a curve: three straight lines over novelty, each a level and a slope."""


class NoveltyCalibration(nn.Module):
    """Logits of a choice to logits that are as sure as answers to such questions are right.

    Choices are of two groups: those that say nothing speaks of the question, and the others. The
    odds between the groups are taken by Platt scaling, the choice within a group by a temperature
    (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017); slope, shift and
    temperature depend on the question's novelty. Fitted after a training, so all are buffers.
    """

    def __init__(self, width: int, choices: int, known: int = 0) -> None:
        """For features of `width` numbers and `known` questions to compare with."""
        super().__init__()
        self.center: Tensor
        self.known: Tensor
        self.silent: Tensor
        self.curve: Tensor
        self.furthest: Tensor
        self.register_buffer("center", torch.zeros(width))
        # Directions of the features of questions of the training, seen from their centre.
        self.register_buffer("known", torch.zeros(known, width))
        self.register_buffer("silent", torch.zeros(choices))
        self.register_buffer("curve", torch.zeros(CURVE))
        # What lies further than anything that was fitted is taken to be as far as that.
        self.register_buffer("furthest", torch.tensor(2.0))

    @classmethod
    def of(cls, questions: Tensor, choices: int, silent: Collection[int]) -> NoveltyCalibration:
        """One that changes nothing yet; `questions` `(k, width)` are features from a training.

        `silent` are the numbers of the choices that say nothing speaks of the question.
        """
        # A single one would be its own centre, and lie in no direction from it.
        made = cls(questions.shape[1], choices, len(questions) if len(questions) > 1 else 0)
        if len(made.known):
            made.center.copy_(questions.mean(dim=0))
            made.known.copy_(functional.normalize(questions - made.center, dim=1))
        made.silent[list(silent)] = 1.0
        return made

    @classmethod
    def like(cls, tensors: dict[str, Tensor], prefix: str) -> NoveltyCalibration:
        """Room for what a file holds. Raises `KeyError` or `ValueError` for what is none."""
        known, choices = tensors[f"{prefix}known"], tensors[f"{prefix}silent"]
        if known.dim() != 2 or choices.dim() != 1:
            raise ValueError(f"{prefix}known and {prefix}silent are misshapen")
        return cls(known.shape[1], len(choices), len(known))

    def novelty(self, questions: Tensor) -> Tensor:
        """`(n,)`: cosine distance of features `(n, width)` to the nearest known ones.

        From 0, which it is where no question is known, to `furthest`, at most 2.
        """
        if not len(self.known):
            return questions.new_zeros(len(questions))
        directions = functional.normalize(questions - self.center, dim=1)
        return (1.0 - (directions @ self.known.T).max(dim=1).values).clamp(max=self.furthest)

    def forward(self, logits: Tensor, questions: Tensor) -> Tensor:
        """Calibrated log-probabilities `(n, choices)` of logits `(n, choices)`."""
        return calibrated(logits, self.novelty(questions), self.silent, self.curve)


def calibrated(logits: Tensor, novelty: Tensor, silent: Tensor, curve: Tensor) -> Tensor:
    """Log-probabilities `(n, choices)` by a curve `(6,)`; a curve of zeros changes nothing.

    `novelty` is `(n,)`, `silent` `(choices,)` of zeros and ones. The odds of silence are multiplied
    by the exponential of one line over novelty and moved by the next, logits within a group
    multiplied by that of the last.
    """
    slope = (curve[0] + curve[1] * novelty).exp()
    shift = curve[2] + curve[3] * novelty
    inside = (curve[4] + curve[5] * novelty).exp()[:, None]
    quiet = silent.bool()
    if quiet.all() or not quiet.any():
        return (logits * inside).log_softmax(dim=1)
    quiet_part, said_part = logits[:, quiet], logits[:, ~quiet]
    odds = slope * (quiet_part.logsumexp(dim=1) - said_part.logsumexp(dim=1)) + shift
    result = torch.empty_like(logits)
    result[:, quiet] = functional.logsigmoid(odds)[:, None] + (quiet_part * inside).log_softmax(1)
    result[:, ~quiet] = functional.logsigmoid(-odds)[:, None] + (said_part * inside).log_softmax(1)
    return result
