"""A skill as the reranker: its evidence head orders what a search found."""

import dataclasses

import numpy as np
import pytest

from agentkit.engine.engine import Engine
from agentkit.engine.rerank import SkillReranker
from agentkit.errors import SkillError
from agentkit.retrieval.document_index import DocumentIndex
from agentkit.retrieval.loaders import document_from_text
from agentkit.settings import Settings
from agentkit.skill.folder import load_skill
from agentkit.testing import FakeEncoder, tiny_adapter, tiny_choice_head

JUDGE = {
    "input": {
        "type": "object",
        "properties": {"rule": {"type": "string"}, "document": {"type": "string"}},
        "required": ["rule", "document"],
    },
    "output": {
        "type": "object",
        "properties": {"verdict": {"enum": ["yes", "no"]}, "evidence": {}},
        "required": ["verdict", "evidence", "score"],
    },
    "prompt": {"question": "Rule: {{ rule }}"},
    "answer": {
        "kind": "choice",
        "choices": ["yes", "no"],
        "field": "verdict",
        "evidence_field": "evidence",
    },
    "retrieval": {"document": "document", "query": "{{ rule }}"},
    "utterances": ["check the rule"],
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory, tiny_backbone):
    folder = tmp_path_factory.mktemp("skills") / "judge"
    return load_skill(
        tiny_adapter(folder, tiny_backbone, manifest=JUDGE, head=tiny_choice_head(48, 2))
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tiny_backbone):
    settings = Settings(
        home=tmp_path_factory.mktemp("home"), backbone=str(tiny_backbone.path), dtype="float32"
    )
    with Engine.open(settings) as engine:
        yield engine


def test_the_skills_evidence_orders_the_passages(engine, judge, agreement_text):
    reranker = SkillReranker(engine, judge, depth=4)
    index = DocumentIndex(document_from_text(agreement_text), FakeEncoder(), reranker=reranker)
    scores = index.scores("the laws of Norway")
    read = np.argsort(-scores)[:4]
    assert ((scores[read] >= 0) & (scores[read] <= 1)).all()
    assert scores[np.argsort(-scores)[4:]].max() < scores[read].min()
    assert np.array_equal(scores, index.scores("the laws of Norway"))
    assert len(index.search("the laws of Norway", top_k=2)) == 2


def test_a_skill_that_points_at_nothing_is_refused(engine, judge):
    answer = judge.manifest.answer.model_copy(update={"evidence_field": None})
    manifest = judge.manifest.model_copy(update={"answer": answer})
    with pytest.raises(SkillError, match="cannot rerank"):
        SkillReranker(engine, dataclasses.replace(judge, manifest=manifest))


def test_a_skill_that_needs_more_than_a_query_is_refused(engine, judge):
    schema = {**judge.manifest.input, "required": ["rule", "document", "country"]}
    manifest = judge.manifest.model_copy(update={"input": schema})
    with pytest.raises(SkillError, match="needs 2 inputs"):
        SkillReranker(engine, dataclasses.replace(judge, manifest=manifest))
