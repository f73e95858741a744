"""Layers named, reused, ranked and searched for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import SkillError
from agentkit.training.layer_selection import (
    best_layers,
    given_layers,
    layers_of_skill,
    search_from_top,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("all", tuple(range(30))),
        ("20-29", tuple(range(20, 30))),
        ("0-0", (0,)),
        ("7", (7,)),
        ("28-29, 3, 5", (3, 5, 28, 29)),
        ("3-5,4-6", (3, 4, 5, 6)),
        ("upper 1/3", tuple(range(20, 30))),
        ("upper 1/40", (29,)),
    ],
)
def test_layers_are_all_or_numbers_and_inclusive_ranges(text: str, wanted: tuple[int, ...]) -> None:
    assert given_layers(text, 30) == wanted


@pytest.mark.parametrize("text", ["20-30", "5-4", "-1", "upper", "1-x", "", "1,,2", "upper 3/2"])
def test_layers_outside_the_backbone_are_refused(text: str) -> None:
    with pytest.raises(SkillError, match="is not a range within 0-29"):
        given_layers(text, 30)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 40))
def test_no_layer_left_out_scores_more_than_one_chosen(scores: list[float], size: int) -> None:
    choice = best_layers(scores, size, "gradient")
    assert len(choice.chosen) == min(size, len(scores))
    assert list(choice.chosen) == sorted(set(choice.chosen))
    left = [score for at, score in enumerate(scores) if at not in choice.chosen]
    assert not left or max(left) <= min(scores[at] for at in choice.chosen)


@given(st.integers(1, 40), st.integers(1, 10), st.lists(st.floats(0.01, 9), min_size=41))
def test_a_search_takes_the_uppermost_layers_and_at_least_one_step(
    count: int, step: int, losses: list[float]
) -> None:
    asked: list[int] = []

    def loss_of(first: int) -> float:
        asked.append(first)
        return losses[first % len(losses)]

    choice = search_from_top(count, step, loss_of)
    assert choice.chosen == tuple(range(choice.chosen[0], count))
    assert asked == sorted(set(asked), reverse=True)
    assert len(choice.scores) == count


def test_a_search_stops_where_more_layers_save_too_little() -> None:
    losses = {12: 2.0, 10: 1.0, 8: 0.6, 6: 0.599, 4: 0.1}
    choice = search_from_top(12, 2, losses.__getitem__)
    assert choice.chosen == (8, 9, 10, 11)
    assert choice.scores[6:] == (0.001667, 0.001667, 0.4, 0.4, 0.5, 0.5)


def test_layers_of_another_skill_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SkillError, match="cannot be read"):
        layers_of_skill(tmp_path, 4)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"layers_to_transform": [2, 9]}))
    with pytest.raises(SkillError, match="the backbone has 4"):
        layers_of_skill(tmp_path, 4)
    config.write_text(json.dumps({}))
    assert layers_of_skill(tmp_path, 3).chosen == (0, 1, 2)
    hybrid = {"peft_type": "HYBRID", "lora": {"layers_to_transform": [1, 2]}, "bottleneck": {}}
    config.write_text(json.dumps(hybrid))
    assert layers_of_skill(tmp_path, 3).chosen == (1, 2)
