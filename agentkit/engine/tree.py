"""The rows that share a prefix, and the stems that they continue from."""

from __future__ import annotations

from typing import TypeAlias

from agentkit.engine.packed import PackedRows
from agentkit.engine.prefix import PrefixStates
from agentkit.engine.scheduler import TreeKey

Stem: TypeAlias = tuple[str | None, tuple[int, ...]]
"""Whose states a skill's own first tokens after the prefix have, and all token ids up to there."""


class Tree:
    """Stateful: packed rows over one prefix, for as long as a row is being computed there."""

    def __init__(self, key: TreeKey, root: PrefixStates | None, room: int = 0) -> None:
        self.key = key
        self.root = root
        self.packed = PackedRows(root, room)
        self.rows = 0
        """Rows that are being written."""
        self.failed: BaseException | None = None
        """Why nothing more may be computed here."""
        self._stems: dict[Stem, int] = {}
        self._coming: set[Stem] = set()

    def clear(self) -> None:
        """Leave nothing but the prefix, so that what comes next is computed as if it were first."""
        self.packed.clear()
        self._stems, self._coming = {}, set()

    def expects(self, stem: Stem) -> bool:
        """Whether a stem is there, or comes with the first row that needs it."""
        return stem in self._stems or stem in self._coming

    def expect(self, stem: Stem) -> None:
        """Have a stem computed in one forward with the first row that continues from it."""
        self._coming.add(stem)

    def adopt(self, stem: Stem, states: PrefixStates) -> None:
        """Take in a stem that was read."""
        if stem not in self._stems:
            self._stems[stem] = self.packed.adopt(states)

    def fork(self, stem: Stem, slot: int | None) -> int:
        """A new row after the prefix and, if there are tokens of one, after its stem.

        `slot` acts on the stem, if it is still to be computed.
        """
        _, ids = stem
        if not ids:
            return self.packed.fork()
        if stem not in self._stems:
            row = self._stems[stem] = self.packed.fork()
            self.packed.append(row, (slot, ids[len(self.key.prefix) :]))
            self._coming.discard(stem)
        return self.packed.fork(self._stems[stem])
