"""`agentkit skills new` as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]


def test_a_new_skill_lies_under_skills_and_the_next_steps_are_said(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(["skills", "new", "lift-log", "--kind", "marks"])
    assert code == 0
    assert sorted(out.splitlines()) == [
        f"skills/lift-log/{name}"
        for name in ("SKILL.md", "rows.example.jsonl", "skill.yaml", "train.yaml")
    ]
    assert "agentkit train skills/lift-log" in err
    assert call(["skills", "new", "lift-log"])[0] == 2


@pytest.mark.parametrize("name", ["../out", "a/b", "Lift", "auto", ""])
def test_a_name_that_leaves_the_folder_or_breaks_the_rule_writes_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(["skills", "new", name])
    assert (code, out) == (2, "")
    assert "name" in err
    assert list(tmp_path.iterdir()) == []


def test_checking_a_new_skill_says_that_its_adapter_is_missing_and_nothing_else(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call(["skills", "new", "lift-log", "--in", "mine"])
    code, out, err = call(["skills", "check", "mine/lift-log", "--set", f"home={tmp_path}/home"])
    assert (code, out) == (2, "")
    assert "an adapter is what makes a folder a skill" in err
    assert f"train it: agentkit train {tmp_path / 'mine' / 'lift-log'}" in err


COLOURS = {"red": "yes", "blue": "no"}


def colour_rows(documents: range) -> str:
    """Notes that say whether the gate is red, and some that do not."""
    rows = []
    for number in documents:
        colour = ("red", "blue", None)[number % 3]
        said = f"The gate is {colour}." if colour else "The gate is old."
        note = f"Note {number}. {said} The wall is high."
        start = note.index(said)
        evidence = [{"start": start, "end": start + len(said)}] if colour else []
        expected = {"answer": COLOURS.get(colour or "", "unclear"), "evidence": evidence}
        rows.append({"input": {"question": "Is it red?", "document": note}, "expected": expected})
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.weights
def test_from_a_new_folder_and_rows_to_a_skill_that_is_measured_and_routed_to(
    call: Call, sets: list[str], full: list[str], tmp_path: Path
) -> None:
    folder = Path("skills/gate-colour")
    assert call(["skills", "new", "gate-colour"])[0] == 0
    (folder / "rows.jsonl").write_text(colour_rows(range(24)), encoding="utf-8")
    Path("test.jsonl").write_text(colour_rows(range(24, 30)), encoding="utf-8")
    settings = (folder / "train.yaml").read_text("utf-8")
    # The tiny backbone has four layers, and learns by larger steps.
    for usual, tiny in (
        ("layers: upper 1/3", "layers: 1-3"),
        ("learning_rate: 3.0e-4", "learning_rate: 1.0e-2\nhead_learning_rate: 1.0e-2"),
        ("epochs: 2", "epochs: 3\ndtype: float32\npack_tokens: 256"),
    ):
        assert usual in settings
        settings = settings.replace(usual, tiny)
    (folder / "train.yaml").write_text(settings, encoding="utf-8")

    code, out, err = call(["train", folder, "--work", tmp_path / "work", *sets])
    assert code == 0, err
    assert json.loads(out)
    code, out, _ = call(["skills", "check", folder, "--load", *full])
    assert code == 0
    assert "gate-colour is sound" in out
    code, out, err = call(
        ["eval", "gate-colour", "--data", "test.jsonl", "--base", "--json", *full]
    )
    record = json.loads(out)
    assert record["failed"] == 0, err
    accuracy = record["metrics"]["accuracy"]["value"]
    assert set(record["metrics"]) >= {"accuracy", "macro_f1", "ece", "brier", "evidence_f1"}
    assert list(record["compared"]) == ["base"]
    assert record["floors"] == [
        {"metric": "accuracy", "floor": 0.5, "value": accuracy, "met": accuracy >= 0.5}
    ]
    assert code == (0 if accuracy >= 0.5 else 1)
    code, out, _ = call(["route", "gate colour", "--json", *full])
    assert json.loads(out)["skill"] == "gate-colour"
