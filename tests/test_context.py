"""What a step is shown of several sources: shares of the budget, filters, nothing twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from agentkit.context import ContextBuilder
from agentkit.errors import InputError, WorkflowError
from agentkit.prompt import token_counter
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.store import FileDocumentStore
from agentkit.settings import Settings
from agentkit.skill.manifest import ChoiceAnswer, GenerateAnswer, MarksAnswer, RetrievalDefaults
from agentkit.testing import FakeEncoder
from agentkit.types import ContextSpec
from agentkit.workflow.spec import parse_spec, to_yaml
from agentkit.workflow.steps import Work, call_of

QUERY = "copies of the drawings"
AGREEMENT = "\n\n".join(
    f"{number}. Duty\nThe maker keeps {number} copies of the drawings." for number in range(1, 9)
)


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    settings = Settings(home=tmp_path)
    return Retriever(FakeEncoder(), settings, FileDocumentStore(tmp_path / "documents"))


@pytest.fixture
def collections(retriever: Retriever, tmp_path: Path) -> tuple[str, str]:
    texts = {
        "policies": ["Copies of the drawings need a licence.", "Masks are worn in the shop."],
        "precedents": ["Copies of the drawings need a licence.", "We lost over copies in 2001."],
    }
    for name, lines in texts.items():
        (tmp_path / name).mkdir()
        for number, line in enumerate(lines):
            (tmp_path / name / f"{name}-{number}.txt").write_text(line + "\n")
        retriever.build_index([tmp_path / name], name)
    return "policies", "precedents"


@pytest.fixture
def show(retriever: Retriever, tiny_tokenizer, tmp_path: Path):
    count = token_counter(tiny_tokenizer)
    engine = SimpleNamespace(tokenizer=tiny_tokenizer, count_tokens=count)
    builder = ContextBuilder(engine, retriever, Settings(home=tmp_path))

    def of(*, defaults=None, **context):
        manifest = SimpleNamespace(
            name="reader",
            retrieval=RetrievalDefaults(query=QUERY, **(defaults or {})),
            prompt=SimpleNamespace(question=""),
            answer=GenerateAnswer(),
        )
        document = document_from_text(AGREEMENT, source="agreement.txt")
        (spans,), citations = builder.of_skill(manifest, {}, document, ContextSpec(**context))
        return spans, citations, sum(count(c.text) for c in citations)

    return of


def test_the_document_and_several_collections_are_shown_together(show, collections):
    spans, citations, used = show(index=("document", *collections), mode="excerpts", budget=120)
    sources = [c.source for c in citations]
    assert "agreement.txt" in sources
    assert any(source.startswith("policies") for source in sources)
    assert any(source.startswith("precedents") for source in sources)
    assert used <= 120
    assert [span.number for span in spans] == list(range(1, len(citations) + 1))


def test_windows_of_the_document_are_shown_with_the_collections(show, collections):
    spans, citations, _ = show(index=("document", collections[0]), mode="windows", budget=120)
    assert citations[0].source == "agreement.txt"
    assert {c.source.split("-")[0] for c in citations[1:]} == {"policies"}
    assert spans[-1].text == citations[-1].text


def test_of_the_windows_those_with_the_best_hits_are_shown(retriever, tiny_tokenizer, tmp_path):
    hidden = ["The boiler is cleaned in May."] * 30
    hidden[19] = "The maker keeps nine copies of the drawings."
    hidden[4] = "The drawings are blue."
    document = document_from_text("\n\n".join(hidden), source="agreement.txt")
    engine = SimpleNamespace(tokenizer=tiny_tokenizer, count_tokens=token_counter(tiny_tokenizer))
    builder = ContextBuilder(engine, retriever, Settings(home=tmp_path))

    def shown(answer, **defaults):
        manifest = SimpleNamespace(
            name="reader",
            retrieval=RetrievalDefaults(query=QUERY, mode="windows", window=64, **defaults),
            prompt=SimpleNamespace(question=""),
            answer=answer,
        )
        return builder.of_skill(manifest, {}, document, None)

    choice = ChoiceAnswer(kind="choice", choices=["yes", "no"])
    every, _ = shown(choice)
    (one,), (citation,) = shown(choice, windows=1)
    two, citations = shown(choice, windows=2)
    assert len(every) > 3
    assert one in every
    assert hidden[19] in citation.text
    assert one in two
    assert two[1] == one
    assert hidden[4] in citations[0].text
    assert shown(choice, windows=99)[0] == every
    assert shown(GenerateAnswer(), windows=1)[0] == [one]
    with pytest.raises(InputError, match="takes 2 windows, and a text is written from one"):
        shown(GenerateAnswer(), windows=2)
    labels = MarksAnswer(
        kind="marks",
        labels=[{"name": "duty"}],
        fields={"marks": {"label_key": "label", "quote_key": "quote"}},
    )
    assert shown(labels, windows=1)[0] == every


def test_what_two_collections_say_alike_is_shown_once(show, collections):
    _, citations, _ = show(index=collections, mode="excerpts", budget=400)
    said = [c.text for c in citations]
    assert said.count("Copies of the drawings need a licence.") == 1


def test_a_collection_leaves_the_rest_of_its_share_to_the_document(show, collections):
    _, alone, _ = show(mode="excerpts", budget=200)
    _, beside, used = show(index=collections[0], mode="excerpts", budget=200)
    own = [c for c in beside if c.source == "agreement.txt"]
    assert 0 < len(own) <= len(alone)
    assert 100 < used <= 200


def test_filters_say_which_chunks_may_be_found(show, collections):
    filters = {"source": ["policies-1.txt", "agreement.txt"]}
    _, citations, _ = show(index=collections, mode="excerpts", budget=400, filters=filters)
    assert {c.source for c in citations} == {"policies-1.txt", "agreement.txt"}
    with pytest.raises(InputError, match="unknown filter"):
        show(index=collections, mode="excerpts", filters={"shelf": "top"})


def test_every_citation_has_its_score_and_place(show, collections):
    _, citations, _ = show(index=collections, mode="excerpts", budget=300)
    for citation in citations:
        assert citation.score >= 0
        if citation.source == "agreement.txt":
            assert AGREEMENT[citation.start : citation.end] == citation.text


WORKFLOW = """
name: two sources
inputs:
  text: {type: document}
  house: {type: text, default: policies}
steps:
  read:
    skill: reader
    input: {document: "{{ inputs.text }}"}
    context:
      index: [document, "{{ inputs.house }}", precedents]
      filters: {heading: [Copies]}
"""


def test_a_workflow_names_its_sources_in_a_list_of_templates():
    from agentkit.workflow.program import Program

    spec = parse_spec(WORKFLOW)
    assert parse_spec(to_yaml(spec)) == spec
    step = Program.of(spec).steps["read"]
    names = {"inputs": {"text": {"$document": "d"}, "house": "handbook"}, "steps": {}, "run": {}}
    call = call_of(step, Work((None,), False, names), 0)
    assert call.context is not None
    assert call.context.index == ("document", "handbook", "precedents")
    assert dict(call.context.filters) == {"heading": ["Copies"]}


def test_a_workflow_with_an_unknown_filter_is_refused_at_its_place():
    with pytest.raises(WorkflowError, match="unknown filter 'shelf'") as caught:
        parse_spec(WORKFLOW.replace("{heading: [Copies]}", "{shelf: top}"), name="two.yaml")
    assert caught.value.where == "two.yaml:12:7"


def test_a_skills_own_sources_are_searched_unless_the_step_names_others(show, collections):
    own = {"index": ("document", collections[0]), "filters": {"source": "policies-0.txt"}}
    _, citations, _ = show(mode="excerpts", budget=300, defaults=own)
    assert {c.source for c in citations if c.source.startswith("pol")} == {"policies-0.txt"}
    _, citations, _ = show(
        index="document", mode="excerpts", budget=300, defaults=own | {"filters": {}}
    )
    assert {c.source for c in citations} == {"agreement.txt"}
