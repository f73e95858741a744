"""The trained part as one module: upper layers with their adapters, a task head, and the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agentkit.adapters.heads import ChoiceHead, Head, SpanLabelHead
from agentkit.training.packs import Pack


class PackModel(nn.Module):
    """Loss of a pack from its states below the adapted layers.

    `decoder` is a decoder already cut to the adapted layers; `unembed` its language-model head.
    """

    def __init__(
        self, decoder: nn.Module, unembed: nn.Module, head: Head | None, evidence_weight: float
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self._unembed = [unembed]  # in a list: frozen and shared, no part of this module's state
        self._evidence_weight = evidence_weight

    def states(self, pack: Pack, lower: Tensor) -> Tensor:
        """`(tokens, hidden)` after the final norm."""
        dtype = next(p.dtype for p in self.decoder.parameters() if not p.requires_grad)
        result: Tensor = self.decoder(
            inputs_embeds=lower[None].to(dtype),
            attention_mask=pack.mask(dtype),
            position_ids=torch.tensor([pack.positions]),
            use_cache=False,
        ).last_hidden_state[0]
        return result

    def forward(self, pack: Pack, lower: Tensor) -> dict[str, Tensor]:
        states = self.states(pack, lower)
        if isinstance(self.head, ChoiceHead):
            return {"loss": self._choice_loss(pack, states, self.head)}
        if isinstance(self.head, SpanLabelHead):
            return {"loss": self._marks_loss(pack, states, self.head)}
        at = torch.tensor([index for index, _ in pack.targets])
        tokens = torch.tensor([token for _, token in pack.targets])
        logits = self._unembed[0](states[at]).float()
        return {"loss": functional.cross_entropy(logits, tokens)}

    def _choice_loss(self, pack: Pack, states: Tensor, head: ChoiceHead) -> Tensor:
        choices, evidence = head(states[pack.answer_at], states[pack.span_ends])
        loss = functional.cross_entropy(choices, torch.tensor(pack.choice))
        if self._evidence_weight:
            gold = pairs(pack.evidence, *evidence.shape)
            # Per question, summed over its spans: a question has one or two of them among dozens.
            spread = functional.binary_cross_entropy_with_logits(evidence, gold, reduction="none")
            loss = loss + self._evidence_weight * spread.sum(dim=1).mean() / 4
        return loss

    @staticmethod
    def _marks_loss(pack: Pack, states: Tensor, head: SpanLabelHead) -> Tensor:
        spans, tokens = head(states[pack.span_ends], states[pack.token_at])
        loss = torch.zeros(())
        for logits, gold in ((spans, pack.span_labels), (tokens, pack.token_labels)):
            if logits.numel():
                spread = functional.binary_cross_entropy_with_logits(
                    logits, pairs(gold, *logits.shape), reduction="none"
                )
                loss = loss + spread.sum(dim=1).mean()
        return loss


def pairs(places: list[tuple[int, int]], rows: int, columns: int) -> Tensor:
    """`(rows, columns)` of zeros with ones at the places."""
    result = torch.zeros(rows, columns)
    for row, column in places:
        result[row, column] = 1.0
    return result


def trained_tensors(model: Any) -> dict[str, Tensor]:
    """What a training changes: by name, detached."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
