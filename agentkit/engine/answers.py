"""From states and logits to completions, for what is read or scored rather than written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentkit.adapters.heads import (
    ChoiceHead,
    LinearProbe,
    SpanLabelHead,
    question_features,
    span_features,
    token_features,
)
from agentkit.engine.job import Job
from agentkit.engine.packed import PackedRows
from agentkit.errors import EngineError
from agentkit.types import Completion, Reading, Usage


def labelled(job: Job, hidden: Tensor, cached: int) -> Completion:
    """What a label head says of a document whose states are `hidden` `(tokens, hidden)`."""
    head = job.skill.head if job.skill else None
    if not isinstance(head, SpanLabelHead):
        raise EngineError("not a head of labels")
    prompt = job.request.prompt
    tokens = [at for at, _, _ in prompt.token_offsets]
    features = span_features(hidden, prompt.span_ends, tokens)
    spans, labels = head(features, token_features(hidden, tokens, prompt.span_ends))
    reading = Reading(
        span_labels=spans.sigmoid().cpu().numpy(),
        token_labels=labels.sigmoid().cpu().numpy(),
        span_cuts=head.span_cut.cpu().numpy(),
        token_cuts=head.token_cut.cpu().numpy(),
    )
    usage = Usage(len(job.key.prefix), 0, cached)
    return Completion(usage=usage, reading=reading, finish="head")


def chosen(job: Job, document: Tensor, question: Tensor, cached: int) -> Completion:
    """What a choice head says of a question, from its states and the document's."""
    head = job.skill.head if job.skill else None
    if not isinstance(head, ChoiceHead):
        raise EngineError("not a head of choices")
    prompt = job.request.prompt
    tokens = [at for at, _, _ in prompt.token_offsets]
    spans = span_features(document, prompt.span_ends, tokens)
    features = question_features(question)
    choice, evidence = head(features[None], spans)
    reading = Reading(
        choices=choice[0].softmax(-1).cpu().numpy(),
        evidence=evidence[0].sigmoid().cpu().numpy(),
        question=features.cpu().numpy(),
    )
    return Completion(usage=Usage(len(prompt.ids), 0, cached), reading=reading, finish="head")


def probed(job: Job, question: Tensor, cached: int) -> Completion:
    """What a linear probe says of a question, from its states `(tokens, hidden)` below."""
    head = job.skill.head if job.skill else None
    if not isinstance(head, LinearProbe):
        raise EngineError("not a probe")
    ids = job.request.prompt.ids
    choices = head(head.features(question, ids[len(ids) - len(question) :])[None])
    reading = Reading(choices=choices[0].softmax(-1).cpu().numpy())
    usage = Usage(len(ids), 0, cached)
    return Completion(usage=usage, reading=reading, finish="head")


class Scoring:
    """Stateful: the choices of one request, each a row, until their logits are there."""

    def __init__(self, job: Job, packed: PackedRows, row: int, cached: int) -> None:
        """`row` is a fresh one at the end of the job's stem."""
        self._job = job
        self._cached = cached
        wanted: list[int] = []  # index of the token whose next one is scored
        end = packed.append(row, *job.branch)
        rows = [row]
        for choice in job.choices:
            wanted.append(end)
            if len(choice) > 1:
                rows.append(packed.fork(row))
                last = packed.append(rows[-1], (job.slot, choice[:-1]))
                wanted += range(last - len(choice) + 2, last + 1)
        for one in rows:
            packed.end(one)
        self.at: Sequence[int] = sorted(set(wanted))
        """Indices of the tokens whose logits are wanted."""
        place = {index: number for number, index in enumerate(self.at)}
        self._wanted = [place[index] for index in wanted]

    def take(self, logits: Tensor) -> None:
        """Settle the job by logits `(len(at), vocabulary)`.

        Each choice counts by the sum of log-likelihoods of its tokens, softmax over the choices.
        """
        choices = self._job.choices
        tokens = [token for choice in choices for token in choice]
        likely = logits.log_softmax(-1)[self._wanted, tokens]
        picked = torch.split(likely, [len(choice) for choice in choices])
        sums = torch.stack([part.double().sum() for part in picked])
        names = self._job.request.choices or ()
        usage = Usage(len(self._job.request.prompt.ids), 0, self._cached)
        shares = dict(zip(names, sums.softmax(-1).tolist(), strict=True))
        self._job.finish(Completion(usage=usage, choices=shares))
