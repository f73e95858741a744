"""Filters, tests and functions of expressions: few, pure, and each metered."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined

from agentkit.workflow.limits import (
    RANGE_LIMIT,
    TEXT_LIMIT,
    ExpressionLimitError,
    checked_join,
    plain,
    size,
    spend,
)


def text_of(value: Any) -> str:
    """How a value reads inside a text: texts as they are, the rest as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return tojson(value)


def item_of(value: Any, path: str | int) -> Any:
    """The item at a dotted path (`output.verdict`, `0.name`), or None where there is none."""
    parts = [path] if isinstance(path, int) else str(path).split(".")
    for part in parts:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, (list, tuple)) and str(part).lstrip("-").isdigit():
            index = int(part)
            value = value[index] if -len(value) <= index < len(value) else None
        else:
            return None
    return value


# ---------------------------------------------------------------- filters


def _list(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value)
    if isinstance(value, (list, tuple, range)):
        return list(value)
    raise TypeError(f"a list is needed, this is {_kind(value)}")


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "a mapping" if isinstance(value, Mapping) else "a list")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is needed, this is {_kind(value)}")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"a mapping is needed, this is {_kind(value)}")
    return value


def _test(name: str) -> Callable[..., Any]:
    if name not in TESTS:
        raise ValueError(f"no test named {name!r}")
    return TESTS[name]


def _passes(value: Any, test: tuple[Any, ...]) -> bool:
    if not test:
        return bool(value)
    return bool(_test(str(test[0]))(value, *test[1:]))


def _select(value: Any, *test: Any) -> list[Any]:
    return [entry for entry in _list(value) if _passes(entry, test)]


def _reject(value: Any, *test: Any) -> list[Any]:
    return [entry for entry in _list(value) if not _passes(entry, test)]


def _selectattr(value: Any, path: str, *test: Any) -> list[Any]:
    return [entry for entry in _list(value) if _passes(item_of(entry, path), test)]


def _rejectattr(value: Any, path: str, *test: Any) -> list[Any]:
    return [entry for entry in _list(value) if not _passes(item_of(entry, path), test)]


def _map(value: Any, *call: Any, attribute: Any = None, default: Any = None) -> list[Any]:
    if attribute is not None:
        found = (item_of(entry, attribute) for entry in _list(value))
        return [default if entry is None else entry for entry in found]
    if not call or call[0] not in FILTERS:
        raise ValueError(f"map needs attribute= or the name of a filter, not {call[:1]!r}")
    return [FILTERS[call[0]](entry, *call[1:]) for entry in _list(value)]


def _folded(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _sort(
    value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> list[Any]:
    def key(entry: Any) -> Any:
        found = entry if attribute is None else item_of(entry, attribute)
        return found if case_sensitive else _folded(found)

    return sorted(_list(value), key=key, reverse=bool(reverse))


def _unique(value: Any, attribute: Any = None) -> list[Any]:
    seen: set[str] = set()
    kept = []
    for entry in _list(value):
        found = entry if attribute is None else item_of(entry, attribute)
        key = json.dumps(plain(found), sort_keys=True)
        if key not in seen:
            seen.add(key)
            kept.append(entry)
    return kept


def _groupby(value: Any, attribute: str) -> list[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for entry in _list(value):
        found = plain(item_of(entry, attribute))
        groups.setdefault(json.dumps(found, sort_keys=True), [found, []])[1].append(entry)
    return list(groups.values())


def _join(value: Any, separator: str = "", attribute: Any = None) -> str:
    entries = _list(value)
    if attribute is not None:
        entries = [item_of(entry, attribute) for entry in entries]
    parts = [text_of(entry) for entry in entries]
    return checked_join(parts, _text(separator))


def _replace(value: Any, old: str, new: str) -> str:
    text = _text(value)
    if not old:
        raise ValueError("replace needs something to replace")
    grown = len(text) + text.count(old) * (len(new) - len(old))
    if grown > TEXT_LIMIT:
        raise ExpressionLimitError(f"a text of more than {TEXT_LIMIT:,} characters")
    return text.replace(old, new)


def tojson(value: Any, indent: int | None = None) -> str:
    """JSON text, keys in their own order."""
    width = None if indent is None else max(0, min(int(indent), 8))
    return json.dumps(plain(value), ensure_ascii=False, indent=width)


def _default(value: Any, fallback: Any = "", boolean: bool = False) -> Any:
    if isinstance(value, Undefined) or value is None or (boolean and not value):
        return fallback
    return value


def _length(value: Any) -> int:
    if isinstance(value, (str, Mapping, list, tuple, range)):
        return len(value)
    raise TypeError(f"{_kind(value)} has no length")


def _first(value: Any) -> Any:
    entries = value if isinstance(value, str) else _list(value)
    return entries[0] if entries else None


def _last(value: Any) -> Any:
    entries = value if isinstance(value, str) else _list(value)
    return entries[-1] if entries else None


def _sum(value: Any, attribute: Any = None, start: float = 0) -> Any:
    entries = _list(value)
    if attribute is not None:
        entries = [item_of(entry, attribute) for entry in entries]
    return sum(entries, start)


def _extreme(pick: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(value: Any, attribute: Any = None) -> Any:
        entries = _list(value)
        if attribute is None:
            return pick(entries) if entries else None
        return pick(entries, key=lambda e: item_of(e, attribute)) if entries else None

    return extreme


def _round(value: Any, precision: int = 0) -> Any:
    if not 0 <= precision <= 15:
        raise ValueError("round takes a precision of 0 to 15")
    return round(value, precision) if precision else round(value)


def _int(value: Any, default: Any = 0) -> Any:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _float(value: Any, default: Any = 0.0) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _split(value: Any, separator: str | None = None) -> list[str]:
    return _text(value).split(separator)


def _concat(value: list[Any]) -> str:
    return checked_join([text_of(entry) for entry in value])


# ---------------------------------------------------------------- functions


def _range(*bounds: int) -> list[int]:
    numbers = range(*bounds)
    if len(numbers) > RANGE_LIMIT:
        raise ExpressionLimitError(f"a range of more than {RANGE_LIMIT:,} numbers")
    return list(numbers)


def _zip(*lists: Any) -> list[list[Any]]:
    columns = [_list(entries) for entries in lists]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise ValueError(f"zip needs lists of one length, not {sorted(lengths)}")
    return [list(row) for row in zip(*columns, strict=True)]


def _merge(*mappings: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for mapping in mappings:
        if not isinstance(mapping, Mapping):
            raise TypeError(f"merge needs mappings, this is {_kind(mapping)}")
        merged.update(mapping)
    return merged


def _enumerate(value: Any, start: int = 0) -> list[list[Any]]:
    return [[index, entry] for index, entry in enumerate(_list(value), start)]


def _contains(value: Any, container: Any) -> bool:
    return value in container


def _reading(function: Callable[..., Any], *, undefined: bool = False) -> Callable[..., Any]:
    """Make a function pay for its arguments and its result."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Undefined):
                if not undefined:
                    str(value)
            else:
                spend(size(value))
        result = function(*args, **kwargs)
        if not isinstance(result, Undefined):
            spend(size(result))
        return result

    return call


_PLAIN_FILTERS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "capitalize": lambda value: _text(value).capitalize(),
    "concat": _concat,
    "count": _length,
    "first": _first,
    "float": _float,
    "groupby": _groupby,
    "int": _int,
    "items": lambda value: [[key, entry] for key, entry in _mapping(value).items()],
    "join": _join,
    "keys": lambda value: list(_mapping(value)),
    "last": _last,
    "length": _length,
    "list": _list,
    "lower": lambda value: _text(value).lower(),
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "reject": _reject,
    "rejectattr": _rejectattr,
    "replace": _replace,
    "reverse": lambda value: _list(value)[::-1],
    "round": _round,
    "select": _select,
    "selectattr": _selectattr,
    "sort": _sort,
    "split": _split,
    "string": text_of,
    "sum": _sum,
    "title": lambda value: _text(value).title(),
    "tojson": tojson,
    "trim": lambda value: _text(value).strip(),
    "unique": _unique,
    "upper": lambda value: _text(value).upper(),
    "values": lambda value: list(_mapping(value).values()),
}
FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _reading(function) for name, function in _PLAIN_FILTERS.items()},
    "default": _reading(_default, undefined=True),
    "d": _reading(_default, undefined=True),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "enumerate": _reading(_enumerate),
    "merge": _reading(_merge),
    "range": _reading(_range),
    "zip": _reading(_zip),
}
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "equalto": operator.eq,
    "==": operator.eq,
    "ne": operator.ne,
    "!=": operator.ne,
    "gt": operator.gt,
    ">": operator.gt,
    "ge": operator.ge,
    ">=": operator.ge,
    "lt": operator.lt,
    "<": operator.lt,
    "le": operator.le,
    "<=": operator.le,
    "in": _contains,
}
TESTS: dict[str, Callable[..., Any]] = {
    **{name: _reading(function) for name, function in _COMPARISONS.items()},
    "defined": lambda value: not isinstance(value, Undefined),
    "undefined": lambda value: isinstance(value, Undefined),
    "none": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "true": lambda value: value is True,
    "false": lambda value: value is False,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "mapping": lambda value: isinstance(value, Mapping),
    "sequence": lambda value: isinstance(value, (list, tuple)),
    "even": lambda value: value % 2 == 0,
    "odd": lambda value: value % 2 == 1,
    "startingwith": lambda value, prefix: _text(value).startswith(prefix),
    "containing": lambda value, entry: entry in value,
}
