"""The trained part as one module: upper layers with their adapters, a task head, and the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agentkit.adapters.heads import (
    ChoiceHead,
    Head,
    LinearProbe,
    SpanLabelHead,
    question_features,
    span_features,
    token_features,
)
from agentkit.training.methods import Attached
from agentkit.training.packs import Pack


class PackModel(nn.Module):
    """Loss of a pack from its states below the adapted layers.

    `decoder` is a decoder already cut to the adapted layers; `unembed` its language-model head.
    """

    def __init__(
        self,
        decoder: Any,
        unembed: nn.Module,
        head: Head | None,
        evidence_weight: float,
        attached: Attached,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.apart = attached.apart
        self._attached = attached
        self._unembed = [unembed]  # in a list: frozen and shared, no part of this module's state
        self._evidence_weight = evidence_weight

    def states(self, pack: Pack, lower: Tensor) -> Tensor:
        """`(tokens, hidden)` after the final norm."""
        embeddings: Any = self.decoder.get_input_embeddings()
        dtype, device = embeddings.weight.dtype, embeddings.weight.device
        if not len(self.decoder.layers):  # nothing but a head is trained, and nothing is masked
            normed: Tensor = self.decoder.norm(lower.to(device, dtype))
            return normed
        result: Tensor = self.decoder(
            inputs_embeds=lower[None].to(device, dtype),
            **self._attached.inputs(pack, dtype, device),
        ).last_hidden_state[0]
        return result

    def forward(self, pack: Pack, lower: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(pack, self.states(pack, lower))}

    def loss(self, pack: Pack, states: Tensor) -> Tensor:
        """What is to be learnt from a pack, given its states."""
        if isinstance(self.head, SpanLabelHead):
            return self._marks_loss(pack, states, self.head)
        adapted = len(self.decoder.layers) > 0  # what is written never changes under a head alone
        loss = self.text_loss(pack, states) if pack.targets and adapted else states.new_zeros(())
        if isinstance(self.head, ChoiceHead) and pack.answer_at:
            loss = loss + self._choice_loss(pack, states, self.head)
        return loss

    def text_loss(self, pack: Pack, states: Tensor) -> Tensor:
        """How unlikely the tokens to be written are, in nats a token."""
        at = torch.tensor([index for index, _ in pack.targets], device=states.device)
        tokens = torch.tensor([token for _, token in pack.targets], device=states.device)
        logits = self._unembed[0](states[at]).float()
        return functional.cross_entropy(logits, tokens)

    def _choice_loss(self, pack: Pack, states: Tensor, head: ChoiceHead) -> Tensor:
        choices, evidence = head(*choice_features(pack, states))
        gold_choices = torch.tensor(pack.choice, device=choices.device)
        loss = functional.cross_entropy(choices, gold_choices)
        if self._evidence_weight and evidence.shape[1]:
            gold = pairs(pack.evidence, *evidence.shape).to(evidence.device)
            # The null slot is right where no span is. Of several right spans any may be found.
            right = torch.cat([(gold.sum(dim=1, keepdim=True) == 0).float(), gold], dim=1)
            found = (head.attention(evidence) * right).sum(dim=1)
            spread = functional.binary_cross_entropy_with_logits(evidence, gold, reduction="none")
            pointed = -found.clamp(min=1e-6).log().mean() + spread.sum(dim=1).mean() / 8
            loss = loss + self._evidence_weight * pointed
        return loss

    @staticmethod
    def _marks_loss(pack: Pack, states: Tensor, head: SpanLabelHead) -> Tensor:
        spans, tokens = head(*label_features(pack, states))
        loss = states.new_zeros((), dtype=torch.float32)
        for logits, gold in ((spans, pack.span_labels), (tokens, pack.token_labels)):
            if logits.numel():
                spread = functional.binary_cross_entropy_with_logits(
                    logits, pairs(gold, *logits.shape).to(logits.device), reduction="none"
                )
                loss = loss + spread.sum(dim=1).mean()
        return loss


def choice_features(pack: Pack, states: Tensor) -> tuple[Tensor, Tensor]:
    """What a choice head takes of a pack: its questions' features and its spans'."""
    found = [question_features(states[asked]) for asked in questions(pack)]
    return torch.stack(found), span_features(states, pack.span_ends, pack.token_at)


def probed_features(probe: LinearProbe, pack: Pack, lower: Tensor) -> Tensor:
    """What a linear probe takes of a pack's questions, from the states that it reads."""
    found = [probe.features(lower[asked], pack.ids[asked]) for asked in questions(pack)]
    return torch.stack(found)


def questions(pack: Pack) -> list[slice]:
    """Where the questions lie whose choice is read, their invocations included."""
    return [slice(pack.branch.index(pack.branch[end]), end + 1) for end in pack.answer_at]


def asked_rows(pack: Pack) -> list[int]:
    """Numbers of the rows that these questions came from."""
    return [pack.rows[pack.branch[end] - 1] for end in pack.answer_at]


def label_features(pack: Pack, states: Tensor) -> tuple[Tensor, Tensor]:
    """What a span-label head takes of a pack: its spans' features and its tokens'."""
    return (
        span_features(states, pack.span_ends, pack.token_at),
        token_features(states, pack.token_at, pack.span_ends),
    )


def pairs(places: list[tuple[int, int]], rows: int, columns: int) -> Tensor:
    """`(rows, columns)` of zeros with ones at the places."""
    result = torch.zeros(rows, columns)
    for row, column in places:
        result[row, column] = 1.0
    return result


def trained_tensors(model: Any) -> dict[str, Tensor]:
    """What a training changes: by name, detached."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
