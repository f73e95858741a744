import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ExpressionError
from agentkit.workflow.expressions import compile_expression, compile_text, compile_value
from agentkit.workflow.functions import FILTERS, TESTS
from agentkit.workflow.limits import size

NAMES = {
    "inputs": {"rules": ["b", "a", "b"], "text": "deed", "n": 3, "flag": False},
    "steps": {
        "one": {"output": {"items": 5, "values": [1, 2]}, "skill": "shouter"},
        "many": [{"output": {"v": "x"}}, {"output": {"v": "y"}}],
        "skipped": None,
    },
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def value(text):
    return compile_expression(text).evaluate(NAMES)


@pytest.mark.parametrize("text", ["'nan' | float", "[1, 'inf' | float]", "1e308 * 10"])
def test_what_is_no_number_of_json_is_refused(text):
    with pytest.raises(ExpressionError, match="JSON has no number for"):
        value(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inputs.rules", ["b", "a", "b"]),
        ("{{ inputs.rules }}", ["b", "a", "b"]),
        ("inputs.rules | length", 3),
        ("inputs.rules | unique | sort | join(', ')", "a, b"),
        ("steps.one.output.items", 5),
        ("steps.one.output['values'][1:]", [2]),
        ("steps.many | map(attribute='output.v')", ["x", "y"]),
        ("steps.many | selectattr('output.v', 'eq', 'y') | length", 1),
        ("steps.skipped is none", True),
        ("steps.skipped | default('none given')", "none given"),
        ("inputs.missing | default(7)", 7),
        ("inputs.missing is defined", False),
        ("zip(inputs.rules, [1, 2, 3])", [["b", 1], ["a", 2], ["b", 3]]),
        ("enumerate(inputs.rules, 1) | first", [1, "b"]),
        ("merge({'a': 1, 'b': 1}, {'b': 2})", {"a": 1, "b": 2}),
        ("range(3)", [0, 1, 2]),
        ("inputs.text ~ '-' ~ inputs.n", "deed-3"),
        ("'yes' if inputs.flag else 'no'", "no"),
        ("inputs.n * 2 + 1", 7),
        ("[1, 2.5] | sum | round(1)", 3.5),
        ("inputs.rules | groupby('x')", [[None, ["b", "a", "b"]]]),
        ("'b' in inputs.rules and not inputs.flag", True),
        ("{'k': inputs.rules} | tojson", '{"k": ["b", "a", "b"]}'),
    ],
)
def test_an_expression_gives_a_value(text, expected):
    result = value(text)
    assert result == expected
    assert type(result) is type(expected)


def test_a_text_around_expressions_is_text_and_a_structure_keeps_its_shape():
    compiled = compile_value(
        {"a": "{{ inputs.rules }}", "b": ["{{ inputs.n }} rules", "{{ 1 }}{{ 2 }}", 4, None]}
    )
    assert compiled.evaluate(NAMES) == {"a": ["b", "a", "b"], "b": ["3 rules", "12", 4, None]}
    assert compile_text("{{ inputs.n }}").evaluate(NAMES) == "3"
    assert compile_value("line\n").evaluate(NAMES) == "line\n"
    assert compile_value("{{ inputs.n }}: x\n").evaluate(NAMES) == "3: x\n"


@given(st.sampled_from([*dir(dict), *dir(list), *dir(str)]), JSON)
def test_an_item_is_found_before_an_attribute(key, held):
    if key.startswith("_"):
        with pytest.raises(ExpressionError):
            compile_expression(f"inputs.{key}")
        return
    names = {"inputs": {key: held}, "steps": {}}
    assert compile_expression(f"inputs.{key}").evaluate(names) == held
    assert compile_expression(f"inputs['{key}']").evaluate(names) == held


@given(st.sampled_from([n for n in [*dir(dict), *dir(list), *dir(str)] if n[0] != "_"]), JSON)
def test_there_are_no_attributes_at_all(name, held):
    if isinstance(held, dict) and name in held:
        return
    with pytest.raises(ExpressionError):
        compile_expression(f"inputs.it.{name}").evaluate({"inputs": {"it": held}})


@given(JSON)
def test_values_pass_through_unchanged_and_unshared(held):
    result = compile_expression("inputs.it").evaluate({"inputs": {"it": held}})
    assert result == held
    if isinstance(held, (dict, list)):
        assert result is not held


@pytest.mark.parametrize(
    "text",
    [
        "().__class__.__mro__",
        "inputs.__class__",
        "inputs['__class__']",
        "inputs['__cla' ~ 'ss__']",
        "inputs._private",
        "inputs | attr('__class__')",
        "inputs.rules | map(attribute='__class__') | first | length",
        "inputs.rules.append(1)",
        "inputs.text.format(1)",
        "'{0.__class__}'.format(1)",
        "range.__init__",
        "range(*inputs.rules)",
        "self.x",
        "cycler('a')",
        "lipsum()",
        "namespace()",
        "config",
        "inputs.rules | map('attr', 'x') | list",
        "inputs.rules | select('callable')",
        "steps",
        "steps[inputs.text]",
    ],
)
def test_hostile_names_and_calls_are_refused(text):
    with pytest.raises(ExpressionError):
        value(text)


DEEP = "(range(10000) | map(attribute='x', default=%s))"


@pytest.mark.parametrize(
    "text",
    [
        "'a' * 10**9",
        "[0] * 10**9",
        "10**10**10",
        "2**100000",
        "9**99**9",
        "'%1000000000d' % 1",
        "range(10**9)",
        "range(10**9) | list | length",
        "inputs.text | replace('', 'x')",
        "(range(9999) | join('xxxxxxxxxxxxxxxx')) | replace('x', (range(9999) | join('y')))",
        DEEP % (DEEP % (DEEP % "1")) + " | length",
        DEEP % "(range(9999) | join('x'))" + " | tojson",
        "range(10000) | select('in', range(10000)) | length",
        "1 | round(10**9)",
        "(" * 3000 + "1" + ")" * 3000,
        "not " * 900 + "1",
        "[" * 900 + "]" * 900,
        "1" * 5000,
        "inputs.text" + " ~ inputs.text" * 2000,
    ],
)
def test_what_takes_too_much_time_or_memory_is_refused(text):
    with pytest.raises(ExpressionError):
        value(text)


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in inputs.rules %}{{ a }}{% endfor %}",
        "{% set a = 1 %}{{ a }}",
        "{% include 'x' %}",
        "{{ inputs.text",
        "{{ }}",
        "{{ inputs.text | nosuch }}",
        "{{ inputs.text is nosuch }}",
        "{{ nosuch }}",
        "{{ 1 }",
    ],
)
def test_a_malformed_template_is_refused_when_it_is_compiled(text):
    with pytest.raises(ExpressionError):
        compile_value(text)


@pytest.mark.parametrize("text", ["inputs.missing", "1 / 0", "inputs.rules + 1", "inputs.n.x"])
def test_a_failure_says_which_expression_and_where(text):
    compiled = compile_expression(text, where="w.yaml:3:9")
    with pytest.raises(ExpressionError) as caught:
        compiled.evaluate(NAMES)
    assert str(caught.value).startswith(f"w.yaml:3:9: {text}: ")


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(ExpressionError, match="did you mean 'inputs'"):
        compile_expression("input.x")
    with pytest.raises(ExpressionError, match="did you mean 'length'"):
        compile_expression("inputs.x | lenght")


def test_references_are_found_without_evaluating():
    found = compile_value(
        {"a": "{{ steps.one.output ~ steps['two'] }}", "b": ["{{ item.x }} {{ inputs.text }}"]}
    ).references
    assert found.steps == {"one", "two"}
    assert found.inputs == {"text"}
    assert found.names == {"steps", "item", "inputs"}


@given(st.text(max_size=60))
def test_any_text_compiles_or_is_refused(text):
    for compiler in (compile_expression, compile_value):
        with contextlib.suppress(ExpressionError):
            compiler(text).evaluate(NAMES)


@given(JSON)
def test_size_counts_every_part(held):
    assert size([held, held]) == 1 + 2 * size(held)


@given(st.sampled_from(sorted(FILTERS)), JSON)
def test_a_filter_gives_plain_data_or_an_expression_error(name, held):
    with contextlib.suppress(ExpressionError):
        compile_expression(f"inputs.it | {name}").evaluate({"inputs": {"it": held}})


@given(st.sampled_from(sorted(TESTS)), JSON, JSON)
def test_a_test_gives_a_boolean_or_an_expression_error(name, held, other):
    names = {"inputs": {"them": [held], "other": other}}
    for arguments in ("", ", inputs.other"):
        with contextlib.suppress(ExpressionError):
            compile_expression(f"inputs.them | select('{name}'{arguments})").evaluate(names)


def test_every_filter_refuses_a_missing_value_but_default():
    for name in set(FILTERS) - {"default", "d"}:
        with pytest.raises(ExpressionError):
            value(f"inputs.missing | {name}")
