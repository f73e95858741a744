"""Several skills in one forward: each stretch of tokens is changed by the adapter of its own.

In a batch that has just changed, each stretch takes its adapter's own products. Where the batch
stays, the LoRA of its short stretches (rows that decode: one token each) are stacked, those of one
shape together, none padded: one batched product down for all modules that read the same states,
one up that adds into the outputs. A product of a few tokens is over sooner than it is called.
(S-LoRA, https://arxiv.org/abs/2311.03285, and Punica, https://arxiv.org/abs/2310.18547, do it by
kernels.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from agentkit.adapters.joint import Joint
from agentkit.adapters.lora import Down, LoraDelta

SHORT = 8
"""Tokens up to which the products of a stretch are stacked with others."""
SETTLED = 3
"""Forwards after which a batch is taken to stay: stacking copies the weights, which takes about as
long as it saves in two."""

_Delta: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start` to `stop` of a forward and the slot that acts on them; None is no adapter."""

    slot: int | None
    start: int
    stop: int


def merged(segments: Sequence[Segment]) -> list[Segment]:
    """The same segments with neighbours of one slot joined and empty ones left out."""
    joined: list[Segment] = []
    for segment in segments:
        if segment.start == segment.stop:
            continue
        if joined and joined[-1].slot == segment.slot and joined[-1].stop == segment.start:
            joined[-1] = Segment(segment.slot, joined[-1].start, segment.stop)
        else:
            joined.append(segment)
    return joined


class _Stack:
    """Stateful: the LoRA of several stretches of one length, at modules that read the same."""

    def __init__(self, segments: Sequence[Segment], downs: Sequence[Down]) -> None:
        self._size = len(downs)
        self._ranks = downs[0].ranks
        self._down = torch.stack([down.weight for down in downs])
        self._ups: dict[int, Tensor] = {}
        self._rows = _rows(segments).to(self._down.device)
        start, stop = segments[0].start, segments[-1].stop
        self._span = slice(start, stop) if stop - start == len(self._rows) else None
        """Where the stretches are, if they are neighbours in order."""
        self._joint = Joint(self._product)

    def hold(self, deltas: Sequence[LoraDelta]) -> int:
        """Stack the products up at one of the modules; returns its index."""
        index = deltas[0].index
        self._ups[index] = torch.stack([delta.up for delta in deltas])
        return index

    def add(self, index: int, inputs: Tensor, outputs: Tensor) -> None:
        """Add the products of module `index` to its outputs `(1, tokens, out)`."""
        low, up = self._joint.take(index, inputs), self._ups[index]
        if self._span is None or low.dtype != outputs.dtype:
            added = low.bmm(up).flatten(0, 1).to(outputs.dtype)
            outputs[0].index_add_(0, self._rows, added)
        else:
            outputs[0, self._span].view(self._size, -1, outputs.shape[-1]).baddbmm_(low, up)

    def _product(self, inputs: Tensor) -> Sequence[Tensor]:
        own = inputs[0].index_select(0, self._rows).to(self._down.dtype)
        low = own.view(self._size, -1, inputs.shape[-1]).bmm(self._down)
        return torch.split_with_sizes(low, self._ranks, dim=2)


def _rows(segments: Sequence[Segment]) -> Tensor:
    return torch.cat([torch.arange(segment.start, segment.stop) for segment in segments])


@dataclass(frozen=True, slots=True)
class _Acting:
    """What acts at one module."""

    stacks: Sequence[tuple[_Stack, int]]
    """Each with the module's index in it."""
    alone: Sequence[int]
    """Indices of the segments that take their adapter's own products."""


class MixedPlan:
    """Stateful: what acts on which tokens of a forward, applied module by module.

    It serves any number of forwards over the same segments.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self._adapted = [segment for segment in segments if segment.slot is not None]
        self._all = _Acting((), range(len(self._adapted)))
        self._forwards = 0
        self._acting: dict[str, _Acting] = {}
        self._stacks: dict[tuple[tuple[str, ...], tuple[int, ...]], _Stack] = {}
        self._inputs: Tensor | None = None
        self._cut: list[Tensor] = []

    def begin(self) -> None:
        """One more forward starts."""
        self._forwards += 1
        self._inputs, self._cut = None, []

    def apply(
        self, module: str, deltas: Mapping[int, _Delta], inputs: Tensor, outputs: Tensor
    ) -> Tensor:
        """A module's outputs `(1, tokens, out)`, changed in place where adapters act."""
        acting = self._acting_at(module, deltas)
        for stack, index in acting.stacks:
            stack.add(index, inputs, outputs)
        for number in acting.alone:
            segment = self._adapted[number]
            delta = deltas.get(segment.slot)  # type: ignore[arg-type]
            if delta is None:
                continue
            part = slice(segment.start, segment.stop)
            before = outputs[:, part]
            after = delta(self._cut_of(inputs)[number], before)
            if after is not before:
                outputs[:, part] = after
        return outputs

    def _cut_of(self, inputs: Tensor) -> Sequence[Tensor]:
        """By segment, its inputs: the same objects for all modules that are given the same."""
        if inputs is not self._inputs:
            self._inputs = inputs
            self._cut = [inputs[:, segment.start : segment.stop] for segment in self._adapted]
        return self._cut

    def _acting_at(self, module: str, deltas: Mapping[int, _Delta]) -> _Acting:
        if self._forwards <= SETTLED:
            return self._all
        if module not in self._acting:
            self._acting[module] = self._stacked(deltas)
        return self._acting[module]

    def _stacked(self, deltas: Mapping[int, _Delta]) -> _Acting:
        alone: list[int] = []
        alike: dict[tuple[object, ...], list[tuple[int, LoraDelta]]] = defaultdict(list)
        for number, segment in enumerate(self._adapted):
            delta = deltas.get(segment.slot)  # type: ignore[arg-type]
            length = segment.stop - segment.start
            if type(delta) is LoraDelta and length <= SHORT:
                key = (length, delta.down.modules, *delta.down.ranks)
                alike[key].append((number, delta))
            elif delta is not None:
                alone.append(number)
        stacks = []
        for found in alike.values():
            numbers = tuple(number for number, _ in found)
            if len(numbers) == 1:
                alone += numbers
                continue
            downs = [delta.down for _, delta in found]
            whose = (downs[0].modules, numbers)
            if whose not in self._stacks:
                segments = [self._adapted[number] for number in numbers]
                self._stacks[whose] = _Stack(segments, downs)
            stack = self._stacks[whose]
            stacks.append((stack, stack.hold([delta for _, delta in found])))
        return _Acting(stacks, alone)
