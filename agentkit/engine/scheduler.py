"""Which waiting requests join those that are being computed: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["read", "score", "generate"]

SHARED_LEAST = 64
"""Tokens from which a prefix is worth computing by itself and keeping."""
STEP_TOKENS = 4096
"""Tokens, besides shared prefixes, that join in one step at most."""
MAX_PASSED = 32
"""Younger requests that may join before a waiting one, at most."""


@dataclass(frozen=True, slots=True)
class TreeKey:
    """Names a tree of rows: requests with equal keys read the same first tokens once."""

    scope: str | None
    """Digest of the adapter that made the states of the prefix; None is the bare backbone."""
    prefix: tuple[int, ...]
    """Token ids that all rows share; empty where nothing is shared."""
    apart: int = 0
    """Not zero for a row that is too long to share a tree with strangers."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue, as the decision sees it."""

    key: TreeKey
    tokens: int
    """What it takes besides the shared prefix."""
    passed: int = 0
    """How many younger requests joined before it."""
    brief: bool = False
    """Whether it is answered in the step that it joins in, and so keeps no row of the batch."""


def admitted(
    waiting: Sequence[Waiting],
    *,
    rows: int,
    opened: Set[TreeKey] = frozenset(),
    reading: bool = False,
    max_tokens: int = STEP_TOKENS,
) -> list[int]:
    """Indices, ascending, of the requests that join now; `waiting` is in the order they came in.

    At most `rows` join that are not brief, and `max_tokens` of all that join (one alone may exceed
    it). A prefix whose tree is not among those `opened` must be read first, and one is read at a
    time: so there join those of the oldest such tree, those whose trees are open, and those
    without a prefix.
    None is passed by more than `MAX_PASSED` younger ones, so none waits for ever.
    """
    chosen: list[int] = []
    tokens = lasting = 0
    passed: list[int] = []  # indices of older requests that stay behind
    new: TreeKey | None = None  # the one tree that may be opened now
    for index, request in enumerate(waiting):
        if chosen and tokens + request.tokens > max_tokens:
            break
        if any(waiting[old].passed + _younger(old, chosen) >= MAX_PASSED for old in passed):
            break
        room = request.brief or lasting < rows
        fits = room and (not request.key.prefix or request.key in opened or request.key == new)
        if room and not fits and new is None and not reading:
            new, fits = request.key, True
        if fits:
            chosen.append(index)
            tokens += request.tokens
            lasting += not request.brief
        else:
            passed.append(index)
    return chosen


def _younger(old: int, chosen: Sequence[int]) -> int:
    return sum(index > old for index in chosen)
