import json

import pytest

from agentkit.errors import SkillError
from agentkit.skill.guarded_yaml import parse_yaml
from agentkit.skill.schema import check_schema


def check(schema):
    source = parse_yaml(json.dumps({"output": schema}), "skill.yaml")
    check_schema(source.value["output"], source, ("output",))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["string", "null"]},
        {"type": "string", "pattern": r"^\d+ \w"},
        {"type": "number", "multipleOf": 0.5},
        {"enum": ["a", 1, None]},
        {"type": "object", "properties": {"$ref": {"type": "string"}}, "x-note": 3},
        {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "string"}}},
        {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": False}]},
    ],
)
def test_a_sane_schema_passes(schema):
    check(schema)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("string", "must be a mapping"),
        ({"type": "text"}, "unknown type 'text'"),
        ({"type": []}, "unknown type"),
        ({"type": {"a": 1}}, "unknown type"),
        ({"enum": []}, "at least one value"),
        ({"required": "a"}, "list of property names"),
        ({"maxLength": -1}, "whole number"),
        ({"maximum": "3"}, "must be a number"),
        ({"multipleOf": 0}, "must be above 0"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": r"^\p{Lu}"}, r"no regular expression.*are Python's"),
        ({"patternProperties": {"[": {"type": "string"}}}, "no regular expression"),
        ({"anyOf": []}, "list of schemas"),
        ({"properties": []}, "must map names to schemas"),
        ({"items": {"type": "nope"}}, "unknown type 'nope'"),
        ({"$ref": "http://example.com/x"}, "only references"),
        ({"$ref": "#/$defs/a"}, "does not exist"),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, "holds itself: a -> a"),
        (
            {"additionalProperties": False, "properties": {}, "required": ["a"]},
            "'a' is required but not among",
        ),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused(schema, reason):
    with pytest.raises(SkillError, match=reason):
        check(schema)


def test_nesting_is_bounded():
    schema = {"type": "string"}
    for _ in range(20):
        schema = {"items": schema}
    with pytest.raises(SkillError, match="nested more than"):
        check(schema)


def test_references_that_double_again_and_again_are_refused():
    defs = {"d0": {"type": "string"}}
    for n in range(1, 60):
        ref = {"$ref": f"#/$defs/d{n - 1}"}
        defs[f"d{n}"] = {"anyOf": [ref, dict(ref)]}
    with pytest.raises(SkillError, match="written out"):
        check({"$defs": defs})
