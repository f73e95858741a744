"""What the runner holds between a job's admission and its answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from agentkit.engine.job import Job, as_ours
from agentkit.engine.tree import Tree


@dataclass(eq=False, slots=True)
class Entry:
    """A job whose prefix is there, and how many of its tokens came from a cache."""

    job: Job
    tree: Tree
    cached: int


@dataclass(eq=False, slots=True)
class Opening:
    """Jobs that wait for their prefix, and the reading of it."""

    jobs: Sequence[Job]
    work: Generator[None, None, None]


@dataclass(eq=False, slots=True)
class Wanted:
    """Tokens of one tree whose logits are wanted, and who takes them, in order."""

    at: list[int] = field(default_factory=list)
    takers: list[tuple[int, Callable[[Tensor], None], Job]] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        return [job for _, _, job in self.takers]

    def add(self, at: Sequence[int], taker: Callable[[Tensor], None], job: Job) -> None:
        self.at += at
        self.takers.append((len(at), taker, job))

    def give(self, logits: Tensor) -> None:
        """Give each taker its logits; what one of them raises fails its job alone."""
        start = 0
        for count, take, job in self.takers:
            try:
                take(logits[start : start + count])
            except BaseException as error:  # noqa: BLE001 -- it is raised where the future is waited for
                job.fail(as_ours(error))
            start += count
