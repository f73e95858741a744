"""Several skills in one forward: each stretch of tokens is changed by the adapter of its own.

A long stretch takes its adapter's own products. Short ones (rows that decode: one token each)
would make many tiny products, so the LoRA of up to eight skills are laid side by side, each at
its own rank: one product down for all their tokens, a mask that leaves every token the columns of
its own skill, one product up that adds into the outputs. At these sizes the weights' way through
memory is the cost, not the columns that the mask throws away. (S-LoRA,
https://arxiv.org/abs/2311.03285, and Punica, https://arxiv.org/abs/2310.18547, do it by kernels.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from agentkit.adapters.lora import LoraDelta

LONG = 16
"""Tokens from which a stretch takes its adapter's products by itself."""
TOGETHER = 8
"""Skills whose products are laid side by side at most; more would be columns thrown away."""

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


def runs_of(segments: Sequence[Segment]) -> list[tuple[Segment, ...]]:
    """Neighbouring short segments put together, at most `TOGETHER` slots a run; long ones alone.

    What no adapter acts on is left out.
    """
    runs: list[tuple[Segment, ...]] = []
    short: list[Segment] = []

    def close() -> None:
        while short and short[-1].slot is None:
            short.pop()
        if short:
            runs.append(tuple(short))
        short.clear()

    for segment in segments:
        if segment.stop - segment.start >= LONG:
            close()
            if segment.slot is not None:
                runs.append((segment,))
            continue
        if segment.slot is None and not short:
            continue
        slots = {one.slot for one in short} | {segment.slot}
        if len(slots - {None}) > TOGETHER:
            close()
            if segment.slot is None:
                continue
        short.append(segment)
    close()
    return runs


@dataclass(frozen=True, slots=True)
class Gathered:
    """The LoRA of several slots at one module, side by side."""

    down: Tensor
    """`(sum of ranks, in)`."""
    up: Tensor
    """`(sum of ranks, out)`, scaling included."""
    columns: tuple[tuple[int, int, int], ...]
    """`(slot, first, last + 1)`."""


class Gathers:
    """Stateful: what was gathered, by slots and module, kept while the batch stays the same.

    A run of fewer slots takes what was gathered for more, until that is less than half of use.
    """

    def __init__(self) -> None:
        self._held: dict[frozenset[int], dict[str, Gathered | None]] = {}
        self._used: list[frozenset[int]] = []

    def choose(self, slots: frozenset[int]) -> frozenset[int]:
        """The gathered set that serves `slots`: one there is, or `slots` themselves."""
        fitting = [held for held in self._held if slots <= held and len(held) <= 2 * len(slots)]
        chosen = min(fitting, key=len, default=slots)
        self._held.setdefault(chosen, {})
        self._used.append(chosen)
        return chosen

    def trim(self) -> None:
        """Forget what was not chosen since the last call: one forward's gathers are kept."""
        self._held = {key: self._held[key] for key in self._used}
        self._used = []

    def get(
        self, slots: frozenset[int], module: str, deltas: Mapping[int, _Delta]
    ) -> Gathered | None:
        """The slots' LoRA at one module; None if none of them has one there."""
        held = self._held[slots]
        if module not in held:
            held[module] = _gather(slots, deltas)
        return held[module]

    def drop(self, slot: int) -> None:
        """Forget what holds a slot."""
        self._held = {key: value for key, value in self._held.items() if slot not in key}

    def clear(self) -> None:
        self._held = {}
        self._used = []


def _gather(slots: frozenset[int], deltas: Mapping[int, _Delta]) -> Gathered | None:
    found = [
        (slot, delta) for slot in sorted(slots) if type(delta := deltas.get(slot)) is LoraDelta
    ]
    if not found:
        return None
    columns, at = [], 0
    for slot, delta in found:
        columns.append((slot, at, at + len(delta.down)))
        at += len(delta.down)
    if len(found) == 1:
        return Gathered(found[0][1].down, found[0][1].up, tuple(columns))
    return Gathered(
        torch.cat([delta.down for _, delta in found]),
        torch.cat([delta.up for _, delta in found]),
        tuple(columns),
    )


@dataclass(frozen=True, slots=True)
class _Run:
    segments: tuple[Segment, ...]
    gathered: frozenset[int]
    """The slots to look up in the gathers; empty for a segment by itself."""
    start: int
    stop: int


class MixedPlan:
    """What acts on which tokens of one forward, ready to be applied module by module."""

    def __init__(self, segments: Sequence[Segment], gathers: Gathers) -> None:
        self._gathers = gathers
        self._masks: dict[tuple[int, tuple[tuple[int, int, int], ...]], Tensor] = {}
        self._runs = []
        for run in runs_of(segments):
            slots = frozenset(s.slot for s in run if s.slot is not None)
            together = gathers.choose(slots) if len(run) > 2 or len(slots) > 1 else frozenset()
            self._runs.append(_Run(run, together, run[0].start, run[-1].stop))
        gathers.trim()

    def apply(
        self, module: str, deltas: Mapping[int, _Delta], inputs: Tensor, outputs: Tensor
    ) -> Tensor:
        """A module's outputs `(1, tokens, out)`, changed in place where adapters act."""
        for run in self._runs:
            if not run.gathered:
                for segment in run.segments:
                    _apply_one(segment, deltas, inputs, outputs)
                continue
            gathered = self._gathers.get(run.gathered, module, deltas)
            if gathered is not None:
                self._apply_gathered(run, gathered, inputs, outputs)
            for segment in run.segments:
                if type(deltas.get(segment.slot)) is not LoraDelta:  # type: ignore[arg-type]
                    _apply_one(segment, deltas, inputs, outputs)
        return outputs

    def _apply_gathered(
        self, run: _Run, gathered: Gathered, inputs: Tensor, outputs: Tensor
    ) -> None:
        low = linear(inputs[0, run.start : run.stop].to(gathered.down.dtype), gathered.down)
        low.masked_fill_(self._others(run, gathered.columns, low), 0)
        own = outputs[0, run.start : run.stop]
        if low.dtype == own.dtype:
            own.addmm_(low, gathered.up)
        else:
            own.add_(low @ gathered.up)

    def _others(self, run: _Run, columns: tuple[tuple[int, int, int], ...], like: Tensor) -> Tensor:
        key = (run.start, columns)
        mask = self._masks.get(key)
        if mask is None:
            mask = torch.ones(like.shape, dtype=torch.bool)
            place = {slot: (first, last) for slot, first, last in columns}
            for segment in run.segments:
                if segment.slot in place:
                    first, last = place[segment.slot]
                    mask[segment.start - run.start : segment.stop - run.start, first:last] = False
            mask = self._masks[key] = mask.to(like.device)
        return mask


def _apply_one(
    segment: Segment, deltas: Mapping[int, _Delta], inputs: Tensor, outputs: Tensor
) -> None:
    delta = None if segment.slot is None else deltas.get(segment.slot)
    if delta is None:
        return
    part = slice(segment.start, segment.stop)
    before = outputs[:, part]
    after = delta(inputs[:, part], before)
    if after is not before:
        outputs[:, part] = after
