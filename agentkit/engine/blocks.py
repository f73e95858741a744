"""Attention on CPU in bfloat16, for many queries at a time.

torch's own kernel computes it at a quarter of the rate of its bfloat16 products, and no faster
than in float32. Here scores, softmax and weighted sum are a call each for every block of queries,
which is small enough for its scores to stay in the processor's cache, and heads that share keys
are more queries of one product: half the time. Scores are rounded to bfloat16 as in transformers'
eager attention, which is where the two differ (final states: 1.6% off float32's, beside 1.5%).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Queries of a head at a time."""


def attend_by_blocks(
    query: Tensor, key: Tensor, value: Tensor, past: int, own: Tensor | None, scaling: float | None
) -> Tensor:
    """`(1, heads, queries, width)` for `query` of that shape, `key` and `value` `(1, heads that
    are shared, keys, width)`.

    Every query sees the first `past` keys. `own` is the additive mask `(..., queries, keys - past)`
    of the others; None is causal, the last keys being the queries' own.
    """
    _, heads, queries, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    shared = heads // groups
    scale = width**-0.5 if scaling is None else scaling
    asked = (query[0] * scale).view(groups, shared, queries, width)
    shown = key[0].transpose(1, 2)
    out = query.new_empty(groups, shared, queries, value.shape[3])
    room = [query.new_empty(heads * BLOCK * keys) for _ in range(2)]
    later = query.new_full((BLOCK, BLOCK), -torch.inf).triu_(diagonal=1)
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        seen = past + stop if own is None else keys
        size = (groups, shared, stop - start, seen)
        scores, shares = (one[: heads * (stop - start) * seen].view(size) for one in room)
        torch.bmm(
            asked[:, :, start:stop].reshape(groups, -1, width),
            shown[:, :, :seen],
            out=scores.view(groups, -1, seen),
        )
        if own is None:
            scores[..., past + start :].add_(later[: stop - start, : stop - start])
        else:
            scores[..., past:].add_(own[0, :, start:stop])
        torch.softmax(scores, -1, out=shares)
        found = torch.bmm(shares.view(groups, -1, seen), value[0, :, :seen])
        out[:, :, start:stop] = found.view(groups, shared, stop - start, -1)
    return out.view(1, heads, queries, -1)


def attend_rows(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """`(heads that are shared, queries, heads that share, width)` for queries of that shape.

    Each has keys and values of its own, `(heads that are shared, queries, keys, width)`, under
    the additive mask `(queries, 1, keys)`.
    """
    groups, rows, shared, width = query.shape
    asked = (query * (width**-0.5 if scaling is None else scaling)).view(-1, shared, width)
    scores = torch.bmm(asked, keys.flatten(0, 1).transpose(1, 2)).view(groups, rows, shared, -1)
    shares = torch.softmax(scores.add_(mask), -1)
    return torch.bmm(shares.flatten(0, 1), values.flatten(0, 1)).view(groups, rows, shared, -1)
