"""What the engine's loop does with one group of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agentkit.adapters.heads import (
    ChoiceHead,
    SpanLabelHead,
    question_features,
    span_features,
    token_features,
)
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.generation import WritingRow
from agentkit.engine.job import Job
from agentkit.engine.packed import PackedRows, read_prefix
from agentkit.engine.prefix import PrefixCache, PrefixKey, PrefixStates
from agentkit.errors import AgentkitError, EngineError
from agentkit.types import Completion, Reading, Usage


class Runner:
    """Stateful: owns the activation and the prefix cache; used from the engine's loop alone."""

    def __init__(
        self, backbone: Backbone, slots: Slots, prefixes: PrefixCache, stopping: Callable[[], bool]
    ) -> None:
        self._backbone = backbone
        self._slots = slots
        self._prefixes = prefixes
        self._stopping = stopping

    def run(self, jobs: Sequence[Job]) -> None:
        """Settle the future of every job of a group."""
        jobs = [job for job in jobs if not job.withdrawn]
        if not jobs:
            return
        kind = jobs[0].waiting.key.kind
        work = {"read": self._read, "score": self._score, "generate": self._generate}[kind]
        skill = jobs[0].skill
        try:
            with torch.inference_mode(), self._slots.activated(skill.slot if skill else None):
                work(jobs)
        except BaseException as error:  # noqa: BLE001 -- it is raised where the futures are waited for
            for job in jobs:
                if not job.future.done():
                    job.fail(_as_ours(error))

    # ------------------------------------------------------------ reading and scoring

    def _read(self, jobs: Sequence[Job]) -> None:
        skill = jobs[0].skill
        if skill is not None and isinstance(skill.head, SpanLabelHead):
            self._label(jobs, skill.head)
        elif skill is not None and isinstance(skill.head, ChoiceHead):
            self._choose(jobs, skill.head)

    def _label(self, jobs: Sequence[Job], head: SpanLabelHead) -> None:
        prefix, cached = self._shared(jobs, keys_values=False)
        hidden = _states(prefix, self._backbone)
        for job, hit in zip(jobs, cached, strict=True):
            prompt = job.request.prompt
            tokens = [at for at, _, _ in prompt.token_offsets]
            features = span_features(hidden, prompt.span_ends, tokens)
            spans, labels = head(features, token_features(hidden, tokens, prompt.span_ends))
            reading = Reading(
                span_labels=spans.sigmoid().cpu().numpy(),
                token_labels=labels.sigmoid().cpu().numpy(),
            )
            usage = Usage(len(job.shared), 0, hit)
            job.finish(Completion(usage=usage, reading=reading, finish="head"))

    def _choose(self, jobs: Sequence[Job], head: ChoiceHead) -> None:
        prefix, cached = self._shared(jobs)
        rows = PackedRows(self._backbone, prefix, sum(len(job.branch) for job in jobs))
        read = _states(prefix, self._backbone)
        # A question without words of its own is read where the prefix ends.
        places = [rows.append(rows.fork(), job.branch) if job.branch else -1 for job in jobs]
        grown = rows.hidden_states() if any(job.branch for job in jobs) else read
        for job, last, hit in zip(jobs, places, cached, strict=True):
            prompt = job.request.prompt
            tokens = [at for at, _, _ in prompt.token_offsets]
            spans = span_features(read, prompt.span_ends, tokens)
            states = grown[last - len(job.branch) + 1 : last + 1] if job.branch else read[-1:]
            choice, evidence = head(question_features(states)[None], spans)
            reading = Reading(
                choices=choice[0].softmax(-1).cpu().numpy(),
                evidence=evidence[0].sigmoid().cpu().numpy(),
            )
            usage = Usage(len(job.request.prompt.ids), 0, hit)
            job.finish(Completion(usage=usage, reading=reading, finish="head"))

    def _score(self, jobs: Sequence[Job]) -> None:
        """Sum of log-likelihoods of each choice's tokens, softmax over the choices."""
        prefix, cached = self._shared(jobs)
        rows = PackedRows(self._backbone, prefix, sum(job.waiting.tokens for job in jobs))
        wanted: list[int] = []  # index of the token whose next one is scored
        tokens: list[int] = []  # that next one
        for job in jobs:
            question = rows.fork()
            end = rows.append(question, job.branch)
            for choice in job.choices:
                before = [end]
                if len(choice) > 1:
                    last = rows.append(rows.fork(question), choice[:-1])
                    before += range(last - len(choice) + 2, last + 1)
                wanted += before
                tokens += choice
        at = sorted(set(wanted))
        place = {index: row for row, index in enumerate(at)}
        likely = rows.logits(at).log_softmax(-1)
        picked = likely[[place[index] for index in wanted], tokens].tolist()
        for job, hit in zip(jobs, cached, strict=True):
            sums = []
            for choice in job.choices:
                sums.append(sum(picked[: len(choice)]))
                del picked[: len(choice)]
            shares = torch.tensor(sums, dtype=torch.float64).softmax(-1).tolist()
            names = job.request.choices or ()
            usage = Usage(len(job.request.prompt.ids), 0, hit)
            job.finish(Completion(usage=usage, choices=dict(zip(names, shares, strict=True))))

    # ------------------------------------------------------------ generation

    def _generate(self, jobs: Sequence[Job]) -> None:
        prefix, cached = self._shared(jobs)
        room = sum(len(job.branch) + job.max_tokens for job in jobs)
        packed = PackedRows(self._backbone, prefix, room)
        writing = [
            WritingRow(job, packed.fork(), self._backbone, hit)
            for job, hit in zip(jobs, cached, strict=True)
        ]
        at = [packed.append(row.row, row.job.branch) for row in writing]
        while writing:
            logits = packed.logits(at)
            going, at = [], []
            for row, scores in zip(writing, logits, strict=True):
                token = self._advance(row, scores)
                if token is not None:
                    going.append(row)
                    at.append(packed.append(row.row, [token]))
            writing = going

    def _advance(self, row: WritingRow, logits: Tensor) -> int | None:
        if row.job.withdrawn:
            return None
        if self._stopping():
            row.job.fail(EngineError("the engine was closed while it was answering"))
            return None
        try:
            return row.advance(logits)
        except BaseException as error:  # noqa: BLE001 -- a caller's on_text may raise anything
            row.job.fail(_as_ours(error))
            return None

    # ------------------------------------------------------------ prefixes

    def _shared(
        self, jobs: Sequence[Job], *, keys_values: bool = True
    ) -> tuple[PrefixStates | None, list[int]]:
        """The states that the group shares, and how many cached tokens each job had."""
        length = len(jobs[0].shared)
        if not length:
            return None, [0] * len(jobs)
        prefix, hit = self._prefix(jobs[0], keys_values=keys_values)
        return prefix, [length if hit or index else 0 for index in range(len(jobs))]

    def _prefix(self, job: Job, *, keys_values: bool) -> tuple[PrefixStates, bool]:
        key = PrefixKey.of(job.request.adapter, job.shared)
        states = self._prefixes.get(key, keys_values=keys_values)
        if states is not None:
            return states, True
        states = read_prefix(self._backbone, job.shared, keys_values=keys_values)
        self._prefixes.put(key, states)
        return states, False


def _states(prefix: PrefixStates | None, backbone: Backbone) -> Tensor:
    if prefix is None:
        return torch.zeros(0, backbone.hidden, device=backbone.device, dtype=backbone.dtype)
    return prefix.hidden


def _as_ours(error: BaseException) -> AgentkitError:
    if isinstance(error, AgentkitError):
        return error
    wrapped = EngineError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
