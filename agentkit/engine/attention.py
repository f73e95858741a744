"""Attention for several trees of rows in one forward, each over keys and values of its own.

The linear layers, which cost most, take the tokens of all trees at once; attention goes tree by
tree. It is registered with transformers' attention interface, so that every architecture which
uses that has it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agentkit.engine.prefix import GrowingCache, Pair

NAME = "agentkit_trees"
_FEW = 64
"""Query tokens up to which heads that share keys are computed as more queries of one head."""


class TreesCache(Cache):
    """Stateful: the caches of several trees, for one forward over the tokens of all of them."""

    def __init__(self, caches: Sequence[GrowingCache], lengths: Sequence[int]) -> None:
        """`lengths` are the tokens of each tree in this forward."""
        super().__init__(layers=[])
        self._caches = caches
        self._lengths = list(lengths)
        self._pairs: list[Pair] = []

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
        outputs, at = [], 0
        queries = torch.split(query, self._lengths, dim=2)
        for part, (keys, values) in zip(queries, self._pairs, strict=True):
            shape = (1, 1, part.shape[2], keys.shape[2])
            size = shape[2] * shape[3]
            own = mask[0, 0, 0, at : at + size].view(shape)
            outputs.append(_attend(module, part, keys, values, own, scaling, **kwargs))
            at += size
        return torch.cat(outputs, dim=1)


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
    if shared > 1 and plain and tokens <= _FEW and mask is not None:
        # Otherwise every key and value would be copied for each head that shares it.
        grouped = query.reshape(batch, key.shape[1], shared * tokens, width)
        # One token's mask is the same for all of them, which takes no copy.
        own = mask.expand(-1, -1, shared, -1) if tokens == 1 else mask.repeat(1, 1, shared, 1)
        out = scaled_dot_product_attention(grouped, key, value, attn_mask=own, scale=scaling)
        return out.reshape(batch, heads, tokens, value.shape[-1]).transpose(1, 2).contiguous()
    found: Tensor
    found, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
    return found


def register(model: Any) -> None:
    """Give a model that computes attention by SDPA this attention instead."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
