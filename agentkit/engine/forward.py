"""One forward over what waits in one tree of rows, or in several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentkit.engine.activation import Slots
from agentkit.engine.attention import TreesCache, over_trees
from agentkit.engine.backbone import Backbone, Mask
from agentkit.engine.mixing import Segment
from agentkit.engine.packed import PackedRows


def hidden_states(backbone: Backbone, slots: Slots, tree: PackedRows) -> Tensor:
    """Compute what was appended: `(tokens, hidden)` in the order of `append`."""
    ids, positions = _tokens(backbone, [tree])
    with slots.mixed(tree.segments):
        states = backbone.hidden_states(
            ids, positions=positions, cache=tree.cache, mask=_mask(backbone, tree)
        )
    tree.computed()
    return states


def logits(
    backbone: Backbone, slots: Slots, trees: Sequence[PackedRows], at: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Compute what was appended: by tree, logits `(len(at), vocabulary)` of the tokens indexed."""
    if len(trees) > 1 and not backbone.attends_trees:
        each = zip(trees, at, strict=True)
        return [logits(backbone, slots, [tree], [own])[0] for tree, own in each]
    segments, wanted, offset = list[Segment](), list[int](), 0
    for tree, own in zip(trees, at, strict=True):
        segments += [Segment(s.slot, s.start + offset, s.stop + offset) for s in tree.segments]
        wanted += [index + offset for index in own]
        offset += len(tree.ids)
    ids, positions = _tokens(backbone, trees)
    where = torch.tensor(wanted, device=backbone.device)
    with slots.mixed(segments), backbone.writing(_rows(trees)):
        if len(trees) == 1:
            found = backbone.logits(
                ids,
                positions=positions,
                at=where,
                cache=trees[0].cache,
                mask=_mask(backbone, trees[0]),
            )
        else:
            cache = TreesCache([tree.cache for tree in trees], [len(tree.ids) for tree in trees])
            with over_trees(cache):
                found = backbone.logits(
                    ids,
                    positions=positions,
                    at=where,
                    cache=cache,
                    mask=_flat([_mask(backbone, tree, always=True) for tree in trees]),
                )
    for tree in trees:
        tree.computed()
    return list(torch.split(found, [len(own) for own in at]))


def _rows(trees: Sequence[PackedRows]) -> int | None:
    """Rows that wait, if each has one token; None if the forward reads."""
    rows = [tree.writes for tree in trees if tree.ids]
    return None if None in rows else sum(row or 0 for row in rows)


def _tokens(backbone: Backbone, trees: Sequence[PackedRows]) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([token for tree in trees for token in tree.ids], device=backbone.device)
    positions = torch.cat([torch.from_numpy(tree.waiting()[0]) for tree in trees])
    return ids, positions.to(backbone.device)


def _mask(backbone: Backbone, tree: PackedRows, *, always: bool = False) -> Mask:
    if tree.fresh and not always:
        return backbone.causal_mask(len(tree.ids))
    queries, keys, visible = (torch.from_numpy(a).to(backbone.device) for a in tree.waiting())
    return backbone.attention_mask(visible, queries, keys)


def _flat(masks: Sequence[Mask]) -> Mask:
    """The trees' masks in one row, by kind of attention where there are kinds."""
    first = masks[0]
    if isinstance(first, dict):
        return {
            kind: torch.cat([_row(mask[kind]) for mask in masks if isinstance(mask, dict)], dim=-1)
            for kind in first
        }
    return torch.cat([_row(mask) for mask in masks if isinstance(mask, Tensor)], dim=-1)


def _row(mask: Tensor) -> Tensor:
    return mask.reshape(1, 1, 1, -1)
