"""Raised and lowered figures as text: glued to a number, they would make another one of it."""

from __future__ import annotations

_PLAIN = "0123456789+-−"
_RAISED = str.maketrans(_PLAIN, "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
_LOWERED = str.maketrans(_PLAIN, "₀₁₂₃₄₅₆₇₈₉₊₋₋")


def raised(text: str) -> str:
    """A superscript: `1` after `500` is `500¹`, `st` after `1` stays `1st`."""
    return _shifted(text, _RAISED)


def lowered(text: str) -> str:
    """A subscript."""
    return _shifted(text, _LOWERED)


def is_plain(text: str) -> bool:
    """Whether all of it can be raised and lowered."""
    return bool(text) and all(one in _PLAIN for one in text)


def _shifted(text: str, table: dict[int, int]) -> str:
    # A mark in brackets is apart from the number before it.
    return text if "[" in text else text.translate(table)
