"""One row of a batch that is being written."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from agentkit.engine.backbone import Backbone
from agentkit.engine.detokenizer import Detokenizer
from agentkit.engine.job import Job
from agentkit.engine.sampling import Sampler
from agentkit.types import Completion, Usage


class WritingRow:
    """Stateful: the answer to one request, as far as it is written."""

    def __init__(self, job: Job, row: int, backbone: Backbone, cached: int) -> None:
        self.job = job
        self.row = row
        """Its row in the packed sequence."""
        self._sample = Sampler(job.request.generation)
        self._constraint = job.constraint
        self._ends = backbone.eos_ids
        # A stop string within constrained output would leave it unfinished.
        stop = () if job.constraint else job.request.generation.stop
        self._text = Detokenizer(backbone.tokenizer, stop)
        self._written = 0
        self._cached = cached
        self._finish: Literal["stop", "length", "schema"] | None = None

    def advance(self, logits: Tensor) -> int | None:
        """Choose the next token by logits `(vocabulary,)`; None when the answer is complete."""
        token = self._choose(logits)
        if token is not None:
            self._written += 1
            self._tell(self._text.add(token))
            self._finish = self._reason()
        if self._finish is None:
            return token
        self._tell(self._text.finish())
        self.job.finish(self._completion())
        return None

    def _choose(self, logits: Tensor) -> int | None:
        if self._constraint is not None:
            token = self._constraint.choose(logits, self._sample)
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
