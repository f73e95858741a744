"""Which requests are computed together: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["read", "score", "generate"]

SHARED_LEAST = 64
"""Tokens from which a prefix is worth computing by itself and keeping."""
PACKED_TOKENS = 4096
"""Tokens, besides the shared prefix, that one forward takes at most."""


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Requests with equal keys may be computed together."""

    kind: Kind
    adapter: str | None
    prefix: tuple[int, ...]
    """Token ids that are computed once for all of them; empty where nothing is shared."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue, as the decision sees it."""

    key: GroupKey
    tokens: int
    """What it takes besides the shared prefix."""


def next_group(
    waiting: Sequence[Waiting], *, max_rows: int, max_tokens: int = PACKED_TOKENS
) -> list[int]:
    """Indices of the requests to compute next, in the order they came in.

    The oldest request is always among them, so that none waits for ever; with it go the oldest
    that share its key, up to `max_rows` and `max_tokens`.
    """
    chosen: list[int] = []
    tokens = 0
    for index, request in enumerate(waiting):
        if request.key != waiting[0].key:
            continue
        tokens += request.tokens
        if chosen and (tokens > max_tokens or len(chosen) >= max_rows):
            break
        chosen.append(index)
    return chosen
