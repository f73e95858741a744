"""States of what was already read, kept under a byte budget and branched from by copy.

The keys hold the adapter's digest where the states depend on it, and a hash of the very token
ids, so that no entry can serve another adapter or another text. Entries may hold the same tensors
(the lower layers of one document, under every skill that acts above them); these count once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_LEAST_ROOM = 128

Pair: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `(1, heads, tokens, width)`."""


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Stateful: one layer's keys and values `(1, heads, tokens, width)`, grown in place.

    Writing new tokens into spare room avoids the copy of all earlier ones that concatenation
    makes at every step. What it was started from is copied at the first write, never changed.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, parts: Sequence[Pair] = (), room: int = 0) -> None:
        """Starts from `parts`, one after the other, with space for `room` tokens more."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts = parts
        self._used = sum(keys.shape[-2] for keys, _ in parts)
        self._expected = self._used + room
        self._room: Pair | None = None
        if parts:
            self.lazy_initialization(*parts[0])

    def get_seq_length(self) -> int:
        return self._used

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._used, self._used + key_states.shape[-2]
        room = self._room
        if room is None or room[0].shape[-2] < end:
            room = self._room = self._grown(end, key_states, value_states)
        for held, states in zip(room, (key_states, value_states), strict=True):
            held[:, :, start:end] = states
        self._used = end
        self.keys, self.values = (held[:, :, :end] for held in room)
        return self.keys, self.values

    def stretch(self, start: int) -> Pair:
        """Keys and values of the tokens from `start` on, which nothing here will change.

        All of them are given as they are where no room is left: the next token moves this layer.
        """
        if start == 0 and self._room is not None and self._room[0].shape[-2] == self._used:
            return self._room
        return _own(self.keys[:, :, start:]), _own(self.values[:, :, start:])

    def keep(self, start: int, columns: Tensor) -> None:
        """Of the tokens from `start` on, keep only `columns`."""
        if self._room is None:
            return
        end = start + len(columns)
        for room in self._room:
            room[:, :, start:end] = room[:, :, columns]
        self._used = end
        self.keys, self.values = (room[:, :, :end] for room in self._room)

    def _grown(self, end: int, *like: Tensor) -> Pair:
        """Room for at least `end` tokens that holds what there is."""
        size = self._expected if end <= self._expected else end + max(_LEAST_ROOM, end // 4)
        held = self._parts if self._room is None else ((self.keys, self.values),)
        fresh = [one.new_empty((*one.shape[:-2], size, one.shape[-1])) for one in like]
        at = 0
        for pair in held:
            for room, states in zip(fresh, pair, strict=True):
                room[:, :, at : at + states.shape[-2]] = states
            at += pair[0].shape[-2]
        self._parts = ()
        return fresh[0], fresh[1]


def _own(states: Tensor) -> Tensor:
    return states.clone(memory_format=torch.contiguous_format)


class GrowingCache(Cache):
    """Stateful: keys and values of all layers, every token kept whatever the attention's window."""

    def __init__(self, layers: Sequence[Sequence[Pair]] = (), room: int = 0) -> None:
        """By layer, the parts to start from; `room` is how many tokens are expected."""
        if layers:
            super().__init__(layers=[GrowingLayer(parts, room) for parts in layers])
        else:
            super().__init__(layer_class_to_replicate=GrowingLayer)

    def growing(self) -> Iterator[GrowingLayer]:
        """The layers that have been written to or started from something, in order."""
        for layer in self.layers:
            if not isinstance(layer, GrowingLayer):
                raise TypeError(f"unexpected cache layer {layer!r}")
            yield layer

    def stretch(self, start: int, layers: slice = slice(None)) -> tuple[Pair, ...]:
        """By layer, keys and values from token `start` on, which nothing here will change."""
        return tuple(layer.stretch(start) for layer in list(self.growing())[layers])


@dataclass(frozen=True, slots=True, eq=False)
class PrefixStates:
    """What one adapter (or none) made of the first tokens of a prompt. Never changed."""

    length: int
    """Positions taken up to its end, those of its parent and of virtual tokens included."""
    hidden: Tensor
    """Final-norm states `(tokens, hidden)` of its own tokens, those after its parent's."""
    keys_values: tuple[Pair, ...] | None
    """Its own, by layer; None where only the hidden states were wanted."""
    parent: PrefixStates | None = None
    """What it continues from."""

    def tensors(self) -> Iterator[Tensor]:
        """All that it keeps in memory."""
        yield self.hidden
        for pair in self.keys_values or ():
            yield from pair
        if self.parent is not None:
            yield from self.parent.tensors()

    def branch(self, room: int = 0) -> GrowingCache:
        """A cache that continues from here; these states stay as they are."""
        chain: list[PrefixStates] = []
        at: PrefixStates | None = self
        while at is not None:
            chain.insert(0, at)
            at = at.parent
        pairs = [states.keys_values or () for states in chain]
        return GrowingCache(list(zip(*pairs, strict=True)), room)


@dataclass(frozen=True, slots=True, eq=False)
class LowerStates:
    """What the bare backbone's first `depth` layers made of a text. Never changed."""

    depth: int
    hidden: Tensor
    """States `(tokens, hidden)` that layer `depth` takes."""
    keys_values: tuple[Pair, ...]
    """Of layers 0 to `depth - 1`."""

    def tensors(self) -> Iterator[Tensor]:
        """All that it keeps in memory."""
        yield self.hidden
        for pair in self.keys_values:
            yield from pair


@dataclass(frozen=True, slots=True)
class PrefixStatistics:
    """What the prefix cache did since it was made."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    entries: int = 0
    bytes: int = 0
    budget: int = 0
    lower_hits: int = 0
    """Readings that began above layers which another skill's reading had computed."""


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Names the states of one text under one adapter, after all layers or after the first few."""

    adapter: str | None
    ids: str
    """SHA-256, hex, of the token ids."""
    depth: int | None = None
    """Layers that were run; None is all of them."""
    start: int = 0
    """The first token whose states these are; those before it are their parent's."""

    @classmethod
    def of(
        cls,
        adapter: str | None,
        ids: Sequence[int],
        *,
        depth: int | None = None,
        start: int = 0,
    ) -> PrefixKey:
        digest = sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()
        return cls(adapter, digest, depth, start)


@dataclass(slots=True)
class _Count:
    """How often a tensor is held."""

    tensor: Tensor
    holders: int = field(default=0)


class PrefixCache:
    """Stateful: states by key, the least recently used dropped above the byte budget."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: OrderedDict[PrefixKey, PrefixStates | LowerStates] = OrderedDict()
        self._held: dict[int, _Count] = {}
        self._bytes = 0
        self._hits = self._misses = self._evictions = self._lower_hits = 0

    def get(self, key: PrefixKey, *, keys_values: bool = True) -> PrefixStates | None:
        """The states under `key`; None if there are none, or none with keys and values."""
        entry = self._entries.get(key)
        if not isinstance(entry, PrefixStates) or (keys_values and entry.keys_values is None):
            self._misses += 1
            return None
        self._entries.move_to_end(key)
        self._hits += 1
        return entry

    def lower(self, ids: Sequence[int], depth: int) -> LowerStates | None:
        """The bare backbone's states of a text at `depth` layers, or at the most below that."""
        text = PrefixKey.of(None, ids)
        for below in range(depth, 0, -1):
            key = PrefixKey(None, text.ids, below)
            entry = self._entries.get(key)
            if isinstance(entry, LowerStates):
                self._entries.move_to_end(key)
                self._lower_hits += 1
                return entry
        return None

    def holds(self, states: PrefixStates | None) -> bool:
        """Whether these very states are kept here."""
        return states is not None and any(entry is states for entry in self._entries.values())

    def put(self, key: PrefixKey, states: PrefixStates | LowerStates) -> None:
        """Keep `states`, unless they alone exceed the budget."""
        self._remove(key)
        if sum(tensor.nbytes for tensor in states.tensors()) > self._budget:
            return
        self._entries[key] = states
        for tensor in states.tensors():
            count = self._held.setdefault(id(tensor), _Count(tensor))
            self._bytes += 0 if count.holders else tensor.nbytes
            count.holders += 1
        while self._bytes > self._budget:
            self._remove(next(iter(self._entries)))
            self._evictions += 1

    def drop(self, adapter: str) -> None:
        """Forget every state of an adapter."""
        for key in [key for key in self._entries if key.adapter == adapter]:
            self._remove(key)

    def statistics(self) -> PrefixStatistics:
        return PrefixStatistics(
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            entries=len(self._entries),
            bytes=self._bytes,
            budget=self._budget,
            lower_hits=self._lower_hits,
        )

    def _remove(self, key: PrefixKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        for tensor in entry.tensors():
            count = self._held[id(tensor)]
            count.holders -= 1
            if not count.holders:
                del self._held[id(tensor)]
                self._bytes -= tensor.nbytes
