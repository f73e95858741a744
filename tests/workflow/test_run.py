import json
import threading

import pytest

from agentkit.errors import (
    CancelledError,
    CheckpointError,
    ExpressionError,
    InputError,
    LimitError,
    RunError,
    SkillError,
)
from agentkit.workflow import (
    RunStore,
    Workflow,
    compile_workflow,
    parse_spec,
    resume,
    start,
    stream,
)

from .helpers import SKILLS, Documents, ShoutingRunner, StreamingShoutingRunner, document


def compiled(text, runner, **kwargs):
    return compile_workflow(parse_spec(text, name="w.yaml"), runner, Documents(), **kwargs)


EACH = """
name: each
inputs:
  rules: {type: list}
steps:
  review:
    skill: shouter
    for_each: inputs.rules
    input: {text: "{{ item }}", place: "{{ index }}"}
  joined:
    for_each: enumerate(steps.review)
    set: {rule: "{{ item[1].item }}", said: "{{ item[1].output }}", place: "{{ item[0] }}"}
outputs:
  said: "{{ steps.joined | map(attribute='output.said') }}"
  first: "{{ steps.joined[0].output }}"
  text: "run {{ run.id }}"
"""


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path / "runs.sqlite") as opened:
        yield opened


def test_a_workflow_runs_its_items_together_and_computes_its_outputs(store):
    runner = ShoutingRunner()
    outcome = start(
        compiled(EACH, runner),
        {"rules": ["a", "b", "c"]},
        store=store,
        run_id="r1",
        skills=SKILLS,
        backbone="tiny",
    )
    assert outcome.status == "done"
    assert outcome.outputs == {
        "said": ["A", "B", "C"],
        "first": {"rule": "a", "said": "A", "place": 0},
        "text": "run r1",
    }
    assert [len(batch) for batch in runner.batches] == [3]
    record = store.show("r1")
    assert (record.status, record.skills, record.backbone) == ("done", SKILLS, "tiny")
    assert [(step["step"], step["item"]) for step in record.steps] == [
        *(("review", item) for item in range(3)),
        *(("joined", item) for item in range(3)),
    ]


def test_state_and_records_hold_references_never_document_text(store):
    text = """
name: reads
inputs: {document: {type: document}}
steps:
  read: {skill: shouter, input: {document: "{{ inputs.document }}", text: hello}}
outputs: {who: "{{ steps.read.citations[0].chunk }}"}
"""
    runner = ShoutingRunner()
    workflow = compiled(text, runner)
    deed = document("the whole text of the deed")
    outcome = start(workflow, {"document": deed}, store=store)
    assert outcome.outputs == {"who": "c:0-4"}
    assert runner.batches[0][0].input["document"] == {
        "$document": deed.digest,
        "source": "deed.txt",
    }
    assert workflow.documents.get(deed.digest) == deed
    raw = store.path.read_bytes() + store.path.with_name("runs.sqlite-wal").read_bytes()
    assert b"whole text" not in raw
    assert b"SECRET TEXT" not in raw


def test_an_empty_list_gives_an_empty_list_without_a_call():
    runner = ShoutingRunner()
    text = EACH[: EACH.index("outputs:")]
    assert compiled(text, runner).run({"rules": []}).steps["review"] == []
    assert runner.batches == []


def test_a_step_whose_when_is_false_is_none_and_later_steps_still_run():
    text = """
name: maybe
inputs: {go: {type: boolean}}
steps:
  maybe: {skill: shouter, when: inputs.go, input: {text: hi}}
  after: {set: {was: "{{ steps.maybe.output if steps.maybe else 'skipped' }}"}}
outputs: {was: "{{ steps.after.output.was }}"}
"""
    workflow = compiled(text, ShoutingRunner())
    assert workflow.run({"go": False}).outputs == {"was": "skipped"}
    assert workflow.run({"go": False}).steps["maybe"] is None
    assert workflow.run({"go": True}).outputs == {"was": "HI"}


def test_branches_that_need_nothing_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=20)
    runner = ShoutingRunner(
        before=lambda call: meeting.wait() if call.input["text"] == "meet" else None
    )
    text = """
name: branches
steps:
  left: {skill: shouter, input: {text: meet}}
  right: {skill: counter, needs: [], input: {text: meet}}
  join: {set: {both: ["{{ steps.left.output }}", "{{ steps.right.output }}"]}}
outputs: {both: "{{ steps.join.output.both }}"}
"""
    assert compiled(text, runner).run({}).outputs == {"both": ["MEET", 4]}


RETRY = """
name: retry
inputs: {rules: {type: list}}
steps:
  try:
    skill: shouter
    for_each: inputs.rules
    retry: {attempts: 3, delay_seconds: 0}
    input: {text: "{{ item }}"}
outputs: {said: "{{ steps.try | map(attribute='output', default='-') }}"}
"""


@pytest.mark.parametrize("in_store", [True, False])
def test_only_what_failed_is_tried_again(store, in_store):
    runner = ShoutingRunner(fail={"b": 2})
    workflow = compiled(RETRY, runner)
    if in_store:
        outputs = start(workflow, {"rules": ["a", "b", "c"]}, store=store).outputs
    else:
        outputs = workflow.graph.invoke({"inputs": {"rules": ["a", "b", "c"]}})["outputs"]
    assert outputs == {"said": ["A", "B", "C"]}
    assert runner.texts == ["a", "b", "c", "b", "b"]


def test_an_item_that_keeps_failing_is_recorded_and_the_run_goes_on(store):
    outcome = start(
        compiled(RETRY, ShoutingRunner(fail={"b": 9})), {"rules": ["a", "b"]}, store=store
    )
    assert outcome.status == "done"
    assert outcome.outputs == {"said": ["A", "-"]}
    ((step, item, error),) = outcome.failures
    assert (step, item) == ("try", 1)
    assert "step 'try': no answer for b" in error


def test_a_wrong_input_is_not_tried_again(store):
    runner = ShoutingRunner(fail={"a": 9}, error=LimitError)
    outcome = start(compiled(RETRY, runner), {"rules": ["a"]}, store=store)
    assert outcome.status == "failed"
    assert isinstance(outcome.error, LimitError)
    assert runner.texts == ["a"]


def test_a_step_whose_items_all_fail_fails_the_run_and_resume_tries_again(store):
    runner = ShoutingRunner(fail={"a": 3, "b": 3})
    workflow = compiled(RETRY, runner)
    outcome = start(workflow, {"rules": ["a", "b"]}, store=store, run_id="r")
    assert outcome.status == "failed"
    assert store.show("r").status == "failed"
    assert "no answer for a" in store.show("r").error
    assert resume(workflow, "r", store=store).outputs == {"said": ["A", "B"]}
    assert store.show("r").status == "done"
    assert store.show("r").error is None


def test_a_cancelled_call_ends_the_step_at_once(store):
    runner = ShoutingRunner(fail={"b": 9}, error=CancelledError)
    outcome = start(compiled(RETRY, runner), {"rules": ["a", "b"]}, store=store)
    assert isinstance(outcome.error, CancelledError)
    assert runner.texts == ["a", "b"]


def test_an_error_that_is_not_ours_names_its_step(store):
    runner = ShoutingRunner(fail={"hi": 1}, error=KeyError)
    text = "name: one\nsteps:\n  only: {skill: shouter, input: {text: hi}}\n"
    with pytest.raises(RunError, match="step 'only': KeyError"):
        compiled(text, runner).run({}, store=store)


def test_an_expression_that_fails_says_its_place(store):
    text = 'name: one\nsteps:\n  only: {set: {a: "{{ 1 / 0 }}"}}\n'
    outcome = start(compiled(text, ShoutingRunner()), {}, store=store)
    assert isinstance(outcome.error, ExpressionError)
    assert str(outcome.error).startswith("w.yaml:3:19: {{ 1 / 0 }}: division by zero")


ASK = """
name: ask
inputs: {rules: {type: list}}
steps:
  pick:
    instruction: Do it.
    on_uncertain: human
    for_each: inputs.rules
    input: {text: "{{ item }}"}
  after: {skill: counter, input: {text: "{{ steps.pick | map(attribute='output') | join }}"}}
outputs:
  said: "{{ steps.pick | map(attribute='output') }}"
  skills: "{{ steps.pick | map(attribute='skill', default='-') }}"
  count: "{{ steps.after.output }}"
"""


def test_a_run_waits_for_a_person_and_goes_on_with_the_skill_they_choose(store):
    runner = ShoutingRunner()
    workflow = compiled(ASK, runner)
    waiting = start(workflow, {"rules": ["even", "odd one"]}, store=store, run_id="r")
    assert waiting.status == "waiting"
    assert store.show("r").status == "waiting"
    ((question),) = waiting.waiting
    assert question["step"] == "pick"
    assert [entry["item"] for entry in question["items"]] == ["odd one"]
    assert [step["item"] for step in store.show("r").steps] == [0]
    done = resume(workflow, "r", "counter", store=store)
    assert done.status == "done"
    assert done.outputs == {"said": ["EVEN", 7], "skills": ["shouter", "counter"], "count": 5}
    assert runner.texts == ["even", "odd one", "odd one", "EVEN7"]
    assert [(s["step"], s["item"]) for s in store.show("r").steps] == [
        ("pick", 0),
        ("pick", 1),
        ("after", None),
    ]


def test_a_person_can_give_the_output_of_each_item(store):
    workflow = compiled(ASK, ShoutingRunner())
    start(workflow, {"rules": ["odd a", "odd b"]}, store=store, run_id="r")
    value = {"items": {"0": {"output": "mine"}, "1": "shouter"}}
    assert resume(workflow, "r", value, store=store).outputs["said"] == ["mine", "ODD B"]


@pytest.mark.parametrize(
    "value", ["Not A Skill", {"skil": "x"}, {"items": {"7": "x"}}, {"items": 3}, 4, {"steps": 1}]
)
def test_a_malformed_decision_is_refused_and_can_be_given_again(store, value):
    workflow = compiled(ASK, ShoutingRunner())
    start(workflow, {"rules": ["odd a"]}, store=store, run_id="r")
    with pytest.raises(InputError):
        resume(workflow, "r", value, store=store)
    assert store.show("r").status == "waiting"
    assert resume(workflow, "r", store=store).status == "waiting"
    assert resume(workflow, "r", "counter", store=store).status == "done"


def test_a_decision_for_a_skill_that_fails_can_be_resumed(store):
    runner = ShoutingRunner()
    workflow = compiled(ASK, runner)
    start(workflow, {"rules": ["odd a"]}, store=store, run_id="r")
    runner.fail["odd a"] = 1
    assert resume(workflow, "r", "counter", store=store).status == "failed"
    assert resume(workflow, "r", store=store).outputs["said"] == [5]


def test_a_decision_for_a_skill_that_is_not_there_leaves_the_run_waiting(store):
    workflow = compiled(ASK, ShoutingRunner())
    start(workflow, {"rules": ["odd a"]}, store=store, run_id="r", skills=SKILLS)
    for value in ("countr", {"skill": "countr"}, {"items": {"0": "countr"}}):
        with pytest.raises(InputError, match="no skill 'countr' \\(did you mean 'counter'"):
            resume(workflow, "r", value, store=store)
    assert store.show("r").status == "waiting"
    assert resume(workflow, "r", "base", store=store).outputs["said"] == ["ODD A"]


@pytest.mark.parametrize("skills", [SKILLS, None])
def test_a_decision_that_could_not_be_carried_out_gives_way_to_the_next(store, skills):
    runner = ShoutingRunner()
    workflow = compiled(ASK, runner)
    start(workflow, {"rules": ["odd a"]}, store=store, run_id="r", skills=skills)
    runner.fail["odd a"] = 2
    first = "counter" if skills else "nobody"
    assert resume(workflow, "r", first, store=store).status == "failed"
    if skills:
        assert resume(workflow, "r", "shouter", store=store).status == "failed"
        runner.fail.clear()
        # Without a new one it is the latest that is carried out.
        assert resume(workflow, "r", store=store).outputs["said"] == ["ODD A"]
    else:
        runner.fail.clear()
        assert resume(workflow, "r", "shouter", store=store).outputs["said"] == ["ODD A"]


def test_whole_numbers_of_any_size_pass_through_a_run(store):
    text = """
name: large
inputs: {n: {type: number}, rules: {type: list}}
steps:
  more: {set: {n: "{{ inputs.n * 2 }}", low: "{{ 0 - inputs.n }}"}}
  pick: {instruction: x, on_uncertain: human, for_each: inputs.rules, input: {text: "odd"}}
outputs: {n: "{{ steps.more.output.n }}", low: "{{ steps.more.output.low }}"}
"""
    workflow = compiled(text, ShoutingRunner())
    given = {"n": 2**70, "rules": [2**80]}
    waiting = start(workflow, given, store=store, run_id="r")
    assert waiting.status == "waiting", waiting.error
    ((question),) = waiting.waiting
    assert question["items"][0]["item"] == 2**80
    assert resume(workflow, "r", "counter", store=store).outputs == {"n": 2**71, "low": -(2**70)}


def test_the_wait_between_tries_doubles_as_long_as_it_was_asked_for():
    text = """
name: patient
steps:
  one:
    skill: shouter
    input: {text: a}
    retry: {attempts: 4, delay_seconds: 600}
"""
    ((_, node),) = [
        (name, node)
        for name, node in compiled(text, ShoutingRunner()).graph.builder.nodes.items()
        if name == "one"
    ]
    policy = node.retry_policy
    waits = [
        min(policy.max_interval, policy.initial_interval * policy.backoff_factor**at)
        for at in range(3)
    ]
    assert waits == [600, 1200, 2400]


def test_several_waiting_steps_take_a_decision_each(store):
    text = """
name: two
steps:
  a: {instruction: x, on_uncertain: human, input: {text: odd a}}
  b: {instruction: x, on_uncertain: human, needs: [], input: {text: odd b}}
outputs: {both: ["{{ steps.a.output }}", "{{ steps.b.output }}"]}
"""
    workflow = compiled(text, ShoutingRunner())
    assert len(start(workflow, {}, store=store, run_id="r").waiting) == 2
    with pytest.raises(InputError, match="several steps wait: a, b"):
        resume(workflow, "r", "counter", store=store)
    half = resume(workflow, "r", {"steps": {"b": "shouter"}}, store=store)
    assert half.status == "waiting"
    assert [entry["step"] for entry in half.waiting] == ["a"]
    assert resume(workflow, "r", {"output": 1}, store=store).outputs == {"both": [1, "ODD B"]}


def test_an_approval_is_passed_where_nobody_is_asked(store):
    text = """
name: quiet
steps:
  never: {instruction: x, on_uncertain: human, when: "false", input: {text: odd}}
  sure: {instruction: x, on_uncertain: human, input: {text: even}}
outputs: {all: ["{{ steps.never }}", "{{ steps.sure.output }}"]}
"""
    assert compiled(text, ShoutingRunner()).run({}, store=store).outputs == {"all": [None, "EVEN"]}


def test_a_runner_may_hand_out_results_as_they_get_ready(store):
    seen = []
    runner = StreamingShoutingRunner(fail={"b": 1})
    outcome = start(
        compiled(EACH, runner),
        {"rules": ["a", "b", "c"]},
        store=store,
        on_event=lambda event: seen.append((event.kind, event.item, event.error is None)),
    )
    assert outcome.outputs["said"] == ["A", None, "C"]
    assert [entry for entry in seen if entry[0] == "item_done"] == [
        ("item_done", 2, True),
        ("item_done", 0, True),
        ("item_done", 1, False),
    ]


class Forgetful(StreamingShoutingRunner):
    def stream(self, calls):
        yield from list(super().stream(calls))[1:]


class Repeating(StreamingShoutingRunner):
    def stream(self, calls):
        yield from [*super().stream(calls)] * 2


class Short(ShoutingRunner):
    def run(self, calls):
        return super().run(calls)[1:]


@pytest.mark.parametrize("kind", [Forgetful, Repeating, Short])
def test_a_runner_that_does_not_answer_each_call_once_is_an_error(store, kind):
    outcome = start(compiled(EACH, kind()), {"rules": ["a", "b"]}, store=store)
    assert isinstance(outcome.error, RunError)
    assert "the step runner" in str(outcome.error)


def test_events_tell_what_happens(store):
    seen = []
    start(
        compiled(EACH, ShoutingRunner()),
        {"rules": ["a", "b"]},
        store=store,
        on_event=lambda event: seen.append((event.kind, event.step, event.item)),
    )
    assert seen == [
        ("run_started", None, None),
        ("step_started", "review", None),
        ("item_done", "review", 0),
        ("item_done", "review", 1),
        ("step_finished", "review", None),
        ("step_started", "joined", None),
        ("step_finished", "joined", None),
        ("run_finished", None, None),
    ]


def test_a_consumer_that_stops_leaves_the_run_interrupted_and_resumable(store):
    workflow = compiled(EACH, ShoutingRunner())
    events = stream(workflow, {"rules": ["a"]}, store=store, run_id="r")
    for event in events:
        if event.kind == "item_done":
            break
    events.close()
    assert store.show("r").status == "interrupted"
    assert resume(workflow, "r", store=store).outputs["said"] == ["A"]


def test_a_keyboard_interrupt_marks_the_run_and_goes_through(store):
    def interrupt(event):
        if event.kind == "step_started":
            raise KeyboardInterrupt

    workflow = compiled(EACH, ShoutingRunner())
    with pytest.raises(KeyboardInterrupt):
        start(workflow, {"rules": ["a"]}, store=store, run_id="r", on_event=interrupt)
    assert store.show("r").status == "interrupted"
    assert resume(workflow, "r", store=store).status == "done"


def test_a_finished_run_gives_its_outcome_again_without_work(store):
    runner = ShoutingRunner()
    workflow = compiled(EACH, runner)
    first = start(workflow, {"rules": ["a"]}, store=store, run_id="r")
    again = resume(workflow, "r", store=store)
    assert again.outputs == first.outputs
    assert again.steps == first.steps
    assert len(runner.batches) == 1
    with pytest.raises(InputError, match="does not wait"):
        resume(
            compiled(RETRY, runner),
            start(compiled(RETRY, ShoutingRunner(fail={"a": 9})), {"rules": ["a"]}, store=store).id,
            "x",
            store=store,
        )


def test_a_run_goes_on_only_with_the_workflow_it_began_with(store):
    start(compiled(EACH, ShoutingRunner()), {"rules": ["a"]}, store=store, run_id="r")
    with pytest.raises(CheckpointError, match="another version"):
        resume(compiled(EACH.replace("run {{", "{{"), ShoutingRunner()), "r", store=store)


def test_a_workflow_can_be_read_back_from_its_run(store):
    workflow = compiled(EACH, ShoutingRunner())
    start(workflow, {"rules": ["a"]}, store=store, run_id="r")
    again = compile_workflow(parse_spec(store.spec("r")[0]), ShoutingRunner(), Documents())
    assert resume(again, "r", store=store).status == "done"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "needs the input 'rules'"),
        ({"rules": "x"}, "must be a list"),
        ({"rules": [], "rulez": 1}, "did you mean 'rules'"),
        ({"rules": [object()]}, "not plain data"),
    ],
)
def test_wrong_inputs_are_refused_before_a_run_begins(store, given, word):
    with pytest.raises(InputError, match=word):
        start(compiled(EACH, ShoutingRunner()), given, store=store)
    assert store.list() == ()


def test_readers_turn_paths_into_values(tmp_path):
    path = tmp_path / "deed.txt"
    path.write_text("some deed")
    workflow = (
        Workflow("reads")
        .input("document", "document")
        .input("playbook", "playbook", default="plain")
        .step("see", set={"source": "{{ inputs.document.source }}", "p": "{{ inputs.playbook }}"})
        .output("seen", "{{ steps.see.output }}")
        .compile(
            ShoutingRunner(),
            Documents(),
            readers={
                "document": lambda given: document(given.read_text(), given.name),
                "playbook": lambda given: {"rules": [given]},
            },
        )
    )
    outcome = workflow.run({"document": path})
    assert outcome.outputs["seen"] == {"source": "deed.txt", "p": {"rules": ["plain"]}}
    with pytest.raises(InputError, match="must be a Document"):
        workflow.run({"document": 3})


def test_a_report_is_made_of_templates():
    text = (
        EACH + "report:\n  title: Rules\n  rows: \"{{ steps.joined | map(attribute='output') }}\"\n"
    )
    outcome = compiled(text, ShoutingRunner()).run({"rules": ["a"]})
    assert outcome.report == {"title": "Rules", "rows": [{"rule": "a", "said": "A", "place": 0}]}


def test_calls_carry_what_the_step_says():
    text = """
name: all
inputs: {q: {type: text}}
steps:
  only:
    instruction: "Find {{ inputs.q }}.\\n"
    on_uncertain: fail
    threshold: 0.4
    context: {index: "shelf/{{ inputs.q }}", query: "about {{ inputs.q }}", top_k: 3,
      budget: 64, mode: excerpts}
    input: {text: "{{ inputs.q }}", n: 3}
"""
    runner = ShoutingRunner()
    compiled(text, runner).run({"q": "dates"})
    (call,) = runner.batches[0]
    assert (call.instruction, call.skill, call.on_uncertain) == ("Find dates.", "auto", "fail")
    assert (call.threshold, call.item, call.input) == (0.4, None, {"text": "dates", "n": 3})
    assert call.context is not None
    assert (call.context.index, call.context.query) == ("shelf/dates", "about dates")
    assert (call.context.top_k, call.context.budget, call.context.mode) == (3, 64, "excerpts")


def test_a_missing_skill_at_run_time_fails_the_run(store):
    text = "name: one\nsteps:\n  only: {skill: gone, input: {text: hi}}\n"
    outcome = start(compiled(text, ShoutingRunner()), {}, store=store)
    assert isinstance(outcome.error, SkillError)


def test_records_are_plain_json(store):
    outcome = start(compiled(EACH, ShoutingRunner()), {"rules": ["a"]}, store=store)
    assert json.loads(json.dumps(outcome.steps)) == outcome.steps
