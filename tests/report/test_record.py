"""What a report says of its run comes from the run's own records."""

from collections.abc import Sequence

from agentkit.report.record import run_of
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.store import FileDocumentStore
from agentkit.types import Route, StepCall, StepResult, Usage
from agentkit.workflow import Workflow
from agentkit.workflow.compile import compile_workflow
from agentkit.workflow.run import start
from agentkit.workflow.store import RunStore


class Shouting:
    """Answers in capitals, and abstains from what it is told to leave alone."""

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]:
        return [self._one(call) for call in calls]

    def _one(self, call: StepCall) -> StepResult:
        abstained = "leave" in call.instruction
        return StepResult(
            step=call.step,
            output=str(call.input["text"]).upper(),
            route=Route(None if abstained else "shouter", 0.9, abstained, "said so"),
            skill=None if abstained else "shouter",
            digest=None if abstained else "d" * 64,
            usage=Usage(10, 2, 4),
            seconds=0.5,
            item=call.item,
        )


def workflow() -> Workflow:
    made = Workflow("shout").input("words", "list")
    made.step("say", for_each="inputs.words", instruction="say it", input={"text": "{{ item }}"})
    made.step("shaped", for_each="steps.say", set={"name": "{{ item.output }}"})
    made.step("other", instruction="leave it", input={"text": "x"})
    made.output("facts", "{{ steps.shaped | map(attribute='output') }}")
    made.output("tasks", "{{ [steps.other.output] }}")
    return made


def test_a_run_says_its_time_tokens_routes_and_where_each_part_came_from(tmp_path) -> None:
    documents = FileDocumentStore(tmp_path / "documents")
    documents.put(document_from_text("x"))
    compiled = compile_workflow(workflow().spec(), Shouting(), documents)
    with RunStore(tmp_path / "runs.sqlite") as store:
        outcome = start(compiled, {"words": ["a", "b"]}, store=store, skills={"shouter": "d" * 64})
        run = run_of(outcome, store.show(outcome.id), compiled.program)
    assert run["tokens"] == {"prompt": 30, "completion": 6, "cached": 12}
    assert run["seconds"]["say"] == 1.0
    assert [(r["step"], r["item"], r["skill"]) for r in run["routes"]] == [
        ("say", 0, "shouter"),
        ("say", 1, "shouter"),
        ("other", None, None),
    ]
    assert run["sources"] == {"facts": ["say"], "tasks": ["other"]}
    assert run["notes"] == {"tasks": "step other: said so"}
    assert run["warnings"] == []
    assert run["skills"] == {"shouter": "d" * 64}
