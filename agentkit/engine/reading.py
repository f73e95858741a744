"""Reading the first tokens of a prompt once, and as little of it anew as can be.

Where an adapter acts on the upper layers alone, what the layers below make of a text is the bare
backbone's: it is computed once, under no adapter, and every skill goes on from there; a reading by
the bare backbone keeps it for the skills that are in memory. What an activated adapter has before
its invocation is the bare backbone's altogether. Prefix tuning conditions every state after it, so
it shares nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from math import ceil
from typing import TypeAlias

import torch
from torch import Tensor

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone, Mask
from agentkit.engine.install import LoadedSkill
from agentkit.engine.prefix import (
    GrowingCache,
    LowerStates,
    Pair,
    PrefixCache,
    PrefixKey,
    PrefixStates,
)
from agentkit.engine.scheduler import SHARED_LEAST

CHUNK = 768
"""Tokens read at once while rows are being written, which get their turn between two chunks."""
WHOLE = 2048
"""Tokens read at once while none are; a second or two, after which requests that came may join."""
_PROBE = 8


_States: TypeAlias = tuple[Tensor, tuple[Pair, ...]]
Steps: TypeAlias = Generator[None, None, PrefixStates]
"""Work in chunks: something else may be done at each step."""


def scope(skill: LoadedSkill | None) -> str | None:
    """Whose the states of a prompt's first tokens are: a digest, or None, the bare backbone."""
    return None if skill is None or skill.starts_at_invocation else skill.digest


class Reader:
    """Stateful: reads prefixes into the cache; used from the engine's loop alone."""

    def __init__(
        self,
        backbone: Backbone,
        slots: Slots,
        cache: PrefixCache,
        lowest_layers: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self._backbone = backbone
        self._slots = slots
        self._cache = cache
        self._lowest_layers = lowest_layers
        self._divisible: bool | None = None

    def virtual(self, skill: LoadedSkill | None) -> PrefixStates | None:
        """What comes before the first token of a prompt: prefix tuning's keys and values."""
        if skill is None or skill.prefix_states is None:
            return None
        nothing = torch.zeros(
            0, self._backbone.hidden, device=self._backbone.device, dtype=self._backbone.dtype
        )
        return PrefixStates(skill.virtual_tokens, nothing, skill.prefix_states)

    def known(
        self,
        skill: LoadedSkill | None,
        ids: Sequence[int],
        *,
        start: int = 0,
        keys_values: bool = True,
    ) -> PrefixStates | None:
        """The states of `ids[start:]`, if they are in the cache."""
        return self._cache.get(_key(skill, ids, start), keys_values=keys_values)

    def read(
        self,
        skill: LoadedSkill | None,
        ids: Sequence[int],
        *,
        start: int = 0,
        parent: PrefixStates | None = None,
        keys_values: bool = True,
        chunk: int = CHUNK,
    ) -> Steps:
        """The states of `ids[start:]`, which go on from `parent`; kept in the cache.

        Keys and values are left out where they are not wanted. `chunk` is how many tokens are read
        in one step.
        """
        own = skill if scope(skill) is not None else None
        parent = parent or self.virtual(own)
        depths = [] if parent else self._depths(own, ids)
        if depths:
            for below in depths[:-1]:
                yield from self._lower(ids, below, chunk)
            hidden, pairs = yield from self._upper(ids, depths[-1], own, chunk)
        else:
            hidden, pairs = yield from self._whole(ids[start:], parent, own, chunk)
        length = (parent.length if parent else 0) + len(ids) - start
        states = PrefixStates(length, hidden, pairs if keys_values else None, parent)
        self._cache.put(_key(skill, ids, start), states)
        return states

    def _whole(
        self,
        ids: Sequence[int],
        parent: PrefixStates | None,
        skill: LoadedSkill | None,
        chunk: int = CHUNK,
    ) -> Generator[None, None, _States]:
        base = parent.length if parent else 0
        cache = (
            parent.branch(len(ids))
            if parent
            else GrowingCache([()] * self._backbone.layers, len(ids))
        )
        tokens = torch.tensor(ids, device=self._backbone.device)
        parts = []
        for at, end in _chunks(len(ids), chunk):
            if at:
                yield
            with self._slots.activated(skill.slot if skill else None):
                states = self._backbone.hidden_states(
                    tokens[at:end],
                    positions=self._positions(base + at, base + end),
                    cache=cache,
                    mask=self._mask(base + at, base + end),
                )
            parts.append(states)
        return torch.cat(parts), cache.stretch(base)

    # ------------------------------------------------------------ some layers

    def _upper(
        self, ids: Sequence[int], depth: int, skill: LoadedSkill | None, chunk: int
    ) -> Generator[None, None, _States]:
        lower = yield from self._lower(ids, depth, chunk)
        states, pairs = yield from self._layers(
            ids, range(depth, self._backbone.layers), lower, skill, chunk
        )
        return states, (*lower.keys_values, *pairs)

    def _lower(
        self, ids: Sequence[int], depth: int, chunk: int
    ) -> Generator[None, None, LowerStates]:
        """What the bare layers below `depth` make of a text, from the cache as far as it goes."""
        below = self._cache.lower(ids, depth)
        first = below.depth if below else 0
        if below is not None and first == depth:
            return below
        states, pairs = yield from self._layers(ids, range(first, depth), below, None, chunk)
        lower = LowerStates(depth, states, (*(below.keys_values if below else ()), *pairs))
        self._cache.put(PrefixKey.of(None, ids, depth=depth), lower)
        yield
        return lower

    def _layers(
        self,
        ids: Sequence[int],
        chosen: range,
        below: LowerStates | None,
        skill: LoadedSkill | None,
        chunk: int = CHUNK,
    ) -> Generator[None, None, _States]:
        """What some layers make of the states below them: theirs, and their keys and values."""
        tokens = torch.tensor(ids, device=self._backbone.device)
        cache = GrowingCache([()] * self._backbone.layers, len(ids))
        parts = []
        for at, end in _chunks(len(ids), chunk):
            if at:
                yield
            with self._slots.activated(skill.slot if skill else None):
                states = self._backbone.layer_states(
                    tokens[at:end],
                    chosen,
                    states=below.hidden[at:end] if below else None,
                    positions=self._positions(at, end),
                    cache=cache,
                    mask=self._mask(at, end),
                )
            parts.append(states)
        return torch.cat(parts), cache.stretch(0, slice(chosen.start, chosen.stop))

    def _depths(self, own: LoadedSkill | None, ids: Sequence[int]) -> list[int]:
        """Where a reading is divided: below its adapter, or below those that may come after it."""
        wanted = {own.lowest_layer} if own else {*self._lowest_layers()}
        return sorted(depth for depth in wanted if self._may_divide(depth, ids))

    def _may_divide(self, depth: int, ids: Sequence[int]) -> bool:
        if not 0 < depth < self._backbone.layers or len(ids) < SHARED_LEAST:
            return False
        if self._divisible is None:
            self._divisible = self._divides(depth)
        return self._divisible

    def _divides(self, depth: int) -> bool:
        """Whether this architecture's layers can be run in two parts, by trying it."""
        if self._backbone.decoder is None:
            return False
        ids = list(range(1, _PROBE + 1))
        try:
            lower, below = _finish(self._layers(ids, range(depth), None, None))
            upper, _ = _finish(
                self._layers(
                    ids,
                    range(depth, self._backbone.layers),
                    LowerStates(depth, lower, below),
                    None,
                )
            )
        except (TypeError, AttributeError, IndexError, ValueError, RuntimeError):
            return False
        whole, _ = _finish(self._whole(ids, None, None))
        return torch.allclose(upper, whole, atol=1e-4, rtol=1e-4)

    def _positions(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end, device=self._backbone.device)

    def _mask(self, start: int, end: int) -> Mask:
        if start == 0:
            return self._backbone.causal_mask(end)
        queries, keys = self._positions(start, end), self._positions(0, end)
        return self._backbone.attention_mask(keys[None, :] <= queries[:, None], queries, keys)


def _finish(steps: Generator[None, None, _States]) -> _States:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: _States = end.value
            return value


def _key(skill: LoadedSkill | None, ids: Sequence[int], start: int) -> PrefixKey:
    return PrefixKey.of(scope(skill), ids, start=start)


def _chunks(length: int, most: int) -> list[tuple[int, int]]:
    """Equal stretches of at most so many tokens."""
    count = max(1, ceil(length / most))
    bounds = [length * part // count for part in range(count + 1)]
    return list(pairwise(bounds))
