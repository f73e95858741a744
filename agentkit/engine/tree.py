"""The rows that share a prefix, and the stems that they continue from."""

from __future__ import annotations

from agentkit.engine.packed import PackedRows
from agentkit.engine.prefix import PrefixStates
from agentkit.engine.scheduler import TreeKey


class Tree:
    """Stateful: packed rows over one prefix, for as long as a row is being computed there."""

    def __init__(self, key: TreeKey, root: PrefixStates | None, room: int = 0) -> None:
        self.key = key
        self.root = root
        self.packed = PackedRows(root, room)
        self.rows = 0
        """Rows that are being written."""
        self._stems: dict[tuple[str | None, tuple[int, ...]], int] = {}

    def stem(self, scope: str | None, ids: tuple[int, ...]) -> int | None:
        """The row that holds a skill's own first tokens after the prefix; None if none does."""
        return self._stems.get((scope, ids)) if ids else None

    def adopt(self, scope: str | None, ids: tuple[int, ...], states: PrefixStates) -> None:
        """Take in a stem that was read."""
        if (scope, ids) not in self._stems:
            self._stems[scope, ids] = self.packed.adopt(states)

    def fork(self, scope: str | None, ids: tuple[int, ...]) -> int:
        """A new row after the prefix and, if `ids` are not empty, after their stem."""
        return self.packed.fork(self.stem(scope, ids))
