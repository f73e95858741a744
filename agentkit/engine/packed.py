"""Many continuations of one prefix in one sequence, kept apart by a tree attention mask.

Each row sees the prefix, what it was forked from, and itself; its positions continue from there.
So the prefix is neither copied nor read once per row, and one forward serves all rows (tree
attention as in SpecInfer, https://arxiv.org/abs/2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentkit.engine.backbone import Backbone
from agentkit.engine.prefix import GrowingCache, PrefixStates


class PackedRows:
    """Stateful: rows grown from one prefix. Add tokens to any rows, then compute them at once."""

    def __init__(self, backbone: Backbone, prefix: PrefixStates | None, room: int) -> None:
        """`room` is the most tokens that all rows together will take."""
        self._backbone = backbone
        self._cache: GrowingCache = prefix.branch() if prefix else GrowingCache()
        self._computed = self._taken = prefix.length if prefix else 0
        capacity = self._taken + room
        self._prefix = torch.zeros(capacity, dtype=torch.bool)
        self._prefix[: self._taken] = True
        self._prefix_length = self._taken
        self._visible: list[Tensor] = []
        self._lengths: list[int] = []
        self._positions = torch.zeros(capacity, dtype=torch.long)
        self._positions[: self._taken] = torch.arange(self._taken)
        self._ids: list[int] = []
        self._blocks: list[Tensor] = []

    def fork(self, row: int | None = None) -> int:
        """A new row that continues from the prefix, or from `row` as it is now."""
        self._visible.append((self._prefix if row is None else self._visible[row]).clone())
        self._lengths.append(self._prefix_length if row is None else self._lengths[row])
        return len(self._visible) - 1

    def append(self, row: int, ids: Sequence[int]) -> int:
        """Add tokens to a row, to be computed next.

        Returns the index of the last one among the tokens of that computation.
        """
        new, start = len(ids), self._taken
        block = self._visible[row].expand(new, -1).clone()
        block[:, start : start + new] = torch.ones(new, new, dtype=torch.bool).tril()
        self._blocks.append(block)
        self._visible[row][start : start + new] = True
        length = self._lengths[row]
        self._positions[start : start + new] = torch.arange(length, length + new)
        self._lengths[row] += new
        self._taken += new
        self._ids.extend(ids)
        return len(self._ids) - 1

    def hidden_states(self) -> Tensor:
        """Compute what was appended: `(tokens, hidden)` in the order of `append`."""
        ids, positions, mask = self._flush()
        return self._backbone.hidden_states(ids, positions=positions, cache=self._cache, mask=mask)

    def logits(self, at: Sequence[int]) -> Tensor:
        """Compute what was appended: logits `(len(at), vocabulary)` of the tokens indexed."""
        ids, positions, mask = self._flush()
        return self._backbone.logits(
            ids,
            positions=positions,
            at=torch.tensor(at, device=self._backbone.device),
            cache=self._cache,
            mask=mask,
        )

    def _flush(self) -> tuple[Tensor, Tensor, Tensor | dict[str, Tensor] | None]:
        device = self._backbone.device
        start, end = self._computed, self._taken
        ids = torch.tensor(self._ids, device=device)
        positions = self._positions[start:end].to(device)
        if start == 0 and len(self._blocks) == 1:
            mask = self._backbone.causal_mask(end)
        else:
            visible = torch.cat(self._blocks)[:, :end].to(device)
            keys = self._positions[:end].to(device)
            mask = self._backbone.attention_mask(visible, positions, keys)
        self._ids, self._blocks = [], []
        self._computed = end
        return ids, positions, mask


def read_prefix(backbone: Backbone, ids: Sequence[int], *, keys_values: bool) -> PrefixStates:
    """Read the first tokens of a prompt once, under the adapter that is active."""
    cache = GrowingCache() if keys_values else None
    hidden = backbone.hidden_states(
        torch.tensor(ids, device=backbone.device),
        positions=torch.arange(len(ids), device=backbone.device),
        cache=cache,
        mask=backbone.causal_mask(len(ids)),
    )
    states = cache.states(len(ids)) if cache is not None else None
    return PrefixStates(len(ids), hidden.clone(), states)
