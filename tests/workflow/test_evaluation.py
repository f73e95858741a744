"""Errors of a workflow charged to router, retrieval or skill, with a small runner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import CancelledError, EngineError, InputError
from agentkit.types import Route, StepCall, StepResult
from agentkit.workflow import compile_workflow, parse_spec
from agentkit.workflow.evaluation import WorkflowEvaluation, evaluate_workflow, matches
from agentkit.workflow.gold import read_gold

from .helpers import Documents

SPEC = parse_spec("""\
name: judge-all
inputs:
  rules: {type: list}
steps:
  judge:
    for_each: inputs.rules
    instruction: Judge it.
    input: {text: "{{ item }}"}
outputs:
  verdicts: "{{ steps.judge | map(attribute='output.verdict') | list }}"
""")
SKILLS = ("judge", "poet")


class Judge:
    """`judge` says yes to a rule, if it is shown the right words or the rule is `easy`; the
    controller sends `odd` rules to `poet`, which answers no; `hard` rules nobody gets right."""

    def __init__(self) -> None:
        self.calls: list[StepCall] = []

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]:
        self.calls += calls
        return [self._one(call) for call in calls]

    def _one(self, call: StepCall) -> StepResult | Exception:
        text = call.input["text"]
        if text == "cancel":
            return CancelledError("withdrawn")
        skill = call.skill
        if skill == "auto":
            skill = "poet" if "odd" in text else "judge"
        if "broken" in text and skill == "poet":
            return EngineError("no answer")
        context = call.context
        spans = None if context is None else context.spans
        with_context = context is None or context.mode != "none"
        right = "easy" in text and with_context
        right = right or ("found" in text and spans == ((3, 9),))
        verdict = "yes" if skill == "judge" and right else "no"
        route = Route(skill, 0.9, False, "so it seems")
        return StepResult(call.step, {"verdict": verdict, "score": 0.5}, route, skill, skill,
                          item=call.item)  # fmt: skip


@pytest.fixture
def runner() -> Judge:
    return Judge()


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evaluated(runner: Judge, path: Path, **options: Any) -> WorkflowEvaluation:
    compiled = compile_workflow(SPEC, runner, Documents())
    return evaluate_workflow(compiled, read_gold(path, SPEC, SKILLS), **options)


def row(*rules: str, **more: Any) -> dict[str, Any]:
    """Every rule is a yes of `judge`, shown by the characters 3 to 9."""
    gold = {"skill": "judge", "spans": [[3, 9]]}
    items = [{"output": {"verdict": "yes"}} for _ in rules]
    return {"inputs": {"rules": list(rules)}, "steps": {"judge": {**gold, "items": items}}, **more}


def test_each_error_is_charged_to_what_puts_it_right(runner: Judge, tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", row("easy", "odd easy", "to be found", "odd to be found", "hard")
    )
    found = evaluated(runner, path)
    assert [target.charge for target in found.targets] == [
        "right",
        "router",
        "retrieval",
        "retrieval",
        "skill",
    ]
    charges = {"right": 1, "router": 1, "retrieval": 2, "skill": 1}
    assert found.charges() == {"steps.judge": charges, "all": charges}
    assert {arm: figure.value for arm, figure in found.accuracy.items()} == {
        "routed": 0.2,
        "true_routes": 0.4,
        "gold_context": 0.8,
        "without_context": 0.0,
    }
    step = found.steps()["judge"]
    assert (step["routes"], step["route_accuracy"], step["gold_context"]) == (5, 0.6, 0.8)
    told = found.to_json()
    assert [one["item"] for one in told["wrong_routes"]] == [1, 3]
    assert json.loads(json.dumps(told)) == told


def test_an_output_of_the_workflow_is_charged_too(runner: Judge, tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        row("easy", "odd easy", expected={"verdicts": ["yes", "yes"]}),
        row("easy", expected={"verdicts": ["yes"]}),
        row("hard", expected={"verdicts": ["no"]}),
    )
    charges = evaluated(runner, path).charges()["outputs.verdicts"]
    assert charges == {"right": 2, "router": 1, "retrieval": 0, "skill": 0}


def test_what_a_row_does_not_say_is_not_charged(runner: Judge, tmp_path: Path) -> None:
    rules = ["odd easy", "to be found"]
    path = write(
        tmp_path / "rows.jsonl",
        {"inputs": {"rules": rules}, "expected": {"verdicts": ["yes", "yes"]}},
    )
    found = evaluated(runner, path, without_context=False)
    assert found.charges()["all"] == {"right": 0, "router": 0, "retrieval": 0, "skill": 1}
    assert len(runner.calls) == len(rules), "no arm can differ, so none is run again"
    assert found.arms == ("routed", "true_routes", "gold_context")


def test_a_run_that_fails_on_a_wrong_route_is_the_routers_error(
    runner: Judge, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", row("odd easy broken"))
    found = evaluated(runner, path)
    assert found.charges()["all"]["router"] == 1
    assert "no answer" in str(found.rows[0].prediction["error"])


def test_a_row_whose_inputs_are_wrong_counts_nowhere(runner: Judge, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row("easy"), {**row("easy"), "inputs": {"rules": "x"}})
    found = evaluated(runner, path)
    assert (found.failed, len(found.targets)) == (1, 1)
    assert "must be a list" in str(found.rows[1].error)


def test_a_cancelled_run_ends_the_evaluation(runner: Judge, tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        evaluated(runner, write(tmp_path / "rows.jsonl", row("cancel")))


def test_intervals_draw_the_rows(runner: Judge, tmp_path: Path) -> None:
    rows = [row("odd easy" if n % 2 else "easy", id=f"r{n}") for n in range(12)]
    found = evaluated(runner, write(tmp_path / "rows.jsonl", *rows), resamples=100)
    gain = found.less_routed["true_routes"]
    assert gain.value == pytest.approx(0.5)
    assert gain.low is not None
    assert gain.high is not None
    assert 0.0 < gain.low < 0.5 < gain.high <= 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        ("{", "not valid JSON"),
        ('{"inputs": []}', "row 1: inputs"),
        ('{"inputs": {}, "expected": {"verdict": 1}}', "no output 'verdict' .*verdicts"),
        ('{"inputs": {}, "steps": {"juge": {}}}', "no step 'juge' .*judge"),
        ('{"inputs": {}, "steps": {"judge": {"skill": "nobody"}}}', "there is no skill 'nobody'"),
        ('{"inputs": {}, "steps": {"judge": {"output": 1}}}', "an output for each item"),
        ('{"inputs": {}, "steps": {"judge": {"spans": [[1]]}}}', "spans"),
        ('{"inputs": {}, "extra": 1}', "extra"),
        ('{"inputs": {}}', "no row says what is right"),
        ('{"id": 1, "inputs": {}}\n{"id": 1, "inputs": {}}', "occurs twice"),
    ],
)
def test_a_malformed_row_is_an_input_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_gold(path, SPEC, SKILLS)


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_gold(tmp_path / "none.jsonl", SPEC, SKILLS)


# ---------------------------------------------------------------- matching

values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a b", "c"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("xyz"), below),
    max_leaves=8,
)


@given(values)
def test_every_value_matches_itself(value) -> None:
    assert matches(value, value)


@pytest.mark.parametrize(
    ("expected", "actual", "right"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": None}, {"a": 1}, False),
        ([1, 2], [1, 2, 3], False),
        ([1, 2], [2, 1], False),
        ("a  b\n", "a b", True),
        ("a b", "A b", False),
        (1, True, False),
        (True, 1, False),
        (1, 1.0, True),
        (None, "", False),
        ({}, None, False),
    ],
)
def test_an_answer_matches_what_is_said_of_it(expected, actual, right) -> None:
    assert matches(expected, actual) is right
