"""Whether an answer in free words could reach anything, found without running a workflow."""

from __future__ import annotations

import pytest

from agentkit.workflow import parse_spec
from agentkit.workflow.expressions import compile_expression
from agentkit.workflow.program import Program


@pytest.mark.parametrize(
    ("expression", "whole"),
    [
        ("steps.a.output", True),
        ("steps.a", True),
        ("steps.a | list", True),
        ("steps.a.output | default('')", True),
        ("steps.a.output ~ '!'", True),
        ("steps.a[0].output.x", True),
        ("steps.a | map('upper')", True),
        ("steps.a | map(attribute='output')", True),
        ("steps.a | selectattr('output.x', 'eq', 'y')", True),
        ("steps.a | selectattr('route')", True),
        ("steps.a | rejectattr('output.x')", True),
        ("{'kept': steps.a.output}", True),
        ("[steps.a.output.x, steps.a]", True),
        ("steps.a.output.x", False),
        ("steps['a']['output']['x'].y[0]", False),
        ("steps.a.output.x | default([])", False),
        ("enumerate(steps.a | selectattr('output.x'))", False),
        ("steps.a | map(attribute='output.x') | list", False),
        ("steps.a.route.skill", False),
        ("steps.b.output ~ steps.a.output.x", False),
        ("inputs.a", False),
    ],
)
def test_an_output_is_taken_whole_unless_only_its_fields_are(expression: str, whole: bool) -> None:
    assert ("a" in compile_expression(expression).references.uses.whole) is whole


def program(outputs: str) -> Program:
    return Program.of(
        parse_spec(f"""\
name: w
steps:
  a: {{instruction: Do it.}}
  b: {{set: {{x: "{{{{ steps.a.output.x }}}}"}}}}
outputs: {outputs}
""")
    )


def test_words_are_of_use_where_an_output_or_a_reader_may_take_them() -> None:
    assert program('{x: "{{ steps.b.output.x }}"}').steps["a"].fields == {"x"}
    both = program('{y: "{{ steps.a.output.y.z }}", r: "{{ steps.a.route.skill }}"}')
    assert both.steps["a"].fields == {"x", "y"}
    assert program('{x: "{{ steps.a.output }}"}').steps["a"].fields is None
    unread = Program.of(parse_spec("name: w\nsteps:\n  a: {instruction: Do it.}\n"))
    assert unread.steps["a"].fields is None
