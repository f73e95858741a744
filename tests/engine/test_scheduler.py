"""The grouping decision: nobody starves, groups share their key, limits hold."""

from hypothesis import given
from hypothesis import strategies as st

from agentkit.engine.scheduler import GroupKey, Waiting, next_group

KEYS = st.builds(
    GroupKey,
    kind=st.sampled_from(["read", "score", "generate"]),
    adapter=st.sampled_from([None, "a", "b"]),
    prefix=st.sampled_from([(), (1, 2)]),
)
QUEUES = st.lists(st.builds(Waiting, key=KEYS, tokens=st.integers(0, 50)), min_size=1, max_size=30)


@given(waiting=QUEUES, rows=st.integers(1, 8), tokens=st.integers(1, 100))
def test_a_group_shares_its_key_and_keeps_the_limits(
    waiting: list[Waiting], rows: int, tokens: int
) -> None:
    chosen = next_group(waiting, max_rows=rows, max_tokens=tokens)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= rows
    assert {waiting[index].key for index in chosen} == {waiting[0].key}
    if len(chosen) > 1:
        assert sum(waiting[index].tokens for index in chosen) <= tokens


@given(waiting=QUEUES, rows=st.integers(1, 8), tokens=st.integers(1, 100))
def test_the_oldest_request_is_always_served(
    waiting: list[Waiting], rows: int, tokens: int
) -> None:
    assert next_group(waiting, max_rows=rows, max_tokens=tokens)[0] == 0


@given(waiting=QUEUES, rows=st.integers(1, 8), tokens=st.integers(1, 100))
def test_every_request_is_served_once_and_in_order_within_its_group(
    waiting: list[Waiting], rows: int, tokens: int
) -> None:
    left = list(enumerate(waiting))
    served: list[int] = []
    while left:
        chosen = next_group([w for _, w in left], max_rows=rows, max_tokens=tokens)
        served += [left[index][0] for index in chosen]
        left = [entry for index, entry in enumerate(left) if index not in chosen]
    assert sorted(served) == list(range(len(waiting)))
    for key in {w.key for w in waiting}:
        mine = [index for index in served if waiting[index].key == key]
        assert mine == sorted(mine)


def test_an_empty_queue_gives_an_empty_group() -> None:
    assert next_group([], max_rows=4) == []
