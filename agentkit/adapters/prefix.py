"""Prefix tuning: keys and values that stand before every prompt, in every layer.

They take the first positions, as in PEFT, and condition every state after them: nothing of a
document's states can be shared with another skill.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from agentkit.adapters.kinds import PrefixConfig
from agentkit.errors import AdapterError

PrefixPairs: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""By layer, keys and values, each `(1, kv heads, virtual tokens, head size)`."""


def prefix_pairs(
    prompt: Tensor, config: PrefixConfig, dtype: torch.dtype, device: torch.device
) -> PrefixPairs:
    """Keys and values by layer from PEFT's `prompt_embeddings`."""
    heads = config.num_attention_heads
    split = prompt.to(device=device, dtype=dtype).view(
        config.num_virtual_tokens, 2 * config.num_layers, heads, config.token_dim // heads
    )
    states = split.permute(1, 2, 0, 3).contiguous()
    return tuple(
        (states[2 * layer][None], states[2 * layer + 1][None]) for layer in range(config.num_layers)
    )


def check_prefix(
    config: PrefixConfig, *, layers: int, heads: int, head_size: int, context: int, where: str
) -> None:
    """Check that a prefix fits a backbone's caches. Raises `AdapterError`."""
    has = (config.num_layers, config.num_attention_heads)
    size = config.token_dim // config.num_attention_heads
    if (*has, size) != (layers, heads, head_size):
        raise AdapterError(
            f"the prefix is for (layers, kv heads, head size) = {(*has, size)}, the backbone has "
            f"{(layers, heads, head_size)}",
            where=where,
            hint="the adapter was trained on another backbone",
        )
    if config.num_virtual_tokens >= context:
        raise AdapterError(
            f"{config.num_virtual_tokens} virtual tokens leave nothing of a context of {context}",
            where=where,
        )
