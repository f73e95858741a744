"""Filters on chunks: a fixed set of keys, plain values, nothing that is ever run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, cast

from agentkit.errors import InputError
from agentkit.types import Chunk

FILTER_KEYS = ("document", "source", "page", "heading")

FilterValue: TypeAlias = str | int | list[str] | list[int]
Filters: TypeAlias = Mapping[str, FilterValue]
_MAX_VALUES = 1000


def check_filters(filters: Mapping[str, object] | None) -> dict[str, list[str] | list[int]]:
    """Each filter as a list of accepted values.

    `heading` accepts a chunk if any heading of its path equals the value; a page is a number.

    Raises:
        InputError: an unknown key, or a value of another type.
    """
    checked: dict[str, list[str] | list[int]] = {}
    for key, value in (filters or {}).items():
        if key not in FILTER_KEYS:
            raise InputError(
                f"unknown filter {str(key)[:80]!r}", hint=f"use one of: {', '.join(FILTER_KEYS)}"
            )
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        kind = int if key == "page" else str
        wrong = [v for v in values if not isinstance(v, kind) or isinstance(v, bool)]
        if wrong or not values or len(values) > _MAX_VALUES:
            raise InputError(
                f"the filter {key!r} takes {'a number' if kind is int else 'text'} "
                f"or a list of at most {_MAX_VALUES}",
                hint=f"got {value!r:.80}",
            )
        checked[key] = cast("list[str] | list[int]", values)
    return checked


def matches(chunk: Chunk, source: str, checked: Mapping[str, list[str] | list[int]]) -> bool:
    """Does the chunk pass every filter?"""
    own = {
        "document": (chunk.document,),
        "source": (source,),
        "page": (chunk.page,),
        "heading": chunk.heading,
    }
    return all(any(value in values for value in own[key]) for key, values in checked.items())


def where_clause(checked: Mapping[str, list[str] | list[int]]) -> str | None:
    """The filters as an SQL condition over an index's columns; None without filters."""
    parts = []
    for key, values in checked.items():
        literals = [_literal(value) for value in values]
        if key == "heading":
            parts.append("(" + " OR ".join(f"array_has(heading, {v})" for v in literals) + ")")
        else:
            parts.append(f"{key} IN ({', '.join(literals)})")
    return " AND ".join(parts) or None


def _literal(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    return "'" + value.replace("'", "''") + "'"
