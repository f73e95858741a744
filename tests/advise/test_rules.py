"""The table of rules: every setting is decided for every situation, and as its reason says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agentkit.adapters.heads import ChoiceHead
from agentkit.advise.memory import Way, least
from agentkit.advise.rule import Advice
from agentkit.advise.rules import RULES, advise
from agentkit.advise.situation import Answer, Deployment, Situation, Updates
from agentkit.advise.train_yaml import train_settings
from agentkit.errors import InputError
from agentkit.skill.manifest import ChoiceAnswer
from agentkit.training.settle import settle
from agentkit.training.spec import HEAD_EPOCHS, RATES, Method, TrainSpec

UNFITTED = st.builds(
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
SITUATIONS = UNFITTED.flatmap(
    lambda one: st.floats(least(one), 50 * least(one)).map(lambda m: replace(one, memory=m))
)
"""Those whose memory some way to train fits."""
USUAL = Situation(rows=2000)


def settings(situation: Situation) -> dict[str, Advice]:
    return {one.setting: one for one in advise(situation)}


def settled_head(spec: TrainSpec) -> TrainSpec:
    """The spec as a training settles it whose method needs no backbone for that."""
    folder = Path("skill")
    settled, _, _ = settle(
        spec,
        None,
        (),
        ChoiceHead(4, 2),
        backbone="",
        skill=folder,
        origin=folder,
        work=folder,
        console=Console(),
    )
    return settled


@given(SITUATIONS)
def test_every_situation_gets_settings_that_a_training_takes(situation: Situation) -> None:
    advice = advise(situation)
    assert all(one.reason for one in advice)
    found = settings(situation)
    assert {"method", "layers", "epochs", "dtype"} <= set(found)
    spec = TrainSpec.model_validate(train_settings(advice) | {"data": [{"path": "rows.jsonl"}]})
    assert spec.alpha == 2 * spec.rank
    assert (spec.search is not None) == ("search" in found)
    if spec.method == "head":
        assert settled_head(spec) == spec
    if "answer.scoring" in found:
        ChoiceAnswer(kind="choice", choices=("a", "b"), scoring=found["answer.scoring"].value)


def test_each_settings_last_rule_always_holds() -> None:
    last = {rule.setting: rule for rule in RULES}
    unusual = Situation(rows=1, memory=1000, deployment="agentkit", answer="marks")
    assert all(rule.holds(USUAL) and rule.holds(unusual) for rule in last.values())


def test_every_rule_decides_in_some_situation() -> None:
    reached = set()
    for situation in (
        *(replace(USUAL, rows=rows) for rows in (50, 300, 700, 2000, 10_000, 50_000)),
        replace(USUAL, rows=500, document_tokens=60),
        *(replace(USUAL, memory=memory) for memory in (1.41, 2.5, 8, 32)),
        *(replace(USUAL, parameters=7e9, memory=memory) for memory in (10, 14)),
        *(replace(USUAL, tasks=200, rows=rows, gpu=True) for rows in (300, 2000, 40_000)),
        replace(USUAL, gpu=True, rows=30_000),
        replace(USUAL, memory=32, document_tokens=4000),
        *(replace(USUAL, deployment="vllm", rows=rows, gpu=True) for rows in (100, 9000)),
        replace(USUAL, deployment="vllm", answer="marks"),
        *(replace(USUAL, tasks=2000, rows=rows) for rows in (300, 2000)),
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
        ({"deployment": "vllm", "answer": "marks"}, "method", "lora"),
        ({"tasks": 5000}, "method", "prefix"),
        ({"tasks": 5000}, "layers", "all"),
        ({"tasks": 5000, "memory": 2, "answer": "text"}, "method", "bottleneck"),
        ({"tasks": 200}, "method", "bottleneck"),
        ({"gpu": True, "rows": 30_000}, "method", "hybrid"),
        ({"gpu": True, "rows": 8000}, "method", "dora"),
        ({"memory": 1.41}, "method", "head"),
        ({"memory": 1.5}, "method", "lora"),
        ({"parameters": 7e9, "memory": 8}, "method", "head"),
        ({"parameters": 7e9, "memory": 8}, "quantization", "nf4"),
        ({"tasks": 6, "document_tokens": 4000}, "method", "alora"),
        ({"tasks": 6, "document_tokens": 4000, "answer": "marks"}, "method", "lora"),
        ({"rows": 300}, "layers", "upper 1/3"),
        ({"rows": 300, "layers": 12}, "layers", "upper 1/3"),
        ({"rows": 8000, "gpu": True}, "layers", "all"),
        ({"rows": 8000, "gpu": True, "updates": "daily"}, "layers", "upper 1/3"),
        ({}, "layers", "auto"),
        ({"memory": 2}, "layers", "upper 1/3"),
        ({"rows": 100}, "rank", 4),
        ({"rows": 100}, "alpha", 8),
        ({}, "learning_rate", RATES["lora"]),
        ({"tasks": 5000}, "learning_rate", RATES["prefix"]),
        ({"rows": 500}, "epochs", 4),
        ({"rows": 500, "memory": 1.41}, "epochs", HEAD_EPOCHS),
        ({"rows": 500, "document_tokens": 60}, "pack_tokens", 512),
        ({"rows": 500, "document_tokens": 600}, "pack_tokens", 2048),
        ({"rows": 9000, "document_tokens": 60}, "pack_tokens", 2048),
        ({"tasks": 5000}, "virtual_tokens", 16),
        ({"tasks": 5000, "rows": 500}, "virtual_tokens", 8),
        ({"tasks": 200}, "reduction_factor", 16),
        ({"tasks": 200, "rows": 500}, "reduction_factor", 16),
        ({"gpu": True, "rows": 30_000}, "reduction_factor", 8),
        ({"gpu": True, "rows": 30_000}, "rank", 32),
        ({"gpu": True}, "search", {"minutes": 60}),
        ({"gpu": True, "tasks": 200}, "search", {"minutes": 60, "rank": []}),
        ({"rows": 100}, "answer.scoring", "likelihood"),
        ({"deployment": "vllm"}, "answer.scoring", "likelihood"),
        ({}, "answer.scoring", "head"),
        ({"rows": 300, "tasks": 3}, "start_from", "../general"),
        ({"parameters": 7e9, "memory": 16}, "quantization", "int8"),
        ({"parameters": 7e9, "memory": 12, "gpu": True, "answer": "text"}, "quantization", "nf4"),
        ({"parameters": 7e9, "memory": 60}, "checkpointing", True),
        ({}, "dtype", "auto"),
        ({"parameters": 7e9, "memory": 24}, "dtype", "bfloat16"),
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


@pytest.mark.parametrize(
    ("changes", "method", "sizes"),
    [
        ({}, "lora", {"rank"}),
        ({"gpu": True, "rows": 8000}, "dora", {"rank"}),
        ({"tasks": 6, "document_tokens": 4000}, "alora", {"rank"}),
        ({"tasks": 200}, "bottleneck", {"reduction_factor"}),
        ({"gpu": True, "rows": 30_000}, "hybrid", {"rank", "reduction_factor"}),
        ({"tasks": 5000}, "prefix", {"virtual_tokens"}),
        ({"memory": 1.41, "gpu": True}, "head", set()),
    ],
)
def test_a_methods_size_is_set_by_its_own_settings(changes, method: str, sizes: set[str]) -> None:
    found = settings(replace(USUAL, **changes))
    assert found["method"].value == method
    assert {"rank", "reduction_factor", "virtual_tokens"} & set(found) == sizes
    written = train_settings(found.values())
    assert ("alpha" in written) == ("rank" in sizes)
    assert written.keys() >= sizes


def test_a_head_alone_is_searched_for_nothing() -> None:
    tiny = replace(USUAL, rows=5000, gpu=True, parameters=1e6)
    assert "search" in settings(tiny)
    short = replace(tiny, memory=Way(adapter=False, quantization=None).takes(tiny.weights))
    assert settings(short)["method"].value == "head"
    assert "search" not in train_settings(advise(short))


def test_what_is_searched_for_is_among_the_settings_of_a_training() -> None:
    advice = advise(replace(USUAL, gpu=True))
    assert train_settings(advice)["search"] == {"minutes": 60}


def test_no_trial_keeps_activations_that_training_has_no_room_for() -> None:
    short = replace(USUAL, gpu=True, memory=2)
    assert settings(short)["checkpointing"].value is True
    assert "search" not in settings(short)


@given(SITUATIONS, st.integers(1, 10**6))
def test_more_rows_never_make_an_adapter_smaller_or_raise_the_epochs(
    situation: Situation, more: int
) -> None:
    before = settings(situation)
    after = settings(replace(situation, rows=situation.rows + more))
    for size, sign in (("rank", 1), ("virtual_tokens", 1), ("reduction_factor", -1)):
        if size in before and size in after:
            assert sign * after[size].value >= sign * before[size].value
    assert after["epochs"].value <= before["epochs"].value


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["rows", "tasks", "documents", "document_tokens", "memory", "parameters", "layers"]
)
def test_what_cannot_be_is_refused(name: str, number: float) -> None:
    with pytest.raises(InputError) as refused:
        advise(replace(USUAL, **{name: number}))
    assert refused.value.where == f"--{name.replace('_', '-')}"
    assert str(number) in refused.value.what


def test_fewer_than_three_layers_have_no_upper_third() -> None:
    with pytest.raises(InputError, match="at least 3, not 2"):
        advise(replace(USUAL, layers=2))


@given(SITUATIONS)
def test_a_baseline_is_asked_for_exactly_where_a_head_is_trained_beside_an_adapter(
    situation: Situation,
) -> None:
    advised = settings(situation)
    scoring = advised.get("answer.scoring")
    head = situation.answer == "marks" or (scoring is not None and scoring.value == "head")
    asked = "frozen_baseline" in train_settings(advised.values())
    assert asked == (head and advised["method"].value != "head")
