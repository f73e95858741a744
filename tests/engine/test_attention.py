"""Attention in two parts, to what all queries see and to the rest, equals attention at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentkit.engine.attention import _attend, _divided, _own_keys, _stretches

HEADS, WIDTH, QUERIES = 6, 8, 70


def states(keys: int, shared: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(keys)
    query = torch.randn(1, HEADS, QUERIES, WIDTH)
    key, value = (torch.randn(1, HEADS // shared, keys, WIDTH) for _ in range(2))
    return query, key, value


def additive(visible: Tensor) -> Tensor:
    mask = torch.zeros(visible.shape)
    return mask.masked_fill_(~visible, torch.finfo(torch.float32).min)[None, None]


def at_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(shared, dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * WIDTH**-0.5 + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, shared: int) -> None:
    """Attention equals attention at once, in float32 and, as rounding goes, in bfloat16."""
    exact = at_once(query, key, value, mask)
    found = _attend(module(shared), query, key, value, mask, WIDTH**-0.5)
    assert torch.allclose(found, exact, atol=1e-5)
    rounded = [t.to(torch.bfloat16) for t in (query, key, value, mask)]
    with torch.no_grad():
        found = _attend(module(shared), *rounded, WIDTH**-0.5)
    assert found.shape == exact.shape
    # Values of a few units, scores and shares that are rounded to 8 bits.
    assert torch.allclose(found.float(), exact, atol=0.08)


def module(shared: int) -> SimpleNamespace:
    return SimpleNamespace(num_key_value_groups=shared, is_causal=True)


@given(
    past=st.integers(0, 90),
    between=st.integers(0, 20),
    shared=st.sampled_from([1, 3]),
    chance=st.floats(0.0, 1.0),
)
@settings(max_examples=40)
def test_what_every_query_sees_may_be_attended_to_apart(
    past: int, between: int, shared: int, chance: float
) -> None:
    keys = past + between + QUERIES
    torch.manual_seed(past + between)
    visible = torch.rand(QUERIES, keys) < chance
    visible[:, :past] = True
    visible[torch.arange(QUERIES), past + between + torch.arange(QUERIES)] = True
    query, key, value = states(keys, shared)
    mask = additive(visible)
    check(query, key, value, mask, shared)


def test_a_plain_continuation_needs_no_mask() -> None:
    keys = 30 + QUERIES
    at = torch.arange(keys)
    mask = additive(at[None, :] <= at[30:, None])
    assert _divided(mask) == (30, None)
    query, key, value = states(keys, 3)
    check(query, key, value, mask, 3)


def test_rows_beside_each_other_keep_a_mask_of_their_own_tokens() -> None:
    keys = 30 + QUERIES
    visible = torch.zeros(QUERIES, keys, dtype=torch.bool)
    visible[:, :30] = True
    half = QUERIES // 2
    for start in (0, half):
        rows = slice(start, start + half)
        visible[rows, 30 + start : 30 + start + half] = torch.ones(half, half).tril().bool()
    past, rest = _divided(additive(visible))
    assert past == 30
    assert rest is not None
    assert rest.shape == (1, 1, QUERIES, QUERIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_of_the_past_stays_exact(dtype: torch.dtype) -> None:
    keys = 30 + QUERIES
    visible = torch.zeros(QUERIES, keys, dtype=torch.bool)
    visible[torch.arange(QUERIES), 30 + torch.arange(QUERIES)] = True
    query, key, value = (t.to(dtype) for t in states(keys, 1))
    found = _attend(module(1), query, key, value, additive(visible).to(dtype), WIDTH**-0.5)
    assert torch.allclose(found.float(), value[:, :, 30:].transpose(1, 2).float(), atol=1e-6)


@given(st.integers(2, 20), st.integers(1, 12), st.sampled_from([1, 3]), st.floats(0.0, 0.3))
@settings(max_examples=40)
def test_rows_that_share_little_each_attend_to_keys_of_their_own(
    rows: int, length: int, shared: int, chance: float
) -> None:
    keys = rows * length + QUERIES
    torch.manual_seed(keys)
    query, key, value = states(keys, shared)
    visible = torch.zeros(rows, keys, dtype=torch.bool)
    for row in range(rows):
        visible[row, row * length : (row + 1) * length] = torch.rand(length) >= chance
        visible[row, keys - 1 - row] = True
    mask = additive(visible)
    check(query[:, :, :rows], key, value, mask, shared)
    if shared > 1:
        assert (_own_keys(mask) is not None) == (4 * visible.sum(1).max() <= keys)


@given(
    st.lists(st.integers(1, 60), min_size=4, max_size=12),
    st.integers(0, 30),
    st.sampled_from([1, 3]),
)
@settings(max_examples=40)
def test_texts_side_by_side_each_attend_to_what_they_see(
    lengths: list[int], stem: int, shared: int
) -> None:
    """Rows of any length that see an earlier stem and themselves, whichever way they are taken."""
    queries = sum(lengths)
    keys = stem + queries
    torch.manual_seed(keys)
    query = torch.randn(1, HEADS, queries, WIDTH)
    key, value = (torch.randn(1, HEADS // shared, keys, WIDTH) for _ in range(2))
    visible = torch.zeros(queries, keys, dtype=torch.bool)
    start = 0
    for number, length in enumerate(lengths):
        rows = slice(start, start + length)
        visible[rows, : stem if number % 2 else stem // 2] = True
        visible[rows, stem + start : stem + start + length] = torch.ones(length, length).tril() > 0
        start += length
    mask = additive(visible)
    check(query, key, value, mask, shared)


def test_runs_are_found_where_they_save_most_of_the_pairs() -> None:
    blocks = [torch.ones(40, 40).tril() > 0] * 6
    side_by_side = additive(torch.block_diag(*blocks) > 0)
    found = _stretches(side_by_side)
    assert found is not None
    assert [(start, stop, len(seen)) for start, stop, seen, _ in found] == [
        (start, start + 40, 40) for start in range(0, 240, 40)
    ]
    assert _stretches(additive(torch.ones(240, 240).tril() > 0)) is None


@pytest.mark.parametrize("queries", [65, 128, 150])
def test_a_whole_text_without_a_mask_is_causal(queries: int) -> None:
    torch.manual_seed(queries)
    query = torch.randn(1, HEADS, queries, WIDTH)
    key, value = (torch.randn(1, HEADS // 3, queries, WIDTH) for _ in range(2))
    exact = at_once(query, key, value, additive(torch.ones(queries, queries).tril() > 0))
    with torch.no_grad():
        rounded = (t.to(torch.bfloat16) for t in (query, key, value))
        found = _attend(module(3), *rounded, None, WIDTH**-0.5)
    assert torch.allclose(found.float(), exact, atol=0.08)
    assert torch.allclose(
        _attend(module(3), query, key, value, None, WIDTH**-0.5), exact, atol=1e-5
    )


def test_gradients_go_through_torchs_own_attention() -> None:
    query, key, value = (t.to(torch.bfloat16) for t in states(QUERIES, 3))
    query.requires_grad_()
    _attend(module(3), query, key, value, None, WIDTH**-0.5).sum().backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
