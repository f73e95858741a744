"""A tree of rows: many continuations of one prefix, kept apart by an attention mask.

Each row sees the prefix, what it was forked from, and itself; its positions continue from there.
So the prefix is neither copied nor read once per row, and one forward serves all rows (tree
attention as in SpecInfer, https://arxiv.org/abs/2305.09781). Every stretch of tokens names the
slot that acts on it, and several trees go through one forward together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from agentkit.engine.mixing import Segment
from agentkit.engine.prefix import GrowingCache, PrefixStates

_WASTE = 512
"""Tokens of ended rows that a tree may hold before it is compacted."""

_Value = TypeVar("_Value", np.bool_, np.int64)
Piece: TypeAlias = tuple[int | None, Sequence[int]]
"""A slot, and the token ids that it acts on."""


@dataclass(slots=True)
class _New:
    """Tokens of one row that wait to be computed."""

    seen: NDArray[np.bool_]
    start: int
    length: int


class PackedRows:
    """Stateful: rows grown from one prefix. Add tokens to any rows, then compute them at once."""

    def __init__(self, root: PrefixStates | None, room: int = 0) -> None:
        """`room` is how many tokens all rows together are expected to take."""
        self._root = root.length if root else 0
        self.cache = root.branch(room) if root else GrowingCache()
        self._taken = self._computed = self._root
        capacity = self._root + max(room, 64)
        self._positions = np.zeros(capacity, dtype=np.int64)
        self._positions[: self._root] = np.arange(self._root)
        self._rows: dict[int, NDArray[np.bool_]] = {}
        self._lengths: dict[int, int] = {}
        self._next = 0
        self.ids: list[int] = []
        """Of the tokens that wait to be computed."""
        self.segments: list[Segment] = []
        """What acts on these tokens."""
        self._new: list[_New] = []

    def fork(self, row: int | None = None, *, without: int = 0) -> int:
        """A new row that continues from the prefix, or from `row` as it is now.

        `without` is how many of that row's last tokens it does not see.
        """
        number, self._next = self._next, self._next + 1
        if row is None:
            seen = np.zeros(len(self._positions), dtype=np.bool_)
            seen[: self._root] = True
        else:
            seen = self._rows[row].copy()
        length = self._root if row is None else self._lengths[row] - without
        if without:
            seen[: self._taken] &= self._positions[: self._taken] < length
        self._rows[number], self._lengths[number] = seen, length
        return number

    def append(self, row: int, *pieces: Piece) -> int:
        """Add tokens to a row, to be computed next.

        Returns the index of the last one among the tokens of that computation.
        """
        new = sum(len(ids) for _, ids in pieces)
        self._new.append(_New(self._rows[row].copy(), self._taken, new))
        self._take(row, new)
        for slot, ids in pieces:
            at = len(self.ids)
            self.ids.extend(ids)
            self.segments.append(Segment(slot, at, len(self.ids)))
        return len(self.ids) - 1

    def adopt(self, states: PrefixStates) -> int:
        """A row that continues from the prefix by tokens whose states are known.

        Nothing may wait to be computed.
        """
        if self.ids or states.keys_values is None:
            raise ValueError("only computed tokens can be adopted, into a tree that has a prefix")
        row = self.fork()
        for layer, pair in zip(self.cache.growing(), states.keys_values, strict=True):
            layer.update(*pair)
        self._take(row, states.length - self._root)
        self._computed = self._taken
        return row

    def end(self, row: int) -> None:
        """Forget a row; its tokens are given up once they are many."""
        del self._rows[row], self._lengths[row]

    def clear(self) -> None:
        """Forget all rows and their tokens, computed or not.

        Only the prefix is left, as at first.
        """
        self.ids, self.segments, self._new = [], [], []
        if self._taken == self._root and not self._rows:
            return
        for layer in self.cache.growing():
            layer.keep(self._root, torch.zeros(0, dtype=torch.long, device=layer.device))
        self._rows, self._lengths = {}, {}
        self._taken = self._computed = self._root

    def compact(self) -> None:
        """Give up the tokens that no row sees, if they are many."""
        if self.ids or self._taken - self._root < _WASTE:
            return
        live = np.zeros(self._taken, dtype=np.bool_)
        for seen in self._rows.values():
            live |= seen[: self._taken]
        kept = np.flatnonzero(live[self._root :]) + self._root
        if 2 * len(kept) > self._taken - self._root:
            return
        for layer in self.cache.growing():
            layer.keep(self._root, torch.from_numpy(kept).to(layer.device))
        end = self._root + len(kept)
        self._positions[self._root : end] = self._positions[kept]
        for seen in self._rows.values():
            own = seen[kept]
            seen[self._root :] = False
            seen[self._root : end] = own
        self._taken = self._computed = end

    def waiting(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Positions of the new tokens and of all, and which of all each new one sees."""
        start, end = self._computed, self._taken
        visible = np.zeros((end - start, end), dtype=np.bool_)
        for new in self._new:
            at = slice(new.start - start, new.start - start + new.length)
            shown = new.seen[:end]
            visible[at, : len(shown)] = shown
            own = slice(new.start, new.start + new.length)
            visible[at, own] = np.tri(new.length, dtype=np.bool_)
        return self._positions[start:end], self._positions[:end], visible

    def computed(self) -> None:
        """What waited is in the cache now."""
        self.ids, self.segments, self._new = [], [], []
        self._computed = self._taken

    @property
    def writes(self) -> int | None:
        """Rows that wait, if each has one token to be computed; None if one has more."""
        return len(self._new) if len(self._new) == len(self.ids) else None

    @property
    def fresh(self) -> bool:
        """Whether what waits is one plain sequence from the very start."""
        return self._computed == 0 and len(self._new) == 1

    def _take(self, row: int, new: int) -> None:
        start, end = self._taken, self._taken + new
        if end > len(self._positions):
            size = end + max(256, end // 4)
            self._positions = _widened(self._positions, size)
            self._rows = {number: _widened(seen, size) for number, seen in self._rows.items()}
        self._rows[row][start:end] = True
        length = self._lengths[row]
        self._positions[start:end] = np.arange(length, length + new)
        self._lengths[row] += new
        self._taken = end


def _widened(values: NDArray[_Value], size: int) -> NDArray[_Value]:
    wide = np.zeros(size, dtype=values.dtype)
    wide[: len(values)] = values
    return wide
