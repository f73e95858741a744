"""The decision who joins: nobody starves, limits hold, each request joins exactly once."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agentkit.engine.scheduler import MAX_PASSED, TreeKey, Waiting, admitted

KEYS = st.builds(
    TreeKey,
    scope=st.sampled_from([None, "a", "b"]),
    prefix=st.sampled_from([(), (1, 2), (1, 3)]),
)
WAITING = st.builds(Waiting, key=KEYS, tokens=st.integers(0, 50), brief=st.booleans())
QUEUES = st.lists(WAITING, min_size=1, max_size=30)
OPENED = st.frozensets(KEYS, max_size=3)


@given(QUEUES, st.integers(0, 8), st.integers(1, 100), OPENED, st.booleans())
def test_limits_hold_and_one_prefix_at_most_is_to_be_read(
    waiting: list[Waiting],
    rows: int,
    tokens: int,
    opened: frozenset[TreeKey],
    reading: bool,
) -> None:
    chosen = admitted(waiting, rows=rows, opened=opened, reading=reading, max_tokens=tokens)
    assert chosen == sorted(set(chosen))
    assert sum(not waiting[index].brief for index in chosen) <= rows
    if len(chosen) > 1:
        assert sum(waiting[index].tokens for index in chosen) <= tokens
    new = {waiting[index].key for index in chosen} - opened
    assert len({key for key in new if key.prefix}) <= (0 if reading else 1)


@given(QUEUES, st.integers(1, 8), st.integers(1, 100), OPENED)
def test_the_oldest_request_joins_if_nothing_is_being_read(
    waiting: list[Waiting], rows: int, tokens: int, opened: frozenset[TreeKey]
) -> None:
    assert admitted(waiting, rows=rows, opened=opened, max_tokens=tokens)[0] == 0


@given(QUEUES, st.integers(1, 8), st.integers(1, 100))
def test_every_request_joins_once_and_in_order_within_its_tree(
    waiting: list[Waiting], rows: int, tokens: int
) -> None:
    left = list(enumerate(waiting))
    served: list[int] = []
    while left:
        chosen = admitted([w for _, w in left], rows=rows, max_tokens=tokens)
        served += [left[index][0] for index in chosen]
        left = [entry for index, entry in enumerate(left) if index not in chosen]
    assert sorted(served) == list(range(len(waiting)))
    # What is answered at once may overtake, within its tree, what waits for a row.
    for kind in {(w.key, w.brief) for w in waiting}:
        mine = [at for at in served if (waiting[at].key, waiting[at].brief) == kind]
        assert mine == sorted(mine)


@given(
    st.lists(
        st.lists(st.builds(Waiting, key=KEYS, tokens=st.just(1), brief=st.booleans()), max_size=6),
        max_size=40,
    ),
    st.integers(1, 4),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_none_is_passed_by_more_than_a_few_whatever_keeps_coming(
    arrivals: list[list[Waiting]], rows: int, reading: list[bool]
) -> None:
    opened = frozenset({TreeKey(None, (1, 2))})
    pending: list[Waiting] = []
    for coming, busy in zip(arrivals, reading, strict=False):
        pending += coming
        chosen = admitted(pending, rows=rows, opened=opened, reading=busy)
        pending = [
            replace(one, passed=one.passed + sum(other > index for other in chosen))
            for index, one in enumerate(pending)
            if index not in chosen
        ]
        assert all(one.passed <= MAX_PASSED for one in pending)


def test_no_row_is_free_for_an_empty_queue_or_a_full_batch() -> None:
    assert admitted([], rows=4) == []
    assert admitted([Waiting(TreeKey(None, ()), 5)], rows=0) == []


def test_what_is_answered_at_once_takes_no_row() -> None:
    key = TreeKey("a", (1, 2))
    asked = [Waiting(key, 5, brief=True) for _ in range(40)]
    assert admitted(asked, rows=0) == list(range(40))
    assert admitted(asked, rows=0, max_tokens=50) == list(range(10))
