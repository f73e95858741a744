"""Quotes in schemas: numbers while the model writes, words and offsets afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agentkit.errors import InputError, OutputError
from agentkit.skill.quoting import fill_quotes, filled_schema, number_quotes, written_schema
from agentkit.types import PromptSpan

TEXT = "One is here. Two follows. Three ends it."
SPANS = [PromptSpan(n, "d", *place, TEXT[slice(*place)]) for n, place in enumerate(
    ((0, 12), (13, 25), (26, 40)), start=1
)]  # fmt: skip
QUOTE = {"x-quote": True}

SCHEMAS: list[tuple[dict[str, Any], Any]] = [
    ({"type": "object", "properties": {"why": QUOTE}}, {"why": 2}),
    ({"type": "array", "items": QUOTE}, [1, 3]),
    ({"type": "array", "prefixItems": [QUOTE, {"type": "integer"}]}, [3, 3]),
    ({"type": "object", "additionalProperties": QUOTE}, {"a": 1, "b": 2}),
    ({"$ref": "#/$defs/reason", "$defs": {"reason": QUOTE}}, 2),
    (
        {
            "type": "object",
            "properties": {"found": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/q"}]}},
            "$defs": {"q": QUOTE},
        },
        {"found": 3},
    ),
    ({"anyOf": [{"type": "null"}, QUOTE]}, None),
    ({"allOf": [{"type": "object", "properties": {"at": QUOTE}}, {"required": ["at"]}]}, {"at": 1}),
]


@pytest.mark.parametrize(("schema", "written"), SCHEMAS)
def test_numbers_become_words_and_words_numbers_wherever_the_schema_quotes(
    schema: dict[str, Any], written: Any
) -> None:
    assert Draft202012Validator(written_schema(schema, 3)).is_valid(written)
    filled = fill_quotes(schema, written, SPANS)
    assert Draft202012Validator(filled_schema(schema)).is_valid(filled)
    assert number_quotes(schema, filled, SPANS) == written
    if written is not None:
        assert "quote" in str(filled)


def test_what_is_no_quote_stays_as_it_is() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "why": QUOTE}}
    assert fill_quotes(schema, {"n": 2, "other": 1}, SPANS) == {"n": 2, "other": 1}


@given(st.integers(0, 39), st.integers(1, 40))
def test_a_quote_is_the_span_that_it_shares_most_with(start: int, length: int) -> None:
    end = min(start + length, 40)
    shared = [min(s.end, end) - max(s.start, start) for s in SPANS]
    quote = {"quote": TEXT[start:end], "start": start, "end": end}
    if max(shared) <= 0:
        with pytest.raises(InputError, match="is in no span"):
            number_quotes(QUOTE, quote, SPANS)
    else:
        assert shared[number_quotes(QUOTE, quote, SPANS) - 1] == max(shared)


@pytest.mark.parametrize("number", [0, 4, -1])
def test_a_number_of_no_span_is_refused(number: int) -> None:
    with pytest.raises(OutputError, match=f"span {number} is quoted, but the document shows 3"):
        fill_quotes(QUOTE, number, SPANS)
