"""Routes of real runs, and what people say of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agentkit.errors import CheckpointError, InputError
from agentkit.types import Query, StepCall, StepResult
from agentkit.workflow import resume, start
from agentkit.workflow.compile import CompiledWorkflow, compile_workflow
from agentkit.workflow.feedback import Feedback, lessons_of, probes_of
from agentkit.workflow.spec import parse_spec
from agentkit.workflow.store import RunStore

from .helpers import Documents, ShoutingRunner

WORKFLOW = """\
name: shouting
inputs:
  texts: {type: list}
steps:
  each:
    instruction: "Shout {{ item }}"
    on_uncertain: human
    for_each: inputs.texts
    input: {text: "{{ item }}"}
  named:
    skill: counter
    input: {text: all}
  once:
    instruction: Shout it all
    input: {text: all}
outputs:
  said: "{{ steps.once.output }}"
"""


class RoutingRunner(ShoutingRunner):
    """Says what it saw of a step that did not name its skill."""

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]:
        results = super().run(calls)
        return [
            replace(result, query=Query(call.instruction, "the start", ("counter", "shouter"), 0.4))
            if call.skill == "auto" and isinstance(result, StepResult)
            else result
            for call, result in zip(calls, results, strict=True)
        ]


@pytest.fixture
def compiled() -> CompiledWorkflow:
    return compile_workflow(parse_spec(WORKFLOW), RoutingRunner(), Documents())


@pytest.fixture
def store(tmp_path: Path):
    with RunStore(tmp_path / "runs.sqlite") as store:
        yield store


@pytest.fixture
def feedback(store: RunStore):
    with Feedback(store) as feedback:
        yield feedback


@pytest.fixture
def run(compiled: CompiledWorkflow, store: RunStore) -> str:
    return start(compiled, {"texts": ["a", "b"]}, store=store).id


def test_the_routes_of_a_run_are_recorded_with_what_the_controller_saw(
    feedback: Feedback, run: str
) -> None:
    routes = feedback.routes()
    assert [(one.step, one.item, one.query.instruction) for one in routes] == [
        ("each", 0, "Shout a"),
        ("each", 1, "Shout b"),
        ("once", None, "Shout it all"),
    ]
    for one in routes:
        assert (one.run, one.skill, one.score) == (run, "shouter", 0.9)
        assert one.query.excerpt == "the start"
        assert one.query.candidates == ("counter", "shouter")
        assert one.query.threshold == 0.4
        assert (one.outcome, one.right, one.lesson) == (None, None, None)
    assert routes[1].place == f"run {run} step each item 1"


def test_what_was_said_of_runs_before_the_latest_is_not_forgotten(
    feedback: Feedback, compiled: CompiledWorkflow, store: RunStore, run: str
) -> None:
    feedback.correct(run, "once", "counter")
    start(compiled, {"texts": ["c"]}, store=store)
    latest, judged = feedback.routes(1), feedback.routes(1, judged=True)
    assert run not in {one.run for one in latest}
    assert [(one.run, one.right) for one in judged if one not in latest] == [(run, "counter")]


def test_a_route_that_another_program_changed_is_named(
    feedback: Feedback, store: RunStore, run: str
) -> None:
    with sqlite3.connect(store.path) as connection:
        (name,) = connection.execute(
            "SELECT name FROM sqlite_master WHERE sql LIKE '%record TEXT%'"
        ).fetchone()
        connection.execute(f"UPDATE {name} SET record = json_remove(record, '$.route.score')")
    with pytest.raises(CheckpointError, match=r"route of step .* cannot be read"):
        feedback.routes()


def test_what_is_said_of_a_route_is_kept_and_can_be_said_anew(
    feedback: Feedback, store: RunStore, run: str
) -> None:
    assert feedback.accept(run, "once").lesson.corrected is False
    corrected = feedback.correct(run, "each", "counter", 1)
    assert (corrected.outcome, corrected.right, corrected.skill) == (
        "corrected",
        "counter",
        "shouter",
    )
    assert feedback.correct(run, "once", None).right is None
    with Feedback(store) as again:
        said = {(one.step, one.item): (one.outcome, one.right) for one in again.routes()}
    assert said == {
        ("each", 0): (None, None),
        ("each", 1): ("corrected", "counter"),
        ("once", None): ("corrected", None),
    }
    assert feedback.correct(run, "once", "shouter").outcome == "accepted"


def test_a_decision_at_a_step_that_waited_is_a_correction(
    compiled: CompiledWorkflow, store: RunStore, feedback: Feedback
) -> None:
    waiting = start(compiled, {"texts": ["odd one", "b"]}, store=store)
    assert waiting.status == "waiting"
    assert [one.item for one in feedback.routes()] == [1]
    outcome = resume(compiled, waiting.id, {"items": {"0": "counter"}}, store=store)
    assert outcome.status == "done"
    first = feedback.routes()[-2]
    assert first.query.instruction == "Shout odd one"
    assert (first.skill, first.outcome, first.right) == (None, "corrected", "counter")
    assert first.lesson is not None
    assert first.lesson.corrected
    assert feedback.correct(waiting.id, "each", "shouter", 0).right == "shouter"


def test_lessons_come_in_the_order_in_which_they_were_said(
    compiled: CompiledWorkflow, store: RunStore, feedback: Feedback
) -> None:
    first, second = (start(compiled, {"texts": []}, store=store).id for _ in range(2))
    feedback.correct(second, "once", "counter")
    feedback.correct(first, "once", None)
    assert [lesson.skill for lesson in lessons_of(feedback.routes())] == ["counter", None]


def test_a_query_that_came_up_often_is_one_probe(
    compiled: CompiledWorkflow, store: RunStore, feedback: Feedback
) -> None:
    runs = [start(compiled, {"texts": ["a"]}, store=store).id for _ in range(3)]
    routes = feedback.routes()
    assert len(routes) == 6
    probes = {probe.query.instruction: probe.source for probe in probes_of(routes)}
    assert probes == {
        "Shout a": f"run {runs[-1]} step each item 0",
        "Shout it all": f"run {runs[-1]} step once",
    }
    assert {one.run for one in feedback.routes(1)} == {runs[-1]}


@pytest.mark.parametrize(
    ("step", "item", "said"),
    [
        ("named", None, "no recorded route of a step 'named'"),
        ("other", None, "routed steps: each, once"),
        ("each", None, "has 2 items"),
        ("each", 2, "routed items: 0, 1"),
        ("once", 0, "no routed item 0"),
    ],
)
def test_a_route_that_is_not_there_cannot_be_judged(
    feedback: Feedback, run: str, step: str, item: int | None, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        feedback.correct(run, step, "counter", item)
    assert said in str(caught.value)
    with pytest.raises(InputError, match="no run 'nowhere'"):
        feedback.accept("nowhere", "once")


def test_a_database_of_before_gains_the_table_and_keeps_its_runs(
    compiled: CompiledWorkflow, tmp_path: Path
) -> None:
    path = tmp_path / "runs.sqlite"
    with RunStore(path) as store:
        run = start(compiled, {"texts": []}, store=store).id
    with sqlite3.connect(path) as connection:
        # as a version that did not record what the controller saw left it
        connection.execute("UPDATE step_results SET record = json_remove(record, '$.query')")
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert ("route_outcomes",) not in tables
    with RunStore(path) as store, Feedback(store) as feedback:
        assert feedback.routes() == []
        with pytest.raises(InputError, match="no recorded route"):
            feedback.accept(run, "once")
        assert store.show(run).status == "done"


def test_two_stores_on_one_file_see_what_the_other_was_told(
    feedback: Feedback, store: RunStore, run: str
) -> None:
    with RunStore(store.path) as other, Feedback(other) as elsewhere:
        elsewhere.correct(run, "once", "counter")
    assert feedback.routes()[-1].right == "counter"


def test_a_damaged_database_is_said_to_be_so(tmp_path: Path, compiled: CompiledWorkflow) -> None:
    path = tmp_path / "runs.sqlite"
    with RunStore(path) as store:
        start(compiled, {"texts": ["a"]}, store=store)
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE route_outcomes (run TEXT)")
        with Feedback(store) as feedback, pytest.raises(CheckpointError, match="damaged"):
            feedback.routes()
