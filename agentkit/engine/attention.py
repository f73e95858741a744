"""Attention for several trees of rows in one forward, each over keys and values of its own.

The linear layers, which cost most, take the tokens of all trees at once; attention goes tree by
tree. It is registered with transformers' attention interface, so that every architecture which
uses that has it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agentkit.engine.blocks import attend_by_blocks, attend_rows
from agentkit.engine.prefix import GrowingCache, Pair

NAME = "agentkit_trees"
_FEW = 64
"""Query tokens up to which heads that share keys are computed as more queries of one head."""
_APART = 256
"""Query tokens up to which each may be given a copy of the keys that it sees."""
_SHORTEST = 16
"""Queries that a run has on average, at least, for runs to be worth products of their own."""


class TreesCache(Cache):
    """Stateful: the caches of several trees, for one forward over the tokens of all of them."""

    def __init__(self, caches: Sequence[GrowingCache], lengths: Sequence[int]) -> None:
        """`lengths` are the tokens of each tree in this forward."""
        super().__init__(layers=[])
        self._caches = caches
        self._lengths = list(lengths)
        self._pairs: list[Pair] = []
        self._masks: MutableMapping[Tensor, Sequence[Tensor]] = WeakIdKeyDictionary()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        parts = zip(
            self._caches,
            torch.split(key_states, self._lengths, dim=2),
            torch.split(value_states, self._lengths, dim=2),
            strict=True,
        )
        self._pairs = [cache.update(keys, values, layer_idx) for cache, keys, values in parts]
        return key_states, value_states

    def attend(
        self, module: Any, query: Tensor, mask: Tensor, scaling: float | None, **kwargs: Any
    ) -> Tensor:
        """Attention output `(1, tokens, heads, width)`; `mask` holds the trees' masks, flat."""
        queries = torch.split(query, self._lengths, dim=2)
        parts = zip(queries, self._pairs, self._each(mask), strict=True)
        return torch.cat(
            [
                _attend(module, part, keys, values, own, scaling, **kwargs)
                for part, (keys, values), own in parts
            ],
            dim=1,
        )

    def _each(self, mask: Tensor) -> Sequence[Tensor]:
        """The mask of each tree, the same objects in every layer."""
        if mask not in self._masks:
            shapes = [
                (1, 1, length, keys.shape[2])
                for length, (keys, _) in zip(self._lengths, self._pairs, strict=True)
            ]
            flat = torch.split(mask[0, 0, 0], [rows * columns for *_, rows, columns in shapes])
            self._masks[mask] = [one.view(shape) for one, shape in zip(flat, shapes, strict=True)]
        return self._masks[mask]


_forward = threading.local()


@contextmanager
def over_trees(cache: TreesCache) -> Iterator[None]:
    """Within the block, this thread's forward attends tree by tree."""
    _forward.cache = cache
    try:
        yield
    finally:
        _forward.cache = None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    trees: TreesCache | None = getattr(_forward, "cache", None)
    if trees is not None and attention_mask is not None:
        return trees.attend(module, query, attention_mask, scaling, **kwargs), None
    return _attend(module, query, key, value, attention_mask, scaling, **kwargs), None


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    **kwargs: Any,
) -> Tensor:
    """`(1, tokens, heads, width)`."""
    batch, heads, tokens, width = query.shape
    shared = heads // key.shape[1]
    plain = mask is not None and mask.shape[1] == 1 and not kwargs.get("softcap")
    if plain and 1 < tokens <= _APART and mask is not None and query.device.type == "cpu":
        own_keys = _own_keys(mask)
        if own_keys is not None:
            return _each_to_its_own(query, key, value, *own_keys, scaling)
    if shared > 1 and plain and tokens <= _FEW and mask is not None:
        # Otherwise every key and value would be copied for each head that shares it.
        grouped = query.reshape(batch, key.shape[1], shared * tokens, width)
        # One token's mask is the same for all of them, which takes no copy.
        own = mask.expand(-1, -1, shared, -1) if tokens == 1 else mask.repeat(1, 1, shared, 1)
        out = scaled_dot_product_attention(grouped, key, value, attn_mask=own, scale=scaling)
        return out.reshape(batch, heads, tokens, value.shape[-1]).transpose(1, 2).contiguous()
    if plain and tokens > _FEW and mask is not None and query.device.type == "cpu":
        past, rest = _divided(mask)
        if past:
            several = attend_by_blocks if _in_blocks(query) else _in_two_parts
            return several(query, key, value, past, rest, scaling).transpose(1, 2)
        stretches = _stretches(mask)
        if stretches is not None:
            return _by_stretches(query, key, value, stretches, scaling).transpose(1, 2)
    whole = mask is None and not kwargs.get("softcap") and tokens == key.shape[2]
    if whole and tokens > _FEW and _in_blocks(query):
        return attend_by_blocks(query, key, value, 0, None, scaling).transpose(1, 2)
    found: Tensor
    found, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
    return found


def _in_blocks(query: Tensor) -> bool:
    """Whether blocks of queries are faster than torch's kernel, which alone has gradients."""
    return (
        query.dtype == torch.bfloat16 and query.device.type == "cpu" and not torch.is_grad_enabled()
    )


def _own_keys(mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """By query, the keys that it sees, as indices, and the mask of these; `(queries, most)` both.

    None where one sees more than a quarter of all: then all are looked at in less time than it
    takes to copy what each sees.
    """
    if mask not in _known_own:
        flat = mask[0, 0]
        most = int((flat == 0).sum(dim=1).max())
        _known_own[mask] = None
        if 4 * most <= flat.shape[1]:
            chosen = flat.topk(most, dim=1).indices.sort(dim=1).values
            _known_own[mask] = (chosen, flat.gather(1, chosen))
    return _known_own[mask]


_known_own: MutableMapping[Tensor, tuple[Tensor, Tensor] | None] = WeakIdKeyDictionary()


def _each_to_its_own(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chosen: Tensor,
    mask: Tensor,
    scaling: float | None,
) -> Tensor:
    """`(1, tokens, heads, width)`: rows that share little, as a batch over keys of their own."""
    _, heads, tokens, width = query.shape
    groups = key.shape[1]
    at = chosen.flatten()
    keys, values = (
        t[0].index_select(1, at).view(groups, tokens, -1, t.shape[3]) for t in (key, value)
    )
    queries = query[0].view(groups, -1, tokens, width).transpose(1, 2).contiguous()
    if _in_blocks(query):
        out = attend_rows(queries, keys, values, mask[:, None], scaling)
    else:
        own = mask[:, None].expand(-1, queries.shape[2], -1)
        out = scaled_dot_product_attention(queries, keys, values, attn_mask=own, scale=scaling)
    return out.transpose(0, 1).reshape(1, tokens, heads, value.shape[-1])


def _divided(mask: Tensor) -> tuple[int, Tensor | None]:
    """How many first keys every query sees, and the mask of the others; None where it is causal.

    A mask is the same in all layers of a forward, so it is looked at once.
    """
    if mask in _known:
        return _known[mask]
    hidden = mask[0, 0] != 0
    queries, keys = hidden.shape
    closed = hidden.any(dim=0).nonzero()
    # The last keys are the queries' own.
    past = min(int(closed[0]) if len(closed) else keys, keys - queries)
    causal = torch.equal(hidden[:, past:], torch.ones_like(hidden[:, past:]).triu(diagonal=1))
    _known[mask] = (past, None if causal else mask[..., past:].contiguous())
    return _known[mask]


_known: MutableMapping[Tensor, tuple[int, Tensor | None]] = WeakIdKeyDictionary()


def _in_two_parts(
    query: Tensor, key: Tensor, value: Tensor, past: int, own: Tensor | None, scaling: float | None
) -> Tensor:
    """`(1, heads, tokens, width)`: attention to what all queries see, and to the rest, joined.

    What is seen by all needs no mask, and heads that share its keys are more queries of one head
    there: on CPU it is read a quarter faster than under a mask. The two are joined by their
    log-sum-exp, as in FlashAttention (https://arxiv.org/abs/2205.14135).
    """
    batch, heads, tokens, width = query.shape
    shared = heads // key.shape[1]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    grouped = query.reshape(batch, key.shape[1], shared * tokens, width)
    before, seen_before = flash(
        grouped, key[:, :, :past], value[:, :, :past], 0.0, False, scale=scaling
    )
    keys, values = (t[:, :, past:].repeat_interleave(shared, dim=1) for t in (key, value))
    after, seen_after = flash(query, keys, values, 0.0, own is None, attn_mask=own, scale=scaling)
    # Of a sum of two softmaxes each has the share of its own sum of exponentials.
    share = torch.sigmoid(seen_before.reshape(batch, heads, tokens) - seen_after)
    before = before.reshape(batch, heads, tokens, width)
    return torch.lerp(after, before, share.unsqueeze(-1).to(after.dtype))


_Stretch: TypeAlias = tuple[int, int, Tensor, Tensor]
"""First query, end, the keys that the last one sees, and the mask of these."""


def _stretches(mask: Tensor) -> Sequence[_Stretch] | None:
    """The queries as runs, of which each sees what the one before it sees, and itself.

    None where that leaves more than half of all pairs to look at: rows that share little are many
    short texts side by side, and all but a small part of their common mask is closed.
    """
    if mask in _known_stretches:
        return _known_stretches[mask]
    _known_stretches[mask] = None
    visible = mask[0, 0] == 0
    queries, keys = visible.shape
    number = torch.arange(1, queries, device=mask.device)
    follows = (visible[1:] != visible[:-1]).sum(dim=1) == 1
    follows &= visible[number, number + keys - queries]
    starts = [0, *(number[~follows].tolist())]
    if len(starts) * _SHORTEST <= queries:
        found = []
        for start, stop in pairwise([*starts, queries]):
            seen = visible[stop - 1].nonzero()[:, 0]
            found.append((start, stop, seen, mask[:, :, start:stop].index_select(3, seen)))
        if 2 * sum((stop - start) * len(seen) for start, stop, seen, _ in found) <= queries * keys:
            _known_stretches[mask] = found
    return _known_stretches[mask]


_known_stretches: MutableMapping[Tensor, Sequence[_Stretch] | None] = WeakIdKeyDictionary()


def _by_stretches(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stretches: Sequence[_Stretch],
    scaling: float | None,
) -> Tensor:
    """`(1, heads, tokens, width)`: each run of queries over the keys that it sees."""
    shared = query.shape[1] // key.shape[1]
    parts = []
    for start, stop, seen, own in stretches:
        part = query[:, :, start:stop]
        keys, values = (t.index_select(2, seen) for t in (key, value))
        if _in_blocks(query):
            parts.append(attend_by_blocks(part, keys, values, 0, own, scaling))
            continue
        keys, values = (t.repeat_interleave(shared, dim=1) for t in (keys, values))
        parts.append(scaled_dot_product_attention(part, keys, values, attn_mask=own, scale=scaling))
    return torch.cat(parts, dim=2)


def register(model: Any) -> None:
    """Give a model that computes attention by SDPA this attention instead."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
