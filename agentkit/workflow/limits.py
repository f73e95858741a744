"""How much an expression may do.

Every call pays for what it reads and makes, out of one budget per evaluation. Together with the
absence of loops in expressions this bounds their time, whatever they are nested into.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import Undefined

from agentkit.types import Json

WORK_LIMIT = 5_000_000
"""Units of work in one evaluation: about one per value touched, plus one per 16 characters."""
SIZE_LIMIT = 1_000_000
"""The same units, for any one value."""
TEXT_LIMIT = 2_000_000
"""Characters of any one text."""
RANGE_LIMIT = 10_000
DEPTH_LIMIT = 64

_budget: ContextVar[list[int] | None] = ContextVar("expression_budget", default=None)


class ExpressionLimitError(ValueError):
    """An expression asks for too much."""


class metered:  # noqa: N801 - used as `with metered():`
    """Gives one evaluation its budget."""

    def __enter__(self) -> None:
        self._token = _budget.set([WORK_LIMIT])

    def __exit__(self, *_: object) -> None:
        _budget.reset(self._token)


def spend(units: int) -> None:
    """Pay for work. Raises `ExpressionLimitError` when the budget is used up."""
    budget = _budget.get()
    if budget is None:
        return
    budget[0] -= units
    if budget[0] < 0:
        raise ExpressionLimitError("the expression takes too much work")


def size(value: Any) -> int:
    """How large a value is as a tree: shared parts count each time they occur."""
    total = 0
    pending = [value]
    while pending:
        entry = pending.pop()
        total += 1
        if isinstance(entry, str):
            total += len(entry) >> 4
        elif isinstance(entry, Mapping):
            pending.extend(entry.values())
            total += len(entry)
        elif isinstance(entry, (list, tuple)):
            pending.extend(entry)
        if total > SIZE_LIMIT or len(pending) > SIZE_LIMIT:
            raise ExpressionLimitError("a value is too large for an expression")
    return total


def plain(value: Any, depth: int = 0) -> Json:
    """A copy made of plain JSON values. Raises `ExpressionLimitError`, `TypeError`, or, for a
    missing value inside, jinja's `UndefinedError`."""
    if depth == 0:
        size(value)
    if depth > DEPTH_LIMIT:
        raise ExpressionLimitError(f"the value is nested deeper than {DEPTH_LIMIT} levels")
    if isinstance(value, Undefined):
        str(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"the value is {value}, which JSON has no number for")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} of a mapping is not text")
        return {key: plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(entry, depth + 1) for entry in value]
    raise TypeError(f"the value is a {type(value).__name__}, not plain data")


def checked_join(parts: list[str], separator: str = "") -> str:
    """Join texts. Raises `ExpressionLimitError` before the result is made."""
    if sum(map(len, parts)) + len(separator) * len(parts) > TEXT_LIMIT:
        raise ExpressionLimitError(f"a text of more than {TEXT_LIMIT:,} characters")
    return separator.join(parts)
