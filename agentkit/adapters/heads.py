"""Task heads: small layers over the adapted backbone's last hidden states.

One reading of a document gives every label with a score, where decoding would give a few words at
a time. A head is stored as `head.safetensors` beside its adapter and switched with it; its kind
stands in the file's metadata (`agentkit.head`). Heads compute in float32 whatever the backbone's
type.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn

from agentkit.errors import AdapterError

KIND = "agentkit.head"


class SpanLabelHead(nn.Module):
    """Multi-label scores for whole spans, read at each span's closing token, and for tokens.

    A causal model knows a sentence only at its end, so labels of sentences are read there; a
    name or a date announces itself ("by and between ..."), so those are read at each token.
    """

    kind = "span-labels"

    def __init__(self, hidden: int, span_labels: int, token_labels: int) -> None:
        super().__init__()
        self.span = nn.Linear(hidden, span_labels)
        self.token = nn.Linear(hidden, token_labels)
        for layer in (self.span, self.token):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, -4.0)  # labels are rare: start from a low prior

    def forward(self, spans: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`(m, hidden)` and `(t, hidden)` to logits `(m, span labels)`, `(t, token labels)`."""
        return self.span(spans.float()), self.token(tokens.float())

    @classmethod
    def like(cls, tensors: dict[str, Tensor]) -> SpanLabelHead:
        labels, hidden = tensors["span.weight"].shape
        return cls(hidden, labels, tensors["token.weight"].shape[0])


class ChoiceHead(nn.Module):
    """A choice among a few answers, and a pointer to the spans that carry it.

    The question's last state attends over the spans' closing states (a pointer network, Vinyals
    et al. 2015, with one null slot for "nothing speaks of it"); the choice is made from that
    state, what was attended to, and their product.
    """

    kind = "choice"

    def __init__(self, hidden: int, choices: int, width: int = 128) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, width)
        self.key = nn.Linear(hidden, width)
        self.value = nn.Linear(hidden, width)
        self.state = nn.Linear(hidden, width)
        self.gate = nn.Linear(hidden, width)
        self.pointer = nn.Parameter(torch.tensor([1.0, -3.0]))  # scale and bias of evidence logits
        self.choice = nn.Linear(3 * width + 1, choices)
        # What to add to evidence logits so that 0 is the cut that was best on tuning rows; kept
        # apart from the bias because the pointer's attention must not move with it.
        self.evidence_cut: Tensor
        self.register_buffer("evidence_cut", torch.zeros(()))

    def forward(
        self, question: Tensor, spans: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choice logits `(n, choices)` and evidence logits `(n, m)`.

        `question` is `(n, hidden)`; `spans` `(m, hidden)`, the same for every question, or
        `(n, m, hidden)`; `mask` `(n, m)` is true where a question may look.
        """
        question, spans = question.float(), spans.float()
        query = self.query(question)
        keys, values = self.key(spans), self.value(spans)
        raw = query @ keys.T if spans.dim() == 2 else torch.einsum("nk,nmk->nm", query, keys)
        raw = raw / math.sqrt(query.shape[-1])
        if mask is not None:
            raw = raw.masked_fill(~mask, -1e4)
        null = torch.zeros_like(raw[:, :1])
        evidence = self.pointer[0] * raw + self.pointer[1]
        weights = torch.softmax(torch.cat([null, evidence], dim=1), dim=1)[:, 1:]
        found = (
            weights @ values if spans.dim() == 2 else torch.einsum("nm,nmk->nk", weights, values)
        )
        state = torch.nn.functional.gelu(self.state(question))
        product = torch.tanh(self.gate(question)) * found
        seen = weights.sum(dim=1, keepdim=True)
        return self.choice(
            torch.cat([state, found, product, seen], dim=1)
        ), evidence + self.evidence_cut

    @classmethod
    def like(cls, tensors: dict[str, Tensor]) -> ChoiceHead:
        width, hidden = tensors["query.weight"].shape
        return cls(hidden, tensors["choice.weight"].shape[0], width)


Head: TypeAlias = SpanLabelHead | ChoiceHead
_KINDS: dict[str, type[SpanLabelHead] | type[ChoiceHead]] = {
    SpanLabelHead.kind: SpanLabelHead,
    ChoiceHead.kind: ChoiceHead,
}


def build_head(kind: str, tensors: dict[str, Tensor], *, where: str) -> Head:
    """The head that the tensors of a `head.safetensors` describe, in evaluation mode.

    Raises `AdapterError` when the kind is unknown or a tensor is missing, unexpected or misshapen.
    """
    if kind not in _KINDS:
        raise AdapterError(
            f"unknown kind of task head {kind!r}",
            where=where,
            hint=f"known kinds: {', '.join(sorted(_KINDS))}",
        )
    try:
        head = _KINDS[kind].like(tensors)
        head.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise AdapterError(
            f"the task head's tensors do not make a {kind!r} head: {error}", where=where
        ) from error
    return head.eval().requires_grad_(False)
