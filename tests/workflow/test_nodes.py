from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command

from agentkit.errors import EngineError, InputError, RunError
from agentkit.workflow import Workflow, skill_node, skill_runnable

from .helpers import Documents, ShoutingRunner


class State(TypedDict, total=False):
    words: str
    loud: Any


def outer(node, **kwargs):
    graph = StateGraph(State)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile(**kwargs)


def shouting(**kwargs):
    return (
        Workflow("shouting")
        .input("text")
        .step("shout", instruction="Shout.", input={"text": "{{ inputs.text }}"}, **kwargs)
        .output("loud", "{{ steps.shout.output }}")
    )


def test_a_skill_is_a_node():
    node = skill_node(ShoutingRunner(), "shouter", input={"text": "words"}, output="loud")
    assert outer(node).invoke({"words": "hi"}) == {"words": "hi", "loud": "HI"}


def test_a_workflow_is_a_node():
    workflow = shouting().compile(ShoutingRunner(), Documents())
    node = workflow.as_node({"text": "words"}, {"loud": "loud"})
    assert outer(node).invoke({"words": "hi"}) == {"words": "hi", "loud": "HI"}
    with pytest.raises(InputError, match="no input 'txt'"):
        workflow.as_node({"txt": "words"}, {})
    with pytest.raises(InputError, match="no output 'quiet'"):
        workflow.as_node({}, {"loud": "quiet"})


def test_an_approval_reaches_the_outer_graph():
    workflow = shouting(on_uncertain="human").compile(ShoutingRunner(), Documents())
    graph = outer(
        workflow.as_node({"text": "words"}, {"loud": "loud"}), checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "1"}}
    asked = graph.invoke({"words": "odd"}, config)
    assert asked["__interrupt__"][0].value["step"] == "shout"
    assert graph.invoke(Command(resume="counter"), config)["loud"] == 3


def test_an_approval_that_nobody_can_give_is_an_error():
    workflow = shouting(on_uncertain="human").compile(ShoutingRunner(), Documents())
    with pytest.raises(RunError, match="checkpointer"):
        workflow.as_node({"text": "words"}, {"loud": "loud"})({"words": "odd"})


def test_attempts_share_results_and_leave_nothing_behind():
    runner = ShoutingRunner(fail={"b": 1})
    graph = (
        Workflow("each")
        .step(
            "shout",
            skill="shouter",
            for_each="['a', 'b']",
            input={"text": "{{ item }}"},
            retry={"attempts": 2, "delay_seconds": 0},
        )
        .compile(runner, Documents())
        .graph
    )
    graph.invoke({"inputs": {}})
    assert runner.texts == ["a", "b", "b"]


def test_the_compiled_graph_is_a_langgraph_graph():
    graph = shouting().compile(ShoutingRunner(), Documents()).graph
    state = graph.invoke({"inputs": {"text": "hi"}})
    assert state["outputs"] == {"loud": "HI"}
    assert set(graph.get_graph().nodes) >= {"shout"}


def test_a_skill_is_a_runnable_and_batches_rows_together():
    runner = ShoutingRunner(fail={"bad": 1})
    runnable = skill_runnable(runner, "counter")
    assert runnable.invoke({"text": "abc"}) == 3
    assert runnable.batch([{"text": "a"}, {"text": "ab"}]) == [1, 2]
    assert [len(batch) for batch in runner.batches] == [1, 2]
    assert (runnable | (lambda n: n + 1)).invoke({"text": "abc"}) == 4
    mixed = runnable.batch([{"text": "bad"}, {"text": "a"}], return_exceptions=True)
    assert isinstance(mixed[0], EngineError)
    assert mixed[1] == 1
    assert runnable.batch([]) == []
    runner.fail["bad"] = 1
    with pytest.raises(EngineError, match="no answer for bad"):
        runnable.batch([{"text": "bad"}])
