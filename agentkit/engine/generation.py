"""One row of a batch that is being written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from agentkit.engine.backbone import Backbone
from agentkit.engine.detokenizer import Detokenizer
from agentkit.engine.job import Job, as_ours
from agentkit.engine.sampling import Sampler
from agentkit.engine.tree import Tree
from agentkit.types import Completion, Usage


class WritingRow:
    """Stateful: the answer to one request, as far as it is written."""

    def __init__(self, job: Job, tree: Tree, row: int, backbone: Backbone, cached: int) -> None:
        self.job = job
        self.tree = tree
        self.row = row
        """Its row in the tree."""
        self.next: list[int] = []
        """The tokens that were written last: one by its logits, then those that had to follow."""
        self._sample = Sampler(job.request.generation)
        self._constraint = job.constraint
        self._ends = backbone.eos_ids
        # A stop string within constrained output would leave it unfinished.
        stop = () if job.constraint else job.request.generation.stop
        self._text = Detokenizer(backbone.tokenizer, stop)
        self._written = 0
        self._cached = cached
        self._finish: Literal["stop", "length", "schema"] | None = None

    def begin(self) -> list[int]:
        """The tokens that every answer begins with; they are computed with the prompt."""
        try:
            self._write(self._forced())
            self._finish = self._reason()
            self._settle()
        except BaseException as error:  # noqa: BLE001 -- a caller's on_text may raise anything
            self.job.fail(as_ours(error))
        return self.next

    def take(self, logits: Tensor) -> None:
        """Write the next tokens by logits `(1, vocabulary)`; settle the job after the last ones.

        What a caller's `on_text` raises fails this job alone.
        """
        try:
            self._advance(logits[0])
        except BaseException as error:  # noqa: BLE001 -- a caller's on_text may raise anything
            self.job.fail(as_ours(error))

    def _advance(self, logits: Tensor) -> None:
        token = self._choose(logits)
        if token is not None:
            self._write([token])
            self._finish = self._reason()
            if self._finish is None:
                forced = self._forced()
                self._write(forced, after=[token])
                self._finish = self._reason()
        self._settle()

    def _settle(self) -> None:
        if self._finish is not None:
            self._tell(self._text.finish())
            self.job.finish(self._completion())

    def _forced(self) -> list[int]:
        return self._constraint.forced() if self._constraint is not None else []

    def _write(self, tokens: list[int], after: Sequence[int] = ()) -> None:
        self.next = [*after, *tokens]
        self._written += len(tokens)
        for token in tokens:
            self._tell(self._text.add(token))

    def _choose(self, logits: Tensor) -> int | None:
        if self._constraint is not None:
            token = self._constraint.choose(logits, self._sample, greedy=self._sample.greedy)
            if token is None:
                self._finish = "schema"
            return token
        token = self._sample(logits)
        if token in self._ends:
            self._finish = "stop"
            return None
        return token

    def _reason(self) -> Literal["stop", "length", "schema"] | None:
        if self._constraint is not None:
            return "schema" if self._constraint.done else None
        if self._text.stopped:
            return "stop"
        return "length" if self._written >= self.job.max_tokens else None

    def _tell(self, piece: str) -> None:
        if piece and self.job.request.on_text is not None:
            self.job.request.on_text(piece)

    def _completion(self) -> Completion:
        usage = Usage(len(self.job.request.prompt.ids), self._written, self._cached)
        return Completion(usage=usage, text=self._text.text, finish=self._finish or "stop")
