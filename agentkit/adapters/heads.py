"""Task heads: small layers over the backbone's hidden states, mostly the adapted last ones.

One reading of a document gives every label with a score, where decoding would give a few words at
a time. A head is stored as `head.safetensors` beside its adapter and switched with it; its kind
stands in the file's metadata (`agentkit.head`). A head that was trained without an adapter reads
the bare backbone, and its metadata names that as an adapter's would. Heads compute in float32
whatever the backbone's type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from agentkit.adapters.novelty import NoveltyCalibration
from agentkit.errors import AdapterError

KIND = "agentkit.head"
CALIBRATION = "calibration."
"""Prefix of the tensors of a choice head's calibration, in its file."""

_FOLLOWING = 8
"""Tokens after a token that say what it began: the length of a usual name."""


def span_features(hidden: Tensor, ends: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """`(spans, 2 * hidden)`: each span's closing state beside the mean of its tokens' states.

    `hidden` is `(tokens, hidden)`; `ends` the index of each span's closing token, ascending;
    `tokens` the indices of the tokens that hold the spans' words. A causal model has read a whole
    sentence only at its end; the mean keeps the words that the last state has let go.
    """
    states = hidden.float()
    at = torch.as_tensor(ends, dtype=torch.long, device=hidden.device)
    words = torch.as_tensor(tokens, dtype=torch.long, device=hidden.device)
    owner = torch.searchsorted(at, words)
    sums = states.new_zeros(len(at), states.shape[1]).index_add(0, owner, states[words])
    count = torch.bincount(owner, minlength=len(at)).clamp(min=1).unsqueeze(1)
    return torch.cat([_normal(states[at]), _normal(sums / count)], dim=1)


def token_features(hidden: Tensor, tokens: Sequence[int], ends: Sequence[int]) -> Tensor:
    """`(tokens, 3 * hidden)`: each token's state, the mean of those that follow, its span's end.

    Takes what `span_features` takes. A causal model is sure of a name only after its first words;
    the states of what follows say of the first words, too, what they began.
    """
    states = hidden.float()
    words = torch.as_tensor(tokens, dtype=torch.long, device=hidden.device)
    at = torch.as_tensor(ends, dtype=torch.long, device=hidden.device)
    own = states[words]
    sums = torch.cat([own.new_zeros(1, own.shape[1]), own.cumsum(dim=0, dtype=torch.float64)])
    first = torch.arange(len(words), device=hidden.device) + 1
    last = (first + _FOLLOWING).clamp(max=len(words))
    count = (last - first).clamp(min=1).unsqueeze(1)
    following = ((sums[last] - sums[first.clamp(max=len(words))]) / count).float()
    closing = states[at[torch.searchsorted(at, words).clamp(max=max(0, len(at) - 1))]]
    return torch.cat([_normal(own), _normal(following), _normal(closing)], dim=1)


def question_features(states: Tensor) -> Tensor:
    """`(2 * hidden,)`: the last state of a question beside the mean of its states.

    `states` is `(tokens, hidden)`, the question's and the invocation's.
    """
    states = states.float()
    return torch.cat([_normal(states[-1]), _normal(states.mean(dim=0))])


def _normal(states: Tensor) -> Tensor:
    return functional.layer_norm(states, states.shape[-1:])


class SpanLabelHead(nn.Module):
    """Multi-label scores for whole spans and for tokens, each from their features.

    A clause is a matter of whole sentences; a name or a date lies within one, and is read at each
    of its tokens.
    """

    kind = "span-labels"

    def __init__(self, hidden: int, span_labels: int, token_labels: int) -> None:
        super().__init__()
        self.span = nn.Linear(2 * hidden, span_labels)
        self.token = nn.Linear(3 * hidden, token_labels)
        for layer in (self.span, self.token):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, -4.0)  # labels are rare: start from a low prior
        # From which probability on a label is given, as was best on tuning rows: of a rare label
        # that is well below a half.
        self.span_cut: Tensor
        self.token_cut: Tensor
        self.register_buffer("span_cut", torch.full((span_labels,), 0.5))
        self.register_buffer("token_cut", torch.full((token_labels,), 0.5))

    @property
    def hidden(self) -> int:
        """Size of the backbone's states."""
        return self.token.in_features // 3

    def forward(self, spans: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(m, span labels)` and `(t, token labels)`.

        `spans` is `(m, 2 * hidden)` from `span_features`, `tokens` `(t, 3 * hidden)` from
        `token_features`.
        """
        return self.span(spans), self.token(tokens)

    @classmethod
    def like(cls, tensors: dict[str, Tensor]) -> SpanLabelHead:
        labels, features = tensors["token.weight"].shape
        return cls(features // 3, tensors["span.weight"].shape[0], labels)

    def defaults(self) -> dict[str, Tensor]:
        """What a file may leave out."""
        return {"span_cut": self.span_cut, "token_cut": self.token_cut}


class ChoiceHead(nn.Module):
    """A choice among a few answers, and a pointer to the spans that carry it.

    The question attends over the spans (a pointer network, Vinyals et al. 2015, with one null slot
    for "nothing speaks of it"); the choice is made from the question, from what was attended to,
    and from their product.
    """

    kind = "choice"

    def __init__(self, hidden: int, choices: int, width: int = 192) -> None:
        super().__init__()
        self.query = nn.Linear(2 * hidden, width)
        self.key = nn.Linear(2 * hidden, width)
        self.value = nn.Linear(2 * hidden, width)
        self.state = nn.Linear(2 * hidden, width)
        self.gate = nn.Linear(2 * hidden, width)
        self.null = nn.Parameter(torch.zeros(()))
        self.choice = nn.Linear(3 * width + 1, choices)
        # What to add to evidence logits so that 0 is the cut that was best on tuning rows; kept
        # apart because the pointer's attention must not move with it.
        self.evidence_cut: Tensor
        self.register_buffer("evidence_cut", torch.zeros(()))
        self.calibration: NoveltyCalibration | None = None
        """How sure its answers are, fitted after a training."""

    @property
    def hidden(self) -> int:
        """Size of the backbone's states."""
        return self.query.in_features // 2

    def forward(self, questions: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
        """Choice logits `(n, choices)` and evidence logits `(n, m)`, 0 being the null slot's.

        `questions` is `(n, 2 * hidden)` from `question_features`, `spans` `(m, 2 * hidden)` from
        `span_features`.
        """
        query = self.query(questions)
        evidence = query @ self.key(spans).T / math.sqrt(query.shape[-1]) - self.null
        weights = self.attention(evidence)[:, 1:]
        found = weights @ self.value(spans)
        state = functional.gelu(self.state(questions))
        product = torch.tanh(self.gate(questions)) * found
        seen = weights.sum(dim=1, keepdim=True)
        choices = self.choice(torch.cat([state, found, product, seen], dim=1))
        if self.calibration is not None:
            choices = self.calibration(choices, questions)
        return choices, evidence + self.evidence_cut

    def uncalibrated(self) -> ChoiceHead:
        """A copy without its calibration."""
        plain = deepcopy(self)
        plain.calibration = None
        return plain

    @staticmethod
    def attention(evidence: Tensor) -> Tensor:
        """`(n, 1 + m)`: the share of the null slot, then of each span."""
        return torch.softmax(torch.cat([evidence.new_zeros(len(evidence), 1), evidence], 1), dim=1)

    @classmethod
    def like(cls, tensors: dict[str, Tensor]) -> ChoiceHead:
        width, features = tensors["query.weight"].shape
        head = cls(features // 2, tensors["choice.weight"].shape[0], width)
        if any(name.startswith(CALIBRATION) for name in tensors):
            head.calibration = NoveltyCalibration.like(tensors, CALIBRATION)
            if head.calibration.known.shape[1] != features:
                raise ValueError("the calibration's questions have other features than the head's")
            if len(head.calibration.silent) != head.choice.out_features:
                raise ValueError("the calibration is of other choices than the head's")
        return head

    def defaults(self) -> dict[str, Tensor]:
        """What a file may leave out."""
        return {}


class LinearProbe(nn.Module):
    """A choice by a linear probe of what no adapter changes (Alain & Bengio 2016).

    It reads a question twice: as the mean of what goes into one of the backbone's layers, and as
    the words that stand there, by TF-IDF. States know what words mean, counts which words they
    were. That tells many choices apart better than a head trained with an adapter does from few
    examples: it cannot learn them by heart. Fitted by itself, not by the training's steps, so all
    that it holds are buffers.
    """

    kind = "probe"

    def __init__(
        self, hidden: int, choices: int, layer: int = 0, terms: int = 0, vocabulary: int = 0
    ) -> None:
        super().__init__()
        self.layer: Tensor
        self.center: Tensor
        self.spread: Tensor
        self.term_of: Tensor
        self.idf: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.slope: Tensor
        self.shift: Tensor
        self.register_buffer("layer", torch.tensor(float(layer)))  # as weights are stored
        self.register_buffer("center", torch.zeros(hidden))
        self.register_buffer("spread", torch.ones(hidden))
        # Number of the term that each token of the vocabulary counts for, or `terms` for none.
        # Without any terms the states alone choose.
        self.register_buffer("term_of", torch.full((vocabulary,), float(terms)))
        self.register_buffer("idf", torch.zeros(terms))
        self.register_buffer("weight", torch.zeros(choices, hidden + terms))
        self.register_buffer("bias", torch.zeros(choices))
        # How the log-odds of the first choice are to be taken.
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    @property
    def hidden(self) -> int:
        """Size of the backbone's states."""
        return len(self.center)

    @property
    def reads(self) -> int:
        """The layer whose input it reads."""
        return int(self.layer)

    def features(self, states: Tensor, ids: Sequence[int]) -> Tensor:
        """`(hidden + terms,)`: the mean of a question's states, and how often it has each term.

        `states` is `(tokens, hidden)`, the question's and its invocation's; `ids` are the tokens.
        """
        mean = states.float().mean(dim=0)
        terms = len(self.idf)
        if not terms:
            return mean
        owner = self.term_of[torch.as_tensor(ids, dtype=torch.long, device=mean.device)].long()
        return torch.cat([mean, torch.bincount(owner, minlength=terms + 1)[:terms].float()])

    def directions(self, features: Tensor) -> Tensor:
        """Features `(n, hidden + terms)` as two directions, of the states and of the words.

        States count in units of their usual spread, terms by the logarithm of their number times
        `idf`; either part has length one.
        """
        mean, count = features[:, : self.hidden], features[:, self.hidden :]
        words = torch.where(count > 0, 1 + count.clamp(min=1).log(), 0.0) * self.idf
        spread = (mean - self.center) / self.spread
        return torch.cat([functional.normalize(part, dim=-1) for part in (spread, words)], dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Choice logits `(n, choices)`; `features` is `(n, hidden + terms)` from `features`."""
        return self.calibrated(self.directions(features) @ self.weight.T + self.bias)

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits whose first choice is as likely as it has been right, in the same order.

        Platt scaling of the top label alone (Gupta & Ramdas, "Top-label calibration and
        multiclass-to-binary reductions", ICLR 2022): its log-odds times `slope` plus `shift`.
        """
        if logits.shape[1] < 2:
            return logits
        top, place = logits.topk(2, dim=1)
        move = (self.slope - 1) * top_odds(logits) + self.shift
        # Not so far down that another would be first.
        least = 0.999 * (top[:, 1:] - top[:, :1])
        return logits.scatter_add(1, place[:, :1], torch.maximum(move, least))

    @classmethod
    def like(cls, tensors: dict[str, Tensor]) -> LinearProbe:
        choices, width = tensors["weight"].shape
        hidden = len(tensors["center"])
        vocabulary = len(tensors.get("term_of", ()))
        probe = cls(hidden, choices, terms=width - hidden, vocabulary=vocabulary)
        if width > hidden and not vocabulary:
            raise ValueError("it counts terms, and term_of gives no token any")
        if "term_of" in tensors and not bool(
            ((tensors["term_of"] >= 0) & (tensors["term_of"] <= width - hidden)).all()
        ):
            raise ValueError("term_of names terms that idf does not have")
        return probe

    def defaults(self) -> dict[str, Tensor]:
        """What a file may leave out."""
        added = {"slope": self.slope, "shift": self.shift}
        return added | ({} if len(self.idf) else {"term_of": self.term_of, "idf": self.idf})


def top_odds(logits: Tensor) -> Tensor:
    """`(n, 1)`: the log-odds of the first choice by logits `(n, choices)`."""
    top, place = logits.max(dim=1, keepdim=True)
    return top - logits.scatter(1, place, -torch.inf).logsumexp(dim=1, keepdim=True)


Head: TypeAlias = SpanLabelHead | ChoiceHead | LinearProbe
_KINDS: dict[str, type[SpanLabelHead] | type[ChoiceHead] | type[LinearProbe]] = {
    SpanLabelHead.kind: SpanLabelHead,
    ChoiceHead.kind: ChoiceHead,
    LinearProbe.kind: LinearProbe,
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
        head.load_state_dict(head.defaults() | tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise AdapterError(
            f"the task head's tensors do not make a {kind!r} head: {error}", where=where
        ) from error
    return head.eval().requires_grad_(False)
