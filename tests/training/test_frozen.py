"""The frozen baseline: what a training of the head alone measures, and nothing else changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from agentkit.training.frozen import beside_frozen
from agentkit.training.spec import HEAD_EPOCHS

DATA = [{"path": "rows.jsonl", "tuning": 0.3}]


def change(toy: Any, **settings: Any) -> None:
    file = toy.folder / "train.yaml"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("kind", ["choice", "marks", "chosen"])
def test_it_is_what_a_training_of_the_head_alone_reaches(
    kind: str, make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy(kind, tmp_path / "both", steps=10, data=DATA, frozen_baseline=True)
    alone = make_toy(kind, tmp_path / "alone", data=DATA, method="head", epochs=HEAD_EPOCHS)
    trained, said = toy.train()
    metrics = trained.metrics
    tuning = metrics["tuning"]
    assert list(tuning) == ["untrained", "frozen", "trained"]
    assert tuning["frozen"] == alone.train()[0].metrics["tuning"]["trained"]
    if kind != "chosen":  # of whose few tuning rows chance may get all right
        assert tuning["frozen"] != tuning["untrained"]
    assert "over the frozen backbone with such a head" in said
    card = (toy.folder / "README.md").read_text()
    assert "| figure | untrained | frozen | trained |" in card
    assert "`frozen` is such a task head" in card
    assert "minutes of it for the frozen baseline" in card


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {}),
        ("hybrid", {}),
        ("bottleneck", {}),
        ("prefix", {"layers": "all"}),
        ("lora", {"quantization": "int8", "dtype": "bfloat16"}),
        ("lora", {"layers": "auto"}),
        ("lora", {"cache_lower": False}),
    ],
)
def test_the_adapter_is_the_same_with_and_without_it(
    method: str, changes: dict[str, Any], make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    files = []
    for baseline in (False, True):
        toy = make_toy(
            "choice",
            tmp_path / str(baseline),
            steps=6,
            data=DATA,
            method=method,
            frozen_baseline=baseline,
            **changes,
        )
        toy.train()
        files.append(toy.folder)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        without, beside = (load_file(folder / name) for folder in files)
        assert without.keys() == beside.keys()
        assert all(without[key].equal(beside[key]) for key in without)


def test_it_is_trained_once(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    toy = make_toy("choice", tmp_path, steps=4, data=DATA, frozen_baseline=True)
    first, said = toy.train()
    again, unsaid = toy.train()
    assert "the same head on the frozen backbone, to compare with" in said
    assert "the same head on the frozen backbone, to compare with" not in unsaid
    assert again.metrics["tuning"]["frozen"] == first.metrics["tuning"]["frozen"]
    assert not (toy.settings.home / "training" / "toy-skill" / "checkpoints").exists()


def test_another_adapter_is_compared_with_the_same_head(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("choice", tmp_path, steps=4, data=DATA, frozen_baseline=True)
    first, _ = toy.train()
    change(toy, rank=2, alpha=4, layers="3")
    again, said = toy.train()
    assert "to compare with" not in said
    assert again.metrics["tuning"]["frozen"] == first.metrics["tuning"]["frozen"]
    assert again.metrics["frozen_seconds"] == first.metrics["frozen_seconds"] > 0


@pytest.mark.parametrize("share", [0.4, 1.5])
def test_without_room_for_the_states_it_is_left_out_and_the_training_goes_on(
    share: float, make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    free = make_toy("choice", tmp_path / "free", steps=4, data=DATA)
    free.train()
    states = tmp_path / "free" / "home" / "training" / "toy-skill" / "lower-states.bin"
    size = states.stat().st_size
    tight = make_toy(
        "choice",
        tmp_path / "tight",
        steps=4,
        data=DATA,
        frozen_baseline=True,
        cache_gigabytes=share * size / 1e9,
    )
    trained, said = tight.train()
    metrics = trained.metrics
    assert "frozen_baseline left out" in said
    assert list(metrics["tuning"]) == ["untrained", "trained"]
    assert "frozen_seconds" not in metrics
    # What the training itself goes by was not given up for it.
    kept = tmp_path / "tight" / "home" / "training" / "toy-skill" / "lower-states.bin"
    assert 0 < kept.stat().st_size <= share * size
    assert share < 1 or kept.stat().st_size == size
    # Not for good: with room it is trained.
    change(tight, cache_gigabytes=1.0)
    assert "frozen" in tight.train()[0].metrics["tuning"]


def test_states_that_another_training_left_make_room(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("choice", tmp_path, steps=4, data=DATA)
    toy.train()
    states = tmp_path / "home" / "training" / "toy-skill" / "lower-states.bin"
    size = states.stat().st_size
    change(toy, layers="1-3", frozen_baseline=True, cache_gigabytes=2.2 * size / 1e9)
    assert "frozen" in toy.train()[0].metrics["tuning"]
    assert states.stat().st_size == 2 * size


def test_a_head_alone_is_its_own_baseline(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    toy = make_toy("choice", tmp_path, steps=4, data=DATA, method="head", frozen_baseline=True)
    assert list(toy.train()[0].metrics["tuning"]) == ["untrained", "trained"]


@pytest.mark.parametrize("kind", ["generate", "likelihood", "probed"])
def test_without_a_head_to_train_it_is_left_out_with_a_word(
    kind: str, make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy(kind, tmp_path, steps=2, data=DATA, frozen_baseline=True)
    trained, said = toy.train()
    metrics = trained.metrics
    assert "frozen_baseline left out" in said
    assert list(metrics["tuning"]) == ["untrained", "trained"]


def test_without_rows_to_tune_on_nothing_is_compared(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    data = [{"path": "rows.jsonl", "tuning": 0}]
    toy = make_toy("choice", tmp_path, steps=2, data=data, frozen_baseline=True)
    trained, said = toy.train()
    metrics = trained.metrics
    assert "frozen_baseline left out" in said
    assert metrics["tuning"] == {"untrained": {}, "trained": {}}


def test_what_an_adapter_adds_is_said_with_its_sign() -> None:
    little = beside_frozen({"frozen": {"accuracy": 0.9}, "trained": {"accuracy": 0.88}})
    assert little is not None
    assert "accuracy 0.880" in little
    assert "-0.020" in little
    assert "method: head" in little
    # Three hundredths are not less than three hundredths.
    enough = beside_frozen({"frozen": {"accuracy": 0.92}, "trained": {"accuracy": 0.95}})
    assert enough is not None
    assert "little" not in enough
    # A head alone does not write.
    written = {"accuracy": 0.9, "loss": 0.4, "questions": 50}
    writes = beside_frozen({"frozen": {"accuracy": 0.9}, "trained": written})
    assert writes is not None
    assert "(50 questions)" in writes
    assert "method: head" not in writes
    much = beside_frozen(
        {"frozen": {"mean_average_precision": 0.2}, "trained": {"mean_average_precision": 0.4}}
    )
    assert much is not None
    assert "+0.200" in much
    assert "method: head" not in much
    assert beside_frozen({"untrained": {"loss": 2.0}, "trained": {"loss": 1.0}}) is None
