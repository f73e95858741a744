import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import SkillError, WorkflowError
from agentkit.skill.guarded_yaml import MAX_CHARACTERS, parse_yaml

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner),
    max_leaves=12,
)


@given(JSON)
def test_json_is_read_as_itself(value):
    assert parse_yaml(json.dumps(value), "f.yaml").value == value


def test_scalars_follow_yaml_1_2_and_dates_stay_text():
    text = "a: yes\nb: 010\nc: 2020-01-01\nd: 1.5\ne: ~\nf: true\ng: '1'\nh:\n"
    assert parse_yaml(text, "f.yaml").value == {
        "a": "yes",
        "b": 10,
        "c": "2020-01-01",
        "d": 1.5,
        "e": None,
        "f": True,
        "g": "1",
        "h": None,
    }


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1", "occurs twice"),
        ("a: !!python/object:os.system x\n", "f.yaml:1:4", "tags are not read"),
        ("a: !custom {b: 1}\n", "f.yaml:1:4", "tags are not read"),
        ("a: &x [1]\n", "f.yaml:1:4", "anchors"),
        ("a: 1\nb: *x\n", "f.yaml:2:4", "aliases"),
        ("<<: {a: 1}\n", "f.yaml:1:1", "merge keys"),
        ("? [a]\n: 1\n", "f.yaml:1:3", "a key must be a string"),
        ("1: a\n", "f.yaml:1:1", "a key must be a string"),
        ("a: [1,\n", "f.yaml:2:1", "not valid YAML"),
        ("a: 1\n--- \nb: 2\n", "f.yaml:2:1", "more than one YAML document"),
        ("%YAML 1.1\n---\na: 1\n", "f.yaml:2:1", "directives"),
        ("%YAML 1.3\n---\na: 1\n", "f.yaml", "not valid YAML"),
        ('a: "\\U00110000"\n', "f.yaml", "not valid YAML"),
        ("a: .inf\n", "f.yaml:1:4", "not a number that JSON knows"),
        ("a: " + "9" * 5000, "f.yaml:1:4", "not a number"),
        ('a: "\\ud800"\n', "f.yaml:1:4", "surrogate"),
        ("a: \x00\n", "f.yaml", "not valid YAML"),
    ],
)
def test_what_is_not_plain_data_is_refused_at_its_place(text, place, reason):
    with pytest.raises(SkillError, match=reason) as caught:
        parse_yaml(text, "f.yaml")
    assert caught.value.where == place


def test_an_alias_bomb_stops_at_its_first_anchor():
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    with pytest.raises(SkillError, match="anchors") as caught:
        parse_yaml("\n".join(lines), "f.yaml")
    assert caught.value.where == "f.yaml:1:5"


@pytest.mark.parametrize(
    "text", ["[" * 5000 + "]" * 5000, "{a: " * 5000, "\n".join(" " * n + "a:" for n in range(600))]
)
def test_deep_nesting_is_refused_without_reading_on(text):
    with pytest.raises(SkillError, match=r"nested more than 32 deep|not valid YAML"):
        parse_yaml(text, "f.yaml")


def test_more_text_than_the_limit_is_not_parsed():
    with pytest.raises(SkillError, match="the limit is"):
        parse_yaml(" " * (MAX_CHARACTERS + 1), "f.yaml")


def test_errors_are_of_the_callers_kind_and_count_from_its_line():
    with pytest.raises(WorkflowError) as caught:
        parse_yaml("a: 1\na: 2\n", "f.md", first_line=10, error=WorkflowError)
    assert caught.value.where == "f.md:11:1"
