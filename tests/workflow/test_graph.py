import re
from xml.etree import ElementTree

from hypothesis import given

from agentkit.workflow import parse_spec, to_mermaid, to_svg
from agentkit.workflow.program import Program
from agentkit.workflow.spec import WorkflowSpec

from .test_spec import workflows

SPEC = parse_spec(
    """
name: drawn <&>
steps:
  a: {skill: base}
  b: {instruction: 'Find "x" <now>', needs: [a], on_uncertain: human}
  c: {skill: shouter, needs: [a], for_each: "[1, 2]"}
  d: {set: {both: ["{{ steps.b }}", "{{ steps.c }}"]}, when: steps.a.output}
  end: {skill: shouter}
""".replace("name: drawn <&>", "name: drawn")
)


def test_mermaid_draws_steps_approvals_and_edges_once():
    text = to_mermaid(SPEC)
    assert text.startswith("flowchart LR\n")
    edges = [line.strip() for line in text.splitlines() if ">" in line and '"' not in line]
    assert edges == [
        "s_b --> s_b_approval",
        "s_a --> s_b",
        "s_a --> s_c",
        "s_b_approval -. when .-> s_d",
        "s_c -. when .-> s_d",
        "s_d --> s_end",
    ]


def boxes(svg):
    root = ElementTree.fromstring(svg)
    found = []
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        if rect.get("class") in ("box", "box set"):
            found.append(tuple(float(rect.get(key)) for key in ("x", "y", "width", "height")))
    return root, found


@given(workflows())
def test_the_svg_is_well_formed_and_no_boxes_overlap(data):
    spec = WorkflowSpec.from_data(data)
    root, found = boxes(to_svg(spec))
    assert len(found) == len(spec.steps)
    for index, (x, y, w, h) in enumerate(found):
        assert x + w <= float(root.get("width"))
        assert y + h <= float(root.get("height"))
        for other_x, other_y, other_w, other_h in found[index + 1 :]:
            apart = (
                x + w <= other_x
                or other_x + other_w <= x
                or y + h <= other_y
                or other_y + other_h <= y
            )
            assert apart
    assert len(re.findall('class="edge"', to_svg(spec))) == len(Program.of(spec).edges())


def test_the_svg_needs_nothing_from_outside():
    svg = to_svg(SPEC)
    assert "script" not in svg
    assert "href" not in svg
    assert "&lt;now&gt;" in svg
