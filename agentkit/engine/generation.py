"""Answers that are being written: a row of a batch each, or several for one by beam search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from agentkit.engine.backbone import Backbone
from agentkit.engine.decoding import Constraint
from agentkit.engine.detokenizer import Detokenizer
from agentkit.engine.job import Job, as_ours
from agentkit.engine.sampling import Sampler
from agentkit.engine.tree import Tree
from agentkit.types import Completion, Usage

_WIDTH = 3.0
"""Nats by which a beam may be less likely than the best one: one in twenty. What has lost more is
hardly ever the answer, and most steps leave one beam, which costs no more than greedy writing."""


class Draft:
    """Stateful: an answer to one request, as far as it is written."""

    def __init__(self, job: Job, backbone: Backbone) -> None:
        self.next: list[int] = []
        """The tokens that were written last: a chosen one, then those that had to follow."""
        self.finish: Literal["stop", "length", "schema"] | None = None
        self._constraint = job.constraint
        self._job = job
        self._ends = backbone.eos_ids
        # A stop string within constrained output would leave it unfinished.
        stop = () if job.constraint else job.request.generation.stop
        self._text = Detokenizer(backbone.tokenizer, stop)
        self._written = 0

    def copy(self) -> Draft:
        """One that goes on by itself from here."""
        other = copy(self)
        other._constraint = self._constraint.copy() if self._constraint is not None else None
        other._text = self._text.copy()
        return other

    @property
    def written(self) -> int:
        """Tokens so far."""
        return self._written

    @property
    def stuck(self) -> bool:
        """Whether the schema has left nothing likely to choose."""
        return self._constraint is not None and self._constraint.stuck

    def begin(self) -> str:
        """Write the tokens that every answer begins with; the text that they release."""
        return self._write(())

    def choose(self, logits: Tensor, sample: Sampler) -> int | None:
        """The next token by logits `(vocabulary,)`; None when the answer ends here."""
        if self._constraint is not None:
            return self._constraint.choose(logits, sample, greedy=sample.greedy)
        return self._unless_end(sample(logits))

    def best(self, scores: Tensor, count: int) -> list[tuple[int | None, float]]:
        """The `count` best next tokens by scores `(vocabulary,)`, as `take` takes them."""
        if self._constraint is not None:
            return self._constraint.best(scores, count)
        values, tokens = scores.topk(count)
        return list(zip(tokens.tolist(), values.tolist(), strict=True))

    def take(self, token: int | None) -> int | None:
        """The token that is written if this one is taken; None when the answer ends with it."""
        if self._constraint is not None:
            return self._constraint.take(token)
        return self._unless_end(token)

    def add(self, token: int | None) -> str:
        """Write a token that was chosen or taken, and those that have to follow."""
        if token is None:
            self.finish = "stop" if self._constraint is None else "schema"
            return self._text.finish()
        return self._write((token,))

    def completion(self, cached: int) -> Completion:
        usage = Usage(len(self._job.request.prompt.ids), self._written, cached)
        return Completion(
            usage=usage,
            text=self._text.text,
            reading=self._job.reading,
            finish=self.finish or "stop",
        )

    def _unless_end(self, token: int | None) -> int | None:
        return None if token in self._ends else token

    def _write(self, chosen: Sequence[int]) -> str:
        self._written += len(chosen)
        text = "".join(map(self._text.add, chosen))
        self.next = list(chosen)
        self.finish = self._reason() if chosen else None
        if self.finish is None and self._constraint is not None:
            forced = self._constraint.forced()
            self._written += len(forced)
            text += "".join(map(self._text.add, forced))
            self.next += forced
        self.finish = self._reason()
        return text if self.finish is None else text + self._text.finish()

    def _reason(self) -> Literal["stop", "length", "schema"] | None:
        if self._constraint is not None:
            return "schema" if self._constraint.done else None
        if self._text.stopped:
            return "stop"
        return "length" if self._written >= self._job.max_tokens else None


class Writing(Protocol):
    """A job that is being written, in one row of its tree or in more."""

    job: Job
    tree: Tree

    @property
    def waiting(self) -> list[tuple[int, list[int]]]:
        """By row, the tokens that are to be computed next."""

    def begin(self) -> list[int]:
        """The tokens that every answer begins with; they are computed with the prompt."""

    def take(self, logits: Tensor) -> None:
        """Write by logits `(rows that waited, vocabulary)`; settle the job after the last token.

        What a caller's `on_text` raises fails this job alone.
        """

    def end(self) -> None:
        """Give up its rows."""


def writing(job: Job, tree: Tree, row: int, backbone: Backbone, cached: int) -> Writing:
    """How a job is written, from a row of its tree that ends with its prompt."""
    beams = job.request.generation.beams
    if beams > 1:
        return Beams(job, tree, row, backbone, cached, beams, _WIDTH)
    return WritingRow(job, tree, row, backbone, cached)


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """What goes wrong within fails this job alone; a caller's `on_text` may raise anything."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 -- it is raised where the future is waited for
        job.fail(as_ours(error))


class WritingRow:
    """Stateful: an answer that is written token by token, each chosen once.

    Where a schema forbids all that the model would write next, the way there was the wrong one. The
    answer is then written again from its start, if the request says by how many beams.
    """

    def __init__(self, job: Job, tree: Tree, row: int, backbone: Backbone, cached: int) -> None:
        self.job = job
        self.tree = tree
        self._row = row
        self._draft = Draft(job, backbone)
        self._sample = Sampler(job.request.generation)
        self._cached = cached
        self._backbone = backbone
        again = job.request.generation.beams_if_stuck > 1
        self._start = job.constraint.copy() if job.constraint is not None and again else None
        """Where the output may begin again."""
        self._again: Beams | None = None

    @property
    def waiting(self) -> list[tuple[int, list[int]]]:
        return self._again.waiting if self._again else [(self._row, self._draft.next)]

    def begin(self) -> list[int]:
        with _alone(self.job):
            self._tell(self._draft.begin())
        if not self._draft.next:  # there is no token whose logits would be the first
            self._start = None
        return self._draft.next

    def take(self, logits: Tensor) -> None:
        if self._again is not None:
            self._again.take(logits)
            return
        with _alone(self.job):
            token = self._draft.choose(logits[0], self._sample)
            if self._draft.stuck and self._start is not None:
                self._write_again(self._start)
            else:
                self._tell(self._draft.add(token))

    def end(self) -> None:
        if self._again is not None:
            self._again.end()
        else:
            self.tree.packed.end(self._row)

    def _write_again(self, start: Constraint) -> None:
        packed, self.job.constraint = self.tree.packed, start
        row = packed.fork(self._row, without=self._draft.written)
        packed.end(self._row)
        most = self.job.request.generation.beams_if_stuck
        self._again = Beams(
            self.job, self.tree, row, self._backbone, self._cached, most, width=math.inf
        )
        self._again.begin()

    def _tell(self, text: str) -> None:
        told = self.job.request.on_text
        finished = self._draft.finish is not None
        completion = self._draft.completion(self._cached) if finished else None
        if self._start is not None:
            text = (completion.text or "") if completion else ""
        if text and told is not None:
            told(text)
        if completion is not None:
            self.job.finish(completion)


@dataclass(frozen=True, slots=True)
class _Beam:
    """A draft, the row that it is written in, and its log-likelihood in nats.

    Tokens that had to follow count as certain.
    """

    draft: Draft
    row: int
    score: float


class Beams:
    """Stateful: the likeliest of several answers that are written side by side.

    Beams share the tokens that they have in common. Those far behind the best are given up
    (relative pruning, https://arxiv.org/abs/1702.01806), and as a likelihood only falls, no more
    is written once the best finished answer leads.
    """

    def __init__(
        self,
        job: Job,
        tree: Tree,
        row: int,
        backbone: Backbone,
        cached: int,
        most: int,
        width: float,
    ) -> None:
        """At most `most` beams, none of which is `width` nats less likely than the best one."""
        self.job = job
        self.tree = tree
        self._most = most
        self._width = width
        self._beams = [_Beam(Draft(job, backbone), row, 0.0)]
        self._done: tuple[Draft, float] | None = None
        self._cached = cached

    @property
    def waiting(self) -> list[tuple[int, list[int]]]:
        return [(beam.row, beam.draft.next) for beam in self._beams]

    def begin(self) -> list[int]:
        draft = self._beams[0].draft
        with _alone(self.job):
            draft.begin()
            if draft.finish is not None:
                self._settle(draft)
        return draft.next

    def take(self, logits: Tensor) -> None:
        with _alone(self.job):
            self._advance(logits)
            if not self._beams and self._done is not None:
                self._settle(self._done[0])

    def end(self) -> None:
        for beam in self._beams:
            self.tree.packed.end(beam.row)

    def _advance(self, logits: Tensor) -> None:
        before = self._beams
        scores = torch.log_softmax(logits.float(), dim=-1)
        found = [
            (beam.score + gain, beam, token)
            for beam, own in zip(before, scores, strict=True)
            for token, gain in beam.draft.best(own, self._most)
        ]
        found.sort(key=lambda one: -one[0])
        least = found[0][0] - self._width
        drafts: list[tuple[_Beam, Draft, float]] = []
        for score, beam, token in found:
            if self._done is not None:
                least = max(least, self._done[1])
            if len(drafts) == self._most or score < least:
                break
            draft = beam.draft.copy()
            draft.add(draft.take(token))
            if draft.finish is None:
                drafts.append((beam, draft, score))
            else:
                self._done = draft, score
        self._beams = self._placed(before, drafts)

    def _placed(
        self, before: Sequence[_Beam], drafts: Sequence[tuple[_Beam, Draft, float]]
    ) -> list[_Beam]:
        """The drafts, each in its beam's row or a fork of it; rows that none is in are ended."""
        packed = self.tree.packed
        heirs = Counter(beam.row for beam, _, _ in drafts)
        placed = [
            _Beam(draft, beam.row if heirs[beam.row] == 1 else packed.fork(beam.row), score)
            for beam, draft, score in drafts
        ]
        for beam in before:
            if heirs[beam.row] != 1:
                packed.end(beam.row)
        return placed

    def _settle(self, draft: Draft) -> None:
        completion = draft.completion(self._cached)
        if completion.text and self.job.request.on_text is not None:
            self.job.request.on_text(completion.text)
        self.job.finish(completion)
