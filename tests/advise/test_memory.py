"""What fits a memory: the plainest way that does, and an error that says what would."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.advise.memory import PROCESS, Way, least, way
from agentkit.advise.rules import advise
from agentkit.advise.situation import Answer, Deployment, Situation
from agentkit.errors import InputError

SITUATIONS = st.builds(
    Situation,
    rows=st.integers(1, 10**5),
    deployment=st.sampled_from(get_args(Deployment)),
    answer=st.sampled_from(get_args(Answer)),
    parameters=st.floats(1e6, 1e11),
    memory=st.floats(0.01, 400),
)
SMALL = Situation(rows=5000)
LARGE = Situation(rows=5000, parameters=7e9)


@given(SITUATIONS)
def test_what_is_advised_fits_and_what_does_not_fit_is_refused(situation: Situation) -> None:
    if situation.memory >= least(situation):
        chosen = way(situation)
        assert PROCESS < chosen.takes(situation.weights) <= situation.memory
    elif situation.memory < least(situation) - 0.1:
        with pytest.raises(InputError):
            way(situation)


@given(SITUATIONS)
def test_the_memory_that_an_error_names_is_enough(situation: Situation) -> None:
    assert advise(replace(situation, memory=least(situation)))


@given(SITUATIONS)
def test_weights_are_rounded_only_where_that_saves_memory(situation: Situation) -> None:
    chosen = way(replace(situation, memory=max(situation.memory, least(situation))))
    exact = Way(chosen.adapter, None)
    if chosen.quantization:
        assert chosen.takes(situation.weights) < exact.takes(situation.weights)
        assert exact.takes(situation.weights) > situation.memory


@given(SITUATIONS, st.floats(0, 400))
def test_more_memory_never_takes_an_adapter_away(situation: Situation, more: float) -> None:
    little = replace(situation, memory=max(situation.memory, least(situation)))
    much = replace(little, memory=little.memory + more)
    assert way(much).adapter >= way(little).adapter


@pytest.mark.parametrize(
    ("memory", "chosen"), [(1.4, Way(False, None)), (1.45, Way(True, None)), (2, Way(True, None))]
)
def test_a_small_backbone_is_never_rounded(memory: float, chosen: Way) -> None:
    assert way(replace(SMALL, memory=memory)) == chosen


@pytest.mark.parametrize(
    ("memory", "chosen"),
    [
        (24, Way(True, None)),
        (16, Way(True, "int8")),
        (12, Way(True, "nf4")),
        (8, Way(False, "nf4")),
    ],
)
def test_a_large_backbone_is_rounded_as_memory_shrinks(memory: float, chosen: Way) -> None:
    assert way(replace(LARGE, memory=memory)) == chosen


@pytest.mark.parametrize(
    ("situation", "needed"),
    [
        (replace(SMALL, memory=0.3), "1.4 GB"),
        (replace(SMALL, memory=1, answer="text"), "1.5 GB"),
        (replace(SMALL, memory=1.4, answer="text"), "1.5 GB"),
        (replace(LARGE, memory=4), "7.7 GB"),
        (replace(LARGE, memory=8, answer="text"), "9.8 GB"),
        (replace(LARGE, memory=8, deployment="vllm"), "9.8 GB"),
        (replace(LARGE, memory=8, rows=100), "9.8 GB"),
    ],
)
def test_an_error_names_the_memory_that_is_needed(situation: Situation, needed: str) -> None:
    with pytest.raises(InputError) as refused:
        advise(situation)
    assert refused.value.where == "--memory"
    assert needed in refused.value.what
    assert f"in {situation.memory:g} GB" in refused.value.what
