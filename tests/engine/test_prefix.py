"""The prefix cache: keys that cannot cross, a byte budget, and states that never change."""

import torch
from engine_material import read_prefix
from hypothesis import given
from hypothesis import strategies as st

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.forward import hidden_states
from agentkit.engine.packed import PackedRows
from agentkit.engine.prefix import LowerStates, PrefixCache, PrefixKey, PrefixStates


def states(tokens: int) -> PrefixStates:
    return PrefixStates(tokens, torch.zeros(tokens, 4), None)


def test_a_key_names_the_adapter_and_the_very_tokens() -> None:
    keys = {
        PrefixKey.of(None, (1, 2, 3)),
        PrefixKey.of("a", (1, 2, 3)),
        PrefixKey.of("b", (1, 2, 3)),
        PrefixKey.of("a", (1, 23)),
        PrefixKey.of("a", (12, 3)),
    }
    assert len(keys) == 5
    assert PrefixKey.of("a", [1, 2, 3]) in keys


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(budget=states(10).hidden.nbytes * 2)
    first, second, third = (PrefixKey.of(None, [n]) for n in range(3))
    cache.put(first, states(10))
    cache.put(second, states(10))
    assert cache.get(first, keys_values=False) is not None
    cache.put(third, states(10))
    assert cache.get(second, keys_values=False) is None
    assert cache.get(first, keys_values=False) is not None
    assert cache.statistics().evictions == 1


def test_states_without_keys_and_values_do_not_answer_for_those_with() -> None:
    cache = PrefixCache(budget=10_000)
    key = PrefixKey.of(None, [1])
    cache.put(key, states(1))
    assert cache.get(key) is None
    assert cache.get(key, keys_values=False) is not None


def test_dropping_an_adapter_leaves_the_others() -> None:
    cache = PrefixCache(budget=10_000)
    keys = [PrefixKey.of(adapter, [1]) for adapter in (None, "a", "b")]
    for key in keys:
        cache.put(key, states(1))
    cache.drop("a")
    assert [cache.get(key, keys_values=False) is not None for key in keys] == [True, False, True]


@given(
    budget=st.integers(0, 2000),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 60)), max_size=40),
)
def test_the_budget_is_never_exceeded(budget: int, steps: list[tuple[bool, int, int]]) -> None:
    cache = PrefixCache(budget)
    held: dict[PrefixKey, PrefixStates] = {}
    for put, name, size in steps:
        key = PrefixKey.of(None, [name])
        if put:
            held[key] = states(size)
            cache.put(key, held[key])
        else:
            found = cache.get(key, keys_values=False)
            assert found is None or found is held[key]
        statistics = cache.statistics()
        assert statistics.bytes <= budget
        assert statistics.entries <= 10


def test_branches_do_not_change_the_prefix_they_grow_from(backbone: Backbone) -> None:
    ids = list(range(10, 60))
    with torch.inference_mode():
        prefix, slots = read_prefix(backbone, ids), Slots(backbone.modules)
        assert prefix.keys_values is not None
        before = [(keys.clone(), values.clone()) for keys, values in prefix.keys_values]
        results = []
        for _ in range(2):
            rows = PackedRows(prefix, room=40)
            row = rows.fork()
            rows.append(row, (None, [3, 4, 5]))
            hidden_states(backbone, slots, rows)
            for token in range(200):
                rows.append(row, (None, [token]))
            results.append(hidden_states(backbone, slots, rows))
    assert torch.equal(results[0], results[1])
    for (keys, values), (same_keys, same_values) in zip(prefix.keys_values, before, strict=True):
        assert torch.equal(keys, same_keys)
        assert torch.equal(values, same_values)


def test_tensors_that_entries_share_count_once() -> None:
    cache = PrefixCache(budget=10_000)
    shared = (torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4))
    lower = LowerStates(1, torch.zeros(8, 4), (shared,))
    cache.put(PrefixKey.of(None, [1], depth=1), lower)
    alone = cache.statistics().bytes
    keys = [PrefixKey.of(adapter, [1]) for adapter in ("a", "b")]
    for key in keys:
        cache.put(key, PrefixStates(8, torch.zeros(8, 4), (shared, shared)))
    assert cache.statistics().bytes == alone + 2 * torch.zeros(8, 4).nbytes
    cache.drop("a")
    cache.drop("b")
    assert cache.statistics().bytes == alone


def test_lower_layers_are_found_at_the_depth_asked_for_or_below() -> None:
    cache = PrefixCache(budget=10_000)
    for depth in (1, 3):
        states = LowerStates(depth, torch.zeros(2, 4), ())
        cache.put(PrefixKey.of(None, [1, 2], depth=depth), states)
    assert cache.lower([1, 2], 2).depth == 1
    assert cache.lower([1, 2], 3).depth == 3
    assert cache.lower([1, 2], 9).depth == 3
    assert cache.lower([1, 3], 3) is None
    assert cache.get(PrefixKey.of(None, [1, 2])) is None
