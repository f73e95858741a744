"""One step again with another choice, on real runs of a small runner."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import EngineError, InputError
from agentkit.types import RunRecord
from agentkit.workflow import RunStore, compile_workflow, parse_spec, start
from agentkit.workflow.program import Program
from agentkit.workflow.whatif import Choice, WhatIfs, differences, names_of, what_if

from .helpers import SKILLS, Documents, ShoutingRunner

FLOW = """\
name: shout
inputs:
  texts: {type: list}
  document: {type: text, default: deed}
steps:
  first:
    skill: shouter
    input: {text: "{{ inputs.document }}"}
  each:
    for_each: inputs.texts
    instruction: Say it.
    input: {text: "{{ item }} after {{ steps.first.output }}"}
    context: {query: "{{ item }}"}
  never:
    when: "false"
    skill: shouter
    input: {text: x}
  joined:
    set: {all: "{{ steps.each | map(attribute='output') }}"}
outputs:
  all: "{{ steps.joined.output.all }}"
"""
PROGRAM = Program.of(parse_spec(FLOW))


@pytest.fixture
def store(tmp_path: Path):
    with RunStore(tmp_path / "runs.sqlite") as store:
        yield store


@pytest.fixture
def runner() -> ShoutingRunner:
    return ShoutingRunner()


@pytest.fixture
def run(store: RunStore) -> RunRecord:
    compiled = compile_workflow(PROGRAM.spec, ShoutingRunner(), Documents())
    outcome = start(compiled, {"texts": ["one", "two"]}, store=store, skills=SKILLS)
    return store.show(outcome.id)


def test_a_step_is_given_what_the_run_gave_it(runner: ShoutingRunner, run: RunRecord) -> None:
    found = what_if(PROGRAM, runner, run, "each", Choice("counter"), item=1)
    ((call,),) = runner.batches
    assert call.input == {"text": "two after DEED"}
    assert (call.skill, call.item, call.instruction) == ("counter", 1, "Say it.")
    assert call.context is not None
    assert call.context.query == "two"
    assert (found.recorded["output"], found.instead["output"]) == ("TWO AFTER DEED", 14)
    assert (found.recorded["skill"], found.instead["skill"]) == ("shouter", "counter")
    assert found.instead["item"] == "two"
    (difference,) = found.differences
    assert (difference.path, difference.recorded, difference.instead) == ("", "TWO AFTER DEED", 14)


def test_without_context_the_skill_that_answered_answers_again(
    runner: ShoutingRunner, run: RunRecord
) -> None:
    found = what_if(PROGRAM, runner, run, "each", Choice(no_context=True), item=0)
    ((call,),) = runner.batches
    assert call.skill == "shouter"
    assert call.context is not None
    assert (call.context.mode, call.context.index) == ("none", None)
    assert found.differences == []


def test_the_run_stays_as_it_is_and_what_was_tried_is_kept_beside_it(
    runner: ShoutingRunner, run: RunRecord, store: RunStore
) -> None:
    before = json.dumps(asdict(run))
    with WhatIfs(store) as kept:
        first = what_if(PROGRAM, runner, run, "first", Choice("counter"))
        second = what_if(PROGRAM, runner, run, "each", Choice("base", True), item=1)
        kept.keep(first)
        kept.keep(second)
        assert kept.of(run.id) == [first, second]
    assert json.dumps(asdict(store.show(run.id))) == before
    assert len(store.list()) == 1
    with WhatIfs(store) as again, pytest.raises(InputError, match="no run 'nothing'"):
        again.of("nothing")


@pytest.mark.parametrize(
    ("step", "item", "message"),
    [
        ("eech", None, "did you mean 'each'"),
        ("each", None, "has 2 items .*--item"),
        ("each", 7, "no item 7 .*0, 1"),
        ("first", 0, "no item 0 .*none"),
        ("never", None, "skipped"),
        ("joined", None, "only computes"),
    ],
)
def test_a_step_without_a_result_is_said_so(
    runner: ShoutingRunner, run: RunRecord, step: str, item: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        what_if(PROGRAM, runner, run, step, Choice("counter"), item=item)
    assert not runner.batches


def test_what_the_step_raises_is_raised(run: RunRecord) -> None:
    with pytest.raises(EngineError, match="no answer for deed") as caught:
        what_if(PROGRAM, ShoutingRunner(fail={"deed": 1}), run, "first", Choice("base"))
    assert caught.value.where == "step 'first'"


def test_no_choice_is_no_what_if() -> None:
    with pytest.raises(InputError, match="no other choice"):
        Choice()


def test_the_names_of_a_run_are_those_that_its_steps_saw(run: RunRecord) -> None:
    names = names_of(PROGRAM, run)
    assert names["inputs"] == {"texts": ["one", "two"], "document": "deed"}
    assert [one["index"] for one in names["steps"]["each"]] == [0, 1]
    assert names["steps"]["never"] is None
    assert names["run"]["id"] == run.id


def test_a_list_that_was_empty_is_one_and_a_step_that_was_left_out_is_none(
    store: RunStore, runner: ShoutingRunner
) -> None:
    left_out = (
        '  passed: {for_each: inputs.texts, when: "false", skill: shouter, input: {text: x}}\n'
    )
    last = """\
  last:
    skill: shouter
    input:
      text: "{{ steps.each | map(attribute='output') | length }} {{ steps.passed is none }}"
"""
    text = FLOW.replace("  joined:", left_out + "  joined:").replace("outputs:", last + "outputs:")
    program = Program.of(parse_spec(text))
    compiled = compile_workflow(program.spec, ShoutingRunner(), Documents())
    record = store.show(start(compiled, {"texts": []}, store=store, skills=SKILLS).id)
    steps = names_of(program, record)["steps"]
    assert (steps["each"], steps["passed"]) == ([], None)
    found = what_if(program, runner, record, "last", Choice("counter"))
    assert found.recorded["output"] == "0 TRUE"
    assert runner.texts == ["0 true"]


# ---------------------------------------------------------------- differences

values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from("ab"),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.sampled_from("xyz"), below),
    max_leaves=12,
)


@given(values, values)
def test_two_values_differ_somewhere_unless_they_are_the_same(one, other) -> None:
    assert (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)) == (
        not list(differences(one, other))
    )


def test_an_item_that_is_gone_does_not_shift_the_others() -> None:
    old = {"clauses": [{"quote": q, "score": 0.5} for q in "abcd"]}
    new = {"clauses": [{"quote": q, "score": 0.5} for q in "acd"] + [{"quote": "e", "score": 0.1}]}
    found = list(differences(old, new))
    assert [(one.path, one.kind) for one in found] == [
        ("clauses[1]", "removed"),
        ("clauses[3]", "added"),
    ]
