"""Skills and a workflow as nodes of a plain LangGraph graph.

    python examples/skill_in_langgraph.py

The graph is the user's own: `facts` is one skill, `duties` a whole agentkit workflow, and `letter`
an ordinary function. State holds a reference to the document, never its text.
"""

from pathlib import Path
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from agentkit import Kit, Workflow, document_reference, skill_node

HERE = Path(__file__).parent
DUTIES = [
    "The receiving party shall keep the confidential information secret.",
    "The receiving party shall return or destroy the confidential information.",
]


class State(TypedDict, total=False):
    """What the nodes share."""

    contract: dict[str, str]
    duties: list[str]
    parsed: dict[str, Any]
    verdicts: list[dict[str, Any]]
    letter: str


def duties_workflow() -> Workflow:
    """A verdict for each duty of a list."""
    workflow = Workflow("duties").input("document", "document").input("duties", "list")
    workflow.step(
        "check",
        for_each="inputs.duties",
        skill="compliance-review",
        input={"rule": "{{ item }}", "document": "{{ inputs.document }}"},
    )
    return workflow.output("verdicts", "{{ steps.check | map(attribute='output') }}")


def write_letter(state: State) -> State:
    """An ordinary node."""
    parties = [fact["value"] for fact in state["parsed"]["facts"] if fact["name"] == "Parties"]
    lines = [f"Parties: {'; '.join(parties) or 'none found'}"]
    for duty, verdict in zip(state["duties"], state["verdicts"], strict=True):
        lines.append(f"{verdict['verdict']} ({verdict['score']:.2f}): {duty}")
        lines += [f'    "{piece["quote"]}"' for piece in verdict["evidence"][:1]]
    return {"letter": "\n".join(lines)}


def main() -> None:
    """Build the graph, run it, and print the letter."""
    with Kit() as kit:
        facts = skill_node(
            kit.runner(), "contract-parsing", input={"document": "contract"}, output="parsed"
        )
        duties = kit.compile(duties_workflow().spec()).as_node(
            {"document": "contract", "duties": "duties"}, {"verdicts": "verdicts"}
        )
        graph = StateGraph(State)
        graph.add_node("facts", facts)
        graph.add_node("duties", duties)
        graph.add_node("letter", write_letter)
        graph.add_edge(START, "facts")
        graph.add_edge(START, "duties")
        graph.add_edge(["facts", "duties"], "letter")
        graph.add_edge("letter", END)

        contract = kit.read(HERE / "documents" / "nda.md")
        app = graph.compile()
        final = app.invoke({"contract": document_reference(contract), "duties": DUTIES})
        print(final["letter"])


if __name__ == "__main__":
    main()
