"""Constrained output always parses, always meets its schema, and always ends before the limit."""

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit.engine.backbone import Backbone, load_backbone
from agentkit.engine.decoding import Grammars, bounded
from agentkit.errors import LimitError, SkillError
from agentkit.skill.grounding import grounded_schema
from agentkit.testing import TinyBackbone

FINDING = {
    "type": "object",
    "properties": {
        "statement": {"type": "string", "minLength": 3},
        "rating": {"enum": ["good", "neutral", "bad", "blocker"]},
        "spans": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 40}},
        "score": {"type": "number"},
        "note": {"type": ["string", "null"]},
    },
    "required": ["statement", "rating", "spans", "score"],
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name", "children"],
        }
    },
    "$ref": "#/$defs/node",
}
CHAIN = {
    "$defs": {
        "link": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"aaaaaaaa": {"$ref": "#/$defs/link"}},
                    "required": ["aaaaaaaa"],
                },
                {"type": "object", "properties": {"b": {"const": 1}}, "required": ["b"]},
            ]
        }
    },
    "$ref": "#/$defs/link",
}
PATTERN = {
    "type": "object",
    "properties": {
        "date": {"type": "string", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "code": {"type": "string", "pattern": r"^[a-z}]{6,9}x$"},
    },
    "required": ["date", "code"],
}
GROUNDED = grounded_schema(
    {
        "type": "object",
        "properties": {
            "statement": {"type": "string", "minLength": 8, "maxLength": 60, "x-grounded": True},
            "rating": {"enum": ["good", "bad"]},
        },
        "required": ["statement", "rating"],
    },
    "ACME Ltd. pays 1,500 euros within 30 days.",
)
OPTIONAL = {
    "type": "object",
    "properties": {name: {"type": "array", "items": {"type": "boolean"}} for name in "abcdef"},
}
SCALARS = [
    {"type": "integer"},
    {"type": "number"},
    {"type": "string"},
    {"enum": ["yes", "yes, but", "no"]},
]


def is_valid(value: Any, schema: Any, root: Any) -> bool:
    """Whether `value` meets the part of JSON Schema that these tests use."""
    if schema is True or schema == {}:
        return True
    if ref := schema.get("$ref"):
        return is_valid(value, root["$defs"][ref.rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(is_valid(value, part, root) for part in schema["anyOf"])
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds or ["any"]
    if not any(_is_kind(value, kind) for kind in kinds):
        return False
    if isinstance(value, str):
        low, high = schema.get("minLength", 0), schema.get("maxLength", 10**9)
        return low <= len(value) <= high and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, list):
        low, high = schema.get("minItems", 0), schema.get("maxItems", 10**9)
        return low <= len(value) <= high and all(
            is_valid(item, schema.get("items", True), root) for item in value
        )
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        return set(schema.get("required", ())) <= value.keys() and all(
            is_valid(item, parts.get(name, True), root) for name, item in value.items()
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return schema.get("minimum", -1e300) <= value <= schema.get("maximum", 1e300)
    return True


def _is_kind(value: Any, kind: str) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "any": True,
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "number": is_number,
        "integer": is_number and value == int(value),
    }[kind]


@pytest.fixture(scope="module")
def tiny_loaded(tiny: TinyBackbone) -> Backbone:
    return load_backbone(tiny.path)


@pytest.fixture(scope="module")
def grammars(tiny_loaded: Backbone) -> Grammars:
    return Grammars(tiny_loaded)


def write(
    backbone: Backbone,
    grammars: Grammars,
    schema: Any,
    limit: int,
    seed: int,
    *,
    greedy: bool = False,
) -> str:
    """What a model of random wishes writes; odd seeds never wish to end anything.

    Two of four seeds take what must follow at once.
    """
    at_once = seed % 4 >= 2
    constraint = grammars.constraint(schema, limit)
    random = torch.Generator().manual_seed(seed)
    wishes = torch.randn(400, backbone.vocabulary, generator=random) * 3
    if seed % 2:
        closers = [*backbone.eos_ids, *(backbone.tokenizer.plain(c)[0] for c in '"]}')]
        wishes[:, closers] -= 100
    ids = constraint.forced() if at_once else []
    while not constraint.done:
        token = constraint.choose(
            wishes[len(ids) % 400], lambda logits: int(logits.argmax()), greedy=greedy
        )
        if token is not None:
            ids.append(token)
            ids += constraint.forced() if at_once else []
    assert len(ids) <= limit
    return backbone.tokenizer.decode(ids)


@pytest.mark.parametrize("limit", [40, 60, 150])
@pytest.mark.parametrize("schema", [FINDING, TREE, CHAIN, PATTERN, GROUNDED, OPTIONAL, *SCALARS])
def test_output_is_valid_whatever_the_model_wishes(
    tiny_loaded: Backbone, grammars: Grammars, schema: Any, limit: int
) -> None:
    for seed in range(4):
        text = write(tiny_loaded, grammars, schema, limit + (schema is PATTERN) * 20, seed)
        assert is_valid(json.loads(text), schema, schema), text


@pytest.mark.parametrize("schema", [FINDING, TREE, GROUNDED, OPTIONAL, *SCALARS])
def test_the_best_of_all_is_taken_where_it_is_the_best_of_the_allowed(
    tiny_loaded: Backbone, grammars: Grammars, schema: Any
) -> None:
    for seed in range(4):
        text = write(tiny_loaded, grammars, schema, 80, seed)
        assert write(tiny_loaded, grammars, schema, 80, seed, greedy=True) == text


def test_what_must_follow_is_taken_without_logits(
    tiny_loaded: Backbone, grammars: Grammars
) -> None:
    schema = {
        "type": "object",
        "properties": {"rating": {"enum": ["good", "bad"]}, "kind": {"const": "clause"}},
        "required": ["rating", "kind"],
    }
    constraint = grammars.constraint(schema, 60)
    decode = tiny_loaded.tokenizer.decode
    start = constraint.forced()
    assert decode(start).startswith('{"rating"')
    wish = torch.zeros(tiny_loaded.vocabulary)
    wish[tiny_loaded.tokenizer.plain("g")[0]] = 9
    chosen = 0
    ids = list(start)
    while not constraint.done:
        token = constraint.choose(wish, lambda logits: int(logits.argmax()))
        chosen += 1
        if token is not None:
            ids += [token, *constraint.forced()]
    assert decode(ids) == '{"rating":"good","kind":"clause"}'
    assert chosen < len(ids) / 2


def schemas() -> st.SearchStrategy[Any]:
    strings = st.builds(
        lambda low, extra: {"type": "string", "minLength": low, "maxLength": low + extra},
        st.integers(0, 4),
        st.integers(0, 20),
    )
    leaves = st.one_of(
        st.sampled_from(
            [
                {"type": "string"},
                {"type": "integer"},
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "boolean"},
                {"type": ["string", "null"]},
                {"const": "fixed"},
            ]
        ),
        strings,
        st.builds(
            lambda words: {"enum": words},
            st.lists(st.text("abcé ", min_size=1, max_size=8), min_size=1, unique=True),
        ),
    )
    names = st.text("abcdefgh_", min_size=1, max_size=8)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(
                lambda item, low: {"type": "array", "items": item, "minItems": low},
                inner,
                st.integers(0, 2),
            ),
            st.builds(
                lambda parts, wanted: {
                    "type": "object",
                    "properties": parts,
                    "required": list(parts)[:wanted],
                },
                st.dictionaries(names, inner, min_size=1, max_size=4),
                st.integers(0, 4),
            ),
            st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
        ),
        max_leaves=6,
    )


@given(schema=schemas(), limit=st.integers(1, 90), seed=st.integers(0, 1000))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_schema_is_met_within_any_limit_or_refused_at_once(
    tiny_loaded: Backbone, grammars: Grammars, schema: Any, limit: int, seed: int
) -> None:
    try:
        text = write(tiny_loaded, grammars, schema, limit, seed)
    except LimitError:
        return
    assert is_valid(json.loads(text), schema, schema), text


@given(schema=schemas(), limit=st.integers(1, 60))
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_a_schema_that_fits_a_limit_fits_every_larger_one(
    grammars: Grammars, schema: Any, limit: int
) -> None:
    try:
        grammars.constraint(schema, limit)
    except LimitError:
        return
    grammars.constraint(schema, limit + 1)


def test_a_schema_that_cannot_fit_is_refused_with_what_to_do(grammars: Grammars) -> None:
    with pytest.raises(LimitError, match=r"fits into 5 tokens.*max_tokens"):
        grammars.constraint(FINDING, 5)


def test_a_schema_that_cannot_constrain_is_refused(grammars: Grammars) -> None:
    with pytest.raises(SkillError, match="cannot constrain"):
        grammars.constraint({"type": "string", "pattern": "(?=x)y"}, 50)


def test_output_is_compact_and_holds_no_escaped_surrogates(
    tiny_loaded: Backbone, grammars: Grammars
) -> None:
    for seed in range(6):
        text = write(tiny_loaded, grammars, FINDING, 120, seed)
        assert "\\u" not in text
        assert (
            json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)[:20]
            == (text[:20])
        )
        text.encode()


def test_bounding_narrows_and_keeps_what_the_schema_says() -> None:
    narrow = bounded(FINDING)
    assert narrow["properties"]["statement"] == {
        "type": "string",
        "minLength": 3,
        "maxLength": 2000,
    }
    assert narrow["properties"]["rating"] == FINDING["properties"]["rating"]
    assert narrow["additionalProperties"] is False
    assert bounded({"type": "string", "minLength": 5000})["maxLength"] == 5000
    assert "additionalProperties" not in bounded({"allOf": [{"properties": {"a": {}}}]})["allOf"][0]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"type": "object", "properties": {"a": {"type": "string"}}, "minProperties": 1},
        {"type": "string", "format": "date"},
        {"type": "string", "title": "t", "default": "x", "examples": ["y"], "deprecated": True},
        {"type": "integer", "multipleOf": 5},
        {"type": "object", "additionalProperties": {"type": "integer"}},
    ],
)
def test_keywords_that_a_skill_may_use_do_not_stop_decoding(
    tiny_loaded: Backbone, grammars: Grammars, schema: Any
) -> None:
    json.loads(write(tiny_loaded, grammars, schema, 60, seed=2))
