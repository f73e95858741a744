"""States of documents already read, kept under a byte budget and branched from by copy.

The keys hold the adapter's digest, because the states depend on it, and a hash of the very token
ids, so that no entry can serve another adapter or another text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_LEAST_ROOM = 128


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Stateful: one layer's keys and values `(1, heads, tokens, width)`, grown in place.

    Writing new tokens into spare room avoids the copy of all earlier ones that concatenation
    makes at every step. What it was started from is copied before the first write.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room: tuple[Tensor, Tensor] | None = None
        if keys is not None and values is not None:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        used, new = self.keys.shape[-2], key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < used + new:
            size = used + new + max(_LEAST_ROOM, (used + new) // 4)
            self._room = (_roomy(self.keys, size), _roomy(self.values, size))
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, used : used + new] = states
        self.keys, self.values = (room[:, :, : used + new] for room in self._room)
        return self.keys, self.values


def _own(states: Tensor) -> Tensor:
    return states.clone(memory_format=torch.contiguous_format)


def _roomy(states: Tensor, size: int) -> Tensor:
    room = states.new_empty((*states.shape[:-2], size, states.shape[-1]))
    room[:, :, : states.shape[-2]] = states
    return room


class GrowingCache(Cache):
    """Stateful: keys and values of all layers, every token kept whatever the attention's window."""

    def __init__(self, states: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        if states:
            super().__init__(layers=[GrowingLayer(keys, values) for keys, values in states])
        else:
            super().__init__(layer_class_to_replicate=GrowingLayer)

    def states(self, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of the first `length` tokens, by layer, in memory of their own."""
        pairs = []
        for layer in self.layers:
            if not isinstance(layer, GrowingLayer):
                raise TypeError(f"unexpected cache layer {layer!r}")
            keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
            pairs.append((_own(keys), _own(values)))
        return tuple(pairs)


@dataclass(frozen=True, slots=True, eq=False)
class PrefixStates:
    """What one adapter (or none) made of the first tokens of a prompt. Never changed."""

    length: int
    hidden: Tensor
    """Final-norm states `(length, hidden)`."""
    keys_values: tuple[tuple[Tensor, Tensor], ...] | None
    """By layer; None where only the hidden states were wanted."""

    @property
    def nbytes(self) -> int:
        pairs = self.keys_values or ()
        return int(self.hidden.nbytes + sum(k.nbytes + v.nbytes for k, v in pairs))

    def branch(self) -> GrowingCache:
        """A cache that continues from here; these states stay as they are."""
        return GrowingCache(self.keys_values or ())


@dataclass(frozen=True, slots=True)
class PrefixStatistics:
    """What the prefix cache did since it was made."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    entries: int = 0
    bytes: int = 0
    budget: int = 0


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Names the states of one text under one adapter."""

    adapter: str | None
    ids: str
    """SHA-256, hex, of the token ids."""

    @classmethod
    def of(cls, adapter: str | None, ids: Sequence[int]) -> PrefixKey:
        return cls(adapter, sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest())


class PrefixCache:
    """Stateful: prefix states by key, the least recently used dropped above the byte budget."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: OrderedDict[PrefixKey, PrefixStates] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: PrefixKey, *, keys_values: bool = True) -> PrefixStates | None:
        """The states under `key`; None if there are none, or none with keys and values."""
        entry = self._entries.get(key)
        if entry is None or (keys_values and entry.keys_values is None):
            self._misses += 1
            return None
        self._entries.move_to_end(key)
        self._hits += 1
        return entry

    def put(self, key: PrefixKey, states: PrefixStates) -> None:
        """Keep `states`, unless they alone exceed the budget."""
        self._remove(key)
        if states.nbytes > self._budget:
            return
        self._entries[key] = states
        self._bytes += states.nbytes
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
        )

    def _remove(self, key: PrefixKey) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._bytes -= entry.nbytes
