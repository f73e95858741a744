"""Which modules a config's names and patterns mean, by PEFT's rules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, TypeVar

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

_Number = TypeVar("_Number", int, float)


def named_by(names: list[str] | str | None, module: str) -> bool:
    if names is None:
        return False
    if isinstance(names, str):
        return matches(matcher(names), module)
    return module in names or any(module.endswith(f".{name}") for name in names)


def by_pattern(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    for pattern, value in patterns.items():
        if matches(ending_matcher(pattern), module):
            return value
    return default


def matches(compiled: TypeAdapter[str], text: str) -> bool:
    try:
        compiled.validate_python(text)
    except ValidationError:
        return False
    return True


def matcher(pattern: str) -> TypeAdapter[str]:
    """Matches whole names. Raises ValueError if `pattern` is not a regular expression."""
    _compile(pattern)  # by itself, so that a stray parenthesis cannot close the group below
    return _compile(rf"\A(?:{pattern})\z")


def ending_matcher(pattern: str) -> TypeAdapter[str]:
    """Matches names that end with `pattern` after a dot or as a whole, as PEFT has it."""
    _compile(pattern)
    return _compile(rf"\A(?:.*\.)?(?:{pattern})\z")


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> TypeAdapter[str]:
    # Pydantic matches with the Rust `regex` crate, whose time is linear in the text and whose
    # compiled size is bounded; Python's `re` would let a hostile pattern run for ever.
    try:
        return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    except SchemaError as cause:
        raise ValueError(
            f"{pattern[:80]!r} is not a regular expression without look-around and "
            "back-references, or too large"
        ) from cause
