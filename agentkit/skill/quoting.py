"""Quotes in an output schema: numbers of spans while the model writes, words once it is done.

Where a schema says `x-quote: true` the model writes the number of one of the prompt's spans, and
code puts the span's words and offsets there. So a quote cannot be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from jsonschema import Draft202012Validator

from agentkit.errors import InputError, OutputError
from agentkit.types import Json, PromptSpan

QUOTE = "x-quote"

_FILLED = {
    "type": "object",
    "required": ["quote", "start", "end"],
    "properties": {
        "quote": {"type": "string"},
        "start": {"type": "integer"},
        "end": {"type": "integer"},
    },
}
_Swap: TypeAlias = Callable[[Json], Json]


def quotable(spans: Sequence[PromptSpan]) -> Sequence[PromptSpan]:
    """The spans that an answer may quote: the document's, which come first, or if there are none
    all. What a standing index adds informs an answer about a document, and is not its words."""
    own = [span for span in spans if not span.standing]
    return own or spans


def written_schema(schema: Json, spans: int) -> Any:
    """The schema of what the model writes: a number of `1..spans` for each quote."""
    return _replaced(schema, _number(spans))


def filled_schema(schema: Json) -> Any:
    """The schema of the output: words and offsets for each quote."""
    return _replaced(schema, _FILLED)


def fill_quotes(schema: Json, value: Json, spans: Sequence[PromptSpan]) -> Json:
    """What the model wrote with its span numbers replaced by `{"quote", "start", "end"}`.

    One of a standing index has its `document`, too, whose words they are.
    Raises `OutputError` for a number that is no span's.
    """

    def words(number: Json) -> Json:
        if not isinstance(number, int):
            return number  # the check against the output's schema names it
        if not 1 <= number <= len(spans):
            raise OutputError(f"span {number} is quoted, but the document shows {len(spans)}")
        span = spans[number - 1]
        filled: Json = {"quote": span.text, "start": span.start, "end": span.end}
        return {**filled, "document": span.document} if span.standing else filled

    whole = _expanded(schema, schema)
    return _swapped(whole, _replaced(whole, _number(len(spans))), value, words)


def number_quotes(schema: Json, value: Json, spans: Sequence[PromptSpan]) -> Json:
    """An output as the model is to write it: each quote as the number of its span.

    A quote of several spans is the one that it shares most with. Raises `InputError` for a quote
    that shares nothing with any.
    """

    def number(quote: Json) -> Json:
        if isinstance(quote, dict):
            start, end = int(quote.get("start", 0)), int(quote.get("end", 0))
            shared = [min(span.end, end) - max(span.start, start) for span in spans]
            best = max(range(len(spans)), key=shared.__getitem__, default=None)
            if best is not None and shared[best] > 0:
                return best + 1
        raise InputError(f"the quote {str(quote)[:80]!r} is in no span of the document")

    whole = _expanded(schema, schema)
    return _swapped(whole, _replaced(whole, _FILLED), value, number)


def _replaced(schema: Json, quote: dict[str, Any]) -> Any:
    if isinstance(schema, Mapping):
        if schema.get(QUOTE) is True:
            return dict(quote)
        return {key: _replaced(value, quote) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_replaced(value, quote) for value in schema]
    return schema


def _number(spans: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": max(1, spans)}


def _expanded(schema: Any, root: Any) -> Any:
    """The schema with its references written out; a checked schema has none that never end."""
    if isinstance(schema, list):
        return [_expanded(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    if isinstance(reference := schema.get("$ref"), str):
        definition = root.get("$defs", {}).get(reference.removeprefix("#/$defs/"), {})
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return {"allOf": [_expanded(definition, root), _expanded(beside, root)]}
    return {key: _expanded(part, root) for key, part in schema.items() if key != "$defs"}


def _swapped(schema: Any, met: Any, value: Json, swap: _Swap) -> Json:
    """`value` with each quote swapped. `met`, of the same shape as `schema`, is what it meets."""
    if not isinstance(schema, Mapping):
        return value
    if schema.get(QUOTE) is True:
        return swap(value)
    for part, meant in _applied(schema, met, value):
        value = _swapped(part, meant, value, swap)
    if isinstance(value, dict):
        own, other = schema.get("properties", {}), schema.get("additionalProperties")
        return {
            key: _swapped(own[key], met["properties"][key], item, swap)
            if key in own
            else _swapped(other, met.get("additionalProperties"), item, swap)
            for key, item in value.items()
        }
    if isinstance(value, list):
        first, others = schema.get("prefixItems", ()), schema.get("items")
        return [
            _swapped(first[at], met["prefixItems"][at], item, swap)
            if at < len(first)
            else _swapped(others, met.get("items"), item, swap)
            for at, item in enumerate(value)
        ]
    return value


def _applied(
    schema: Mapping[str, Any], met: Mapping[str, Any], value: Json
) -> Iterator[tuple[Any, Any]]:
    """The parts of a combined schema that hold for a value: all, or the first that it meets."""
    yield from zip(schema.get("allOf", ()), met.get("allOf", ()), strict=True)
    for key in ("anyOf", "oneOf"):
        for part, meant in zip(schema.get(key, ()), met.get(key, ()), strict=True):
            if Draft202012Validator(meant).is_valid(value):
                yield part, meant
                break
