"""The table of rules: every setting is decided for every situation, and as its reason says."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.advise.rules import RULES, Advice, advise, train_settings
from agentkit.advise.situation import Answer, Deployment, Situation, Updates
from agentkit.errors import InputError
from agentkit.skill.manifest import ChoiceAnswer
from agentkit.training.spec import Method, TrainSpec

SITUATIONS = st.builds(
    Situation,
    rows=st.integers(1, 10**6),
    documents=st.none() | st.integers(1, 10**5),
    document_tokens=st.integers(1, 10**5),
    tasks=st.integers(1, 5000),
    memory=st.floats(0.1, 200),
    gpu=st.booleans(),
    updates=st.sampled_from(get_args(Updates)),
    deployment=st.sampled_from(get_args(Deployment)),
    answer=st.sampled_from(get_args(Answer)),
    parameters=st.floats(1e6, 1e11),
    layers=st.integers(3, 200),
)
USUAL = Situation(rows=2000)


def settings(situation: Situation) -> dict[str, Advice]:
    return {one.setting: one for one in advise(situation)}


@given(SITUATIONS)
def test_every_situation_gets_settings_that_a_training_takes(situation: Situation) -> None:
    advice = advise(situation)
    assert all(one.reason for one in advice)
    found = settings(situation)
    assert {"method", "layers", "rank", "epochs", "dtype"} <= set(found)
    spec = TrainSpec.model_validate(train_settings(advice) | {"data": [{"path": "rows.jsonl"}]})
    assert spec.alpha == 2 * spec.rank
    if "answer.scoring" in found:
        ChoiceAnswer(kind="choice", choices=("a", "b"), scoring=found["answer.scoring"].value)


def test_each_settings_last_rule_always_holds() -> None:
    last = {rule.setting: rule for rule in RULES}
    unusual = Situation(rows=1, memory=1000, deployment="agentkit", answer="marks")
    assert all(rule.holds(USUAL) and rule.holds(unusual) for rule in last.values())


def test_every_rule_decides_in_some_situation() -> None:
    reached = set()
    for situation in (
        *(replace(USUAL, rows=rows) for rows in (50, 300, 2000, 10_000, 50_000)),
        *(replace(USUAL, memory=memory) for memory in (0.5, 1.2, 2.5, 8, 32)),
        replace(USUAL, memory=1.2, gpu=True),
        *(replace(USUAL, tasks=200, rows=rows) for rows in (2000, 40_000)),
        *(replace(USUAL, gpu=True, rows=rows, memory=1.1) for rows in (6000, 30_000)),
        replace(USUAL, gpu=True, rows=30_000),
        replace(USUAL, memory=32, document_tokens=4000),
        *(replace(USUAL, deployment="vllm", rows=rows, gpu=True) for rows in (100, 9000)),
        replace(USUAL, tasks=2000),
        replace(USUAL, tasks=5, document_tokens=3000),
        replace(USUAL, gpu=True, rows=9000),
        replace(USUAL, rows=300, tasks=5),
        replace(USUAL, updates="daily"),
        replace(USUAL, answer="text", documents=20),
    ):
        decided = set()
        for rule in RULES:
            if rule.setting not in decided and rule.holds(situation):
                decided.add(rule.setting)
                reached.add(rule)
    assert [rule for rule in RULES if rule not in reached] == []


@pytest.mark.parametrize(
    ("changes", "setting", "value"),
    [
        ({}, "method", "lora"),
        ({"deployment": "vllm", "tasks": 5000}, "method", "lora"),
        ({"tasks": 5000}, "method", "prefix"),
        ({"tasks": 5000}, "layers", "all"),
        ({"tasks": 5000, "memory": 2, "answer": "text"}, "method", "bottleneck"),
        ({"tasks": 200}, "method", "bottleneck"),
        ({"gpu": True, "rows": 30_000}, "method", "hybrid"),
        ({"gpu": True, "rows": 8000}, "method", "dora"),
        ({"memory": 0.5}, "method", "head"),
        ({"memory": 0.5, "answer": "text"}, "method", "lora"),
        ({"tasks": 6, "document_tokens": 4000}, "method", "alora"),
        ({"tasks": 6, "document_tokens": 4000, "answer": "marks"}, "method", "lora"),
        ({"rows": 300}, "layers", "20-29"),
        ({"rows": 300, "layers": 12}, "layers", "8-11"),
        ({"rows": 8000, "gpu": True}, "layers", "all"),
        ({"rows": 8000, "gpu": True, "updates": "daily"}, "layers", "20-29"),
        ({}, "layers", "auto"),
        ({"rows": 100}, "rank", 4),
        ({"rows": 100}, "answer.scoring", "likelihood"),
        ({"deployment": "vllm"}, "answer.scoring", "likelihood"),
        ({}, "answer.scoring", "head"),
        ({"rows": 300, "tasks": 3}, "start_from", "../general"),
        ({"parameters": 7e9, "memory": 24}, "quantization", "int8"),
        ({"parameters": 7e9, "memory": 12, "gpu": True, "answer": "text"}, "quantization", "nf4"),
        ({"parameters": 7e9, "memory": 60}, "checkpointing", True),
        ({}, "dtype", "bfloat16"),
    ],
)
def test_the_first_rule_that_holds_decides(changes, setting: str, value) -> None:
    assert settings(replace(USUAL, **changes))[setting].value == value


def test_what_is_not_asked_for_is_left_out() -> None:
    found = settings(replace(USUAL, answer="text"))
    left_out = {"answer.scoring", "start_from", "search", "rows", "retraining"}
    assert not (left_out | {"quantization", "checkpointing"}) & set(found)


def test_every_method_of_a_training_is_advised_somewhere() -> None:
    named = {rule.value(USUAL) for rule in RULES if rule.setting == "method"}
    assert named == set(get_args(Method))


@given(SITUATIONS, st.integers(1, 10**6))
def test_more_rows_never_lower_the_rank_or_raise_the_epochs(
    situation: Situation, more: int
) -> None:
    before = settings(situation)
    after = settings(replace(situation, rows=situation.rows + more))
    assert after["rank"].value >= before["rank"].value
    assert after["epochs"].value <= before["epochs"].value


@pytest.mark.parametrize(
    "changes", [{"rows": 0}, {"tasks": 0}, {"documents": 0}, {"memory": 0.0}, {"layers": 2}]
)
def test_what_cannot_be_is_refused(changes) -> None:
    with pytest.raises(InputError):
        advise(replace(USUAL, **changes))
