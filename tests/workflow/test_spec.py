import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import WorkflowError
from agentkit.workflow import Workflow, load_spec, parse_spec, to_yaml, validate
from agentkit.workflow.program import Program
from agentkit.workflow.spec import RESERVED, WorkflowSpec

NAMES = st.text(string.ascii_letters, min_size=1, max_size=8).filter(
    lambda name: name not in RESERVED
)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40).filter(
    lambda text: "{{" not in text and "{%" not in text and "{#" not in text
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e6, 1e6) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
SKILLS = st.sampled_from(["auto", "base", "shouter", "clause-finder"])


@st.composite
def skill_steps(draw):
    step = {"skill": draw(SKILLS), "instruction": "Do " + draw(TEXTS)}
    optional = {
        "input": st.dictionaries(NAMES, VALUES | st.just("{{ inputs.given }}"), max_size=3),
        "for_each": st.just("{{ inputs.given }}"),
        "when": st.sampled_from(["inputs.given", "inputs.given | length > 2"]),
        "description": TEXTS,
        "retry": st.fixed_dictionaries({"attempts": st.integers(1, 10)}),
        "context": st.fixed_dictionaries(
            {"top_k": st.integers(1, 9), "query": st.just("about {{ inputs.given }}")}
        ),
        "on_uncertain": st.sampled_from(["human", "fail", "shouter"]),
        "threshold": st.floats(0, 1),
    }
    for key, strategy in optional.items():
        if draw(st.booleans()):
            step[key] = draw(strategy)
    return step


SET_STEPS = st.fixed_dictionaries({"set": st.dictionaries(NAMES, VALUES, max_size=3)})


@st.composite
def workflows(draw):
    steps = draw(st.dictionaries(NAMES, skill_steps() | SET_STEPS, min_size=1, max_size=5))
    names = list(steps)
    for position, name in enumerate(names):
        if draw(st.booleans()):
            earlier = names[:position]
            steps[name]["needs"] = (
                draw(st.lists(st.sampled_from(earlier), unique=True)) if (earlier) else []
            )
    return {
        "name": "w" + draw(st.text("abc 12", max_size=5)),
        "description": draw(TEXTS),
        "inputs": {"given": {"type": "list", "default": draw(st.lists(VALUES, max_size=2))}},
        "steps": steps,
        "outputs": draw(st.dictionaries(NAMES, VALUES | st.just("{{ inputs.given }}"))),
        "report": draw(st.none() | st.dictionaries(NAMES, VALUES, max_size=2)),
    }


@given(workflows())
def test_yaml_to_spec_to_yaml_is_stable(data):
    spec = WorkflowSpec.from_data(data)
    text = to_yaml(spec)
    again = parse_spec(text)
    assert again == spec
    assert list(again.steps) == list(spec.steps)
    assert to_yaml(again) == text


@given(workflows())
def test_every_step_runs_after_what_it_needs(data):
    program = Program.of(WorkflowSpec.from_data(data))
    seen = set()
    for name, step in program.steps.items():
        assert set(step.needs) <= seen
        seen.add(name)
    assert seen == set(data["steps"])


BASE = """\
name: demo
inputs:
  text: {type: text}
  rules: {type: list, default: []}
steps:
  one:
    skill: shouter
    input:
      text: "{{ inputs.text }}"
  two:
    instruction: Count.
    for_each: inputs.rules
    input: {text: "{{ item }}", deep: [1, "{{ steps.one.output }}"]}
outputs:
  result: "{{ steps.two }}"
"""


@pytest.mark.parametrize(
    ("old", "new", "place", "word"),
    [
        ("skill: shouter", "skil: shouter", "7:5", "unknown key 'skil'"),
        ("skill: shouter", "skill: Shouter!", "7:5", "not a skill's name"),
        ("name: demo\n", "", "1:1", "'name' is missing"),
        ("name: demo", "name: demo\nextra: 1", "2:1", "unknown key 'extra'"),
        ("{{ inputs.text }}", "{{ inputs.txt }}", "9:13", "no input 'txt'"),
        ("steps.one.output }}", "steps.nope.output }}", "13:43", "no step 'nope'"),
        ("{{ item }}", "{{ item }", "13:19", "unexpected"),
        ('"{{ inputs.text }}"', '"{{ item }}"', "9:13", "no 'item' here"),
        ("steps.two }}", "steps.too }}", "15:11", "did you mean 'two'"),
        ("instruction: Count.", "needs: [one, nope]", "10:3", "needs an instruction"),
        (
            "instruction: Count.",
            "instruction: Count.\n    needs: [nope]",
            "12:13",
            "no step 'nope'",
        ),
        ("for_each: inputs.rules", "for_each: every {{ item }}", "12:15", "unexpected"),
        ("skill: shouter", "skill: shouter\n    needs: [two]", "6:3", "one -> two -> one"),
        ("  one:", "  one-two:", "6:3", "not a name"),
        ("  one:", "  item:", "6:3", "reserved"),
        ("{type: text}", "{type: txt}", "3:10", "type"),
        ("skill: shouter", "skill: shouter\n    set: {a: 1}", "6:3", "has no input, skill"),
        ("skill: shouter", "skill: shouter\n    threshold: 7", "8:5", "threshold"),
        ("steps:", "steps: []\nother:", "5:1", "steps"),
    ],
)
def test_a_fault_is_reported_with_its_place(tmp_path, old, new, place, word):
    path = tmp_path / "w.yaml"
    path.write_text(BASE.replace(old, new))
    with pytest.raises(WorkflowError) as caught:
        load_spec(path)
    assert str(caught.value).startswith(f"{path}:{place}")
    assert word in str(caught.value)


def test_a_missing_skill_is_reported_with_its_place():
    spec = parse_spec(BASE, name="w.yaml")
    validate(spec, ["shouter"])
    with pytest.raises(WorkflowError, match=r"w\.yaml:7:12: .*did you mean 'shouters'"):
        validate(spec, ["shouters"])
    human = parse_spec(BASE.replace("skill: shouter", "skill: base\n    on_uncertain: other"))
    with pytest.raises(WorkflowError, match="'other', which is not installed"):
        validate(human, ["shouter"])


def test_needs_default_to_the_step_before_and_the_steps_named():
    spec = parse_spec(
        """
name: demo
steps:
  a: {skill: base}
  b: {skill: base, needs: []}
  c: {skill: base}
  d: {skill: base, needs: [], when: "steps.a.output", input: {x: "{{ steps['b'].output }}"}}
"""
    )
    steps = Program.of(spec).steps
    assert {name: step.needs for name, step in steps.items()} == {
        "a": (),
        "b": (),
        "c": ("b",),
        "d": ("a", "b"),
    }


def test_a_self_reference_is_a_fault():
    with pytest.raises(WorkflowError, match="names itself"):
        parse_spec("name: demo\nsteps:\n  a: {skill: base, when: steps.a}\n")


def test_a_mapping_is_needed():
    with pytest.raises(WorkflowError, match=r"w:1:1: a workflow is a mapping"):
        parse_spec("[1, 2]", name="w")


def test_the_builder_gives_the_same_workflow_as_yaml():
    workflow = (
        Workflow("demo")
        .input("text", "text")
        .input("rules", "list", default=[])
        .step("one", skill="shouter", input={"text": "{{ inputs.text }}"})
        .step(
            "two",
            instruction="Count.",
            for_each="inputs.rules",
            input={"text": "{{ item }}", "deep": [1, "{{ steps.one.output }}"]},
        )
        .output("result", "{{ steps.two }}")
    )
    assert workflow.spec() == parse_spec(BASE)
    assert to_yaml(workflow.spec()) == to_yaml(parse_spec(BASE))


def test_the_builder_reports_faults_by_path():
    workflow = Workflow("demo").step("one", skill="base", when="steps.nope")
    with pytest.raises(WorkflowError, match=r"^steps\.one\.when: .*no step 'nope'"):
        workflow.spec()
    with pytest.raises(WorkflowError, match="there already"):
        workflow.step("one", skill="base")


def test_a_spec_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse_spec(BASE).name = "other"
