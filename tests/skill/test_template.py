"""A new skill's folder is sound but for its adapter, and never takes another's place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest

from agentkit.errors import AdapterError, SkillError
from agentkit.evaluation.evaluate import scorer_for, text_reader
from agentkit.evaluation.scoring import Prediction, scorable
from agentkit.output import check_input
from agentkit.skill.folder import load_skill
from agentkit.skill.manifest import ChoiceAnswer
from agentkit.skill.manifest_files import read_manifest
from agentkit.skill.template import EXAMPLE_ROWS, Kind, new_skill, next_steps
from agentkit.testing import TinyBackbone, tiny_adapter, tiny_choice_head, tiny_label_head
from agentkit.training.rows import rows_from_jsonl
from agentkit.training.spec import load_train_spec

KINDS = get_args(Kind)
HEADS = {"choice": lambda: tiny_choice_head(48, 3), "marks": lambda: tiny_label_head(48, 1, 1)}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_is_missing(
    kind: Kind, tmp_path: Path, tiny_backbone: TinyBackbone
) -> None:
    folder = tmp_path / "skills" / "lift-log"
    written = new_skill(folder, kind)
    assert {path.name for path in written} == {
        "SKILL.md",
        "skill.yaml",
        "train.yaml",
        EXAMPLE_ROWS,
    }
    with pytest.raises(AdapterError, match="an adapter is what makes a folder a skill"):
        load_skill(folder)
    trained = tiny_adapter(
        tmp_path / "trained" / "lift-log",
        tiny_backbone,
        head=HEADS[kind]() if kind in HEADS else None,
    )
    for path in trained.iterdir():
        shutil.copy(path, folder)
    skill = load_skill(folder)
    assert skill.name == "lift-log"
    assert [warning.partition(": ")[2].split(":")[0] for warning in skill.warnings] == [
        "is to be filled in"
    ] * 2
    card = folder / "SKILL.md"
    card.write_text(card.read_text("utf-8").replace("Replace this with", "It is"), "utf-8")
    assert load_skill(folder).warnings == ()
    assert skill.manifest.utterances == ("lift log",)


@pytest.mark.parametrize("kind", KINDS)
def test_example_rows_fit_the_schemas_and_can_be_measured(kind: Kind, tmp_path: Path) -> None:
    new_skill(tmp_path / "lift-log", kind)
    manifest, _ = read_manifest(tmp_path / "lift-log")
    scorer = scorer_for(manifest, text_reader(manifest, str))
    rows = rows_from_jsonl(tmp_path / "lift-log" / EXAMPLE_ROWS)
    for row in rows:
        check_input(manifest, row.input)
        assert scorable(manifest, row.expected)
        scorer.add(row.input, row.expected, Prediction(row.expected))
    figures = scorer.figures([1.0] * len(rows))
    for metric in manifest.metrics:
        assert figures[metric] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_its_training_reads_the_rows_that_are_to_be_filled_in(kind: Kind, tmp_path: Path) -> None:
    new_skill(tmp_path / "lift-log", kind)
    spec = load_train_spec(tmp_path / "lift-log" / "train.yaml")
    assert [source.path for source in spec.data] == ["rows.jsonl"]
    steps = next_steps(tmp_path / "lift-log", kind)
    assert any("rows.jsonl" in step for step in steps)
    assert f"agentkit train {tmp_path / 'lift-log'}" in steps


def test_a_choice_may_do_without_a_head_as_its_comment_says(tmp_path: Path) -> None:
    new_skill(tmp_path / "lift-log", "choice")
    path = tmp_path / "lift-log" / "skill.yaml"
    lines = path.read_text("utf-8").splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  # scoring: likelihood"))
    assert lines[at - 2].startswith("  evidence_field:")
    assert lines[at - 1].startswith("  no_evidence:")
    lines[at - 2 : at + 1] = ["  scoring: likelihood"]
    lines.remove("    evidence: {type: array}")
    text = "\n".join(lines).replace("[answer, evidence, score]", "[answer, score]")
    path.write_text(text, encoding="utf-8")
    manifest, _ = read_manifest(tmp_path / "lift-log")
    assert isinstance(manifest.answer, ChoiceAnswer)
    assert manifest.answer.scoring == "likelihood"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "lift-log"
    folder.mkdir()
    (folder / "SKILL.md").write_text("mine", encoding="utf-8")
    with pytest.raises(SkillError, match="there is something already"):
        new_skill(folder, "text")
    assert [path.name for path in folder.iterdir()] == ["SKILL.md"]
    assert (folder / "SKILL.md").read_text("utf-8") == "mine"
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(SkillError, match="there is something already"):
        new_skill(tmp_path / "file", "text")
    with pytest.raises(SkillError, match="it lies in a file"):
        new_skill(tmp_path / "file" / "lift-log", "text")


@pytest.mark.parametrize("name", ["Lift", "a.b", "auto", "lift--log", "x" * 65])
def test_a_name_that_no_skill_may_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SkillError):
        new_skill(tmp_path / name, "text")
    assert list(tmp_path.iterdir()) == []


def test_example_quotes_stand_where_they_say(tmp_path: Path) -> None:
    new_skill(tmp_path / "lift-log", "marks")
    text = (tmp_path / "lift-log" / EXAMPLE_ROWS).read_text("utf-8")
    (row,) = [json.loads(line) for line in text.splitlines()]
    marks = row["expected"]["marks"]
    said = [row["input"]["document"][mark["start"] : mark["end"]] for mark in marks]
    assert said == ["Ann waters the plants by 3 May.", "3 May"]
