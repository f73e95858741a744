"""What a training says of itself is what happened, not what was planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentkit.models import EMBEDDED
from agentkit.skill.manifest import Manifest
from agentkit.skill.manifest_files import read_manifest
from agentkit.training.record import read_figures, write_figures, write_record
from agentkit.training.spec import load_train_spec
from agentkit.training.stages import trained_for

SKILLS = Path(__file__).parents[2] / "skills"
TRAINED = sorted(str(path.parent.relative_to(SKILLS)) for path in SKILLS.rglob("metrics.json"))

METRICS: dict[str, Any] = {
    "backbone": {"name": "small", "license": "MIT", "fingerprint": "f" * 64},
    "training": {
        "method": "lora",
        "rank": 4,
        "layers": "all",
        "epochs": 2.0,
        "packs_per_step": 2,
        "max_minutes": None,
    },
    "data": [
        {"source": "rows", "license": "MIT", "train_rows": 9, "tuning_rows": 1, "sha256": "a" * 64}
    ],
    "packs": 40,
    "tokens_per_epoch": 12_345,
    "seconds": 600.0,
    "peak_memory_bytes": 2e9,
    "tuning": {"untrained": {"loss": 3.0}, "trained": {"loss": 1.0}},
}


@pytest.mark.parametrize(
    ("minutes", "steps", "planned", "said"),
    [
        (10.0, 30, 2.0, "1.5"),
        (10.0, 40, 2.0, "2"),
        (10.0, 40, 2.2, "2.2"),  # 44 steps, of which the last that was logged is the 40th
        (10.0, None, 2.0, "2"),
        (None, 30, 2.0, "2"),
    ],
)
def test_a_card_says_how_many_epochs_there_were(
    tmp_path: Path, minutes: float | None, steps: int | None, planned: float, said: str
) -> None:
    history = [{"step": at, "loss": 1.0} for at in range(10, (steps or 0) + 1, 10)]
    training = METRICS["training"] | {"max_minutes": minutes, "epochs": planned}
    manifest = Manifest(name="x", description="Does it.")
    write_record(tmp_path, manifest, METRICS | {"training": training, "loss": history})
    card = " ".join((tmp_path / "README.md").read_text(encoding="utf-8").split())
    assert f"layers all, {said} epochs of 12,345 tokens in 10 minutes" in card


def test_a_step_of_fewer_packs_ends_an_epoch_as_well(tmp_path: Path) -> None:
    training = METRICS["training"] | {"max_minutes": 10.0, "epochs": 9.0, "packs_per_step": 4}
    history = [{"step": at, "loss": 1.0} for at in range(1, 7)]
    record = METRICS | {"training": training, "packs": 9, "loss": history}
    write_record(tmp_path, Manifest(name="x", description="Does it."), record)
    card = " ".join((tmp_path / "README.md").read_text(encoding="utf-8").split())
    assert "layers all, 2 epochs of 12,345 tokens" in card


def test_a_card_says_what_a_training_started_from(tmp_path: Path) -> None:
    for start, said in (("first", " from the weights of `first`: lora,"), (None, "train`: lora,")):
        training = METRICS["training"] | {"start_from": start}
        manifest = Manifest(name="x", description="Does it.")
        write_record(tmp_path, manifest, METRICS | {"training": training, "loss": []})
        assert said in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("repeat", "said"), [({}, "9"), ({"repeat": 1}, "9"), ({"repeat": 3}, "9, each taken 3 times")]
)
def test_a_card_says_how_often_rows_were_taken(
    tmp_path: Path, repeat: dict[str, int], said: str
) -> None:
    (source,) = METRICS["data"]
    write_record(
        tmp_path,
        Manifest(name="x", description="Does it."),
        METRICS | {"data": [source | repeat], "loss": []},
    )
    assert f"| MIT | {said} | 1 |" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_card_of_an_older_record_knows_the_licence_of_an_embedded_backbone(
    tmp_path: Path,
) -> None:
    embedded = EMBEDDED["smollm2-135m-instruct"]
    backbone = {"name": embedded.name, "fingerprint": embedded.fingerprint}
    manifest = Manifest(name="x", description="Does it.")
    write_record(tmp_path, manifest, METRICS | {"backbone": backbone, "loss": []})
    assert f"(licence: {embedded.license}" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TRAINED)
def test_a_shipped_card_says_what_its_record_says(name: str, tmp_path: Path) -> None:
    shipped = SKILLS / name
    figures = read_figures(shipped)
    assert figures is not None
    folder = tmp_path / shipped.name
    folder.mkdir()
    (folder / "training.svg").touch()
    write_figures(folder, read_manifest(shipped)[0], figures)
    for file in ("README.md", "metrics.json"):
        assert (folder / file).read_text("utf-8") == (shipped / file).read_text("utf-8")


@pytest.mark.parametrize("name", TRAINED)
def test_what_a_shipped_skill_started_from_lies_in_its_folder(name: str) -> None:
    """So that it can be trained again, from what it began with or, on another backbone, anew."""
    named = load_train_spec(SKILLS / name / "train.yaml").start_from
    figures = read_figures(SKILLS / name)
    assert figures is not None
    assert figures["training"]["start_from"] == (named and Path(named).name)
    if named:
        first = SKILLS / name / named
        assert trained_for(first, figures["backbone"]["fingerprint"])
        assert load_train_spec(first / "train.yaml").rank == figures["training"]["rank"]
