"""Commands that need no model: what is checked, listed and refused, and how it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agentkit import models
from agentkit.cli.job import read_rows
from agentkit.cli.output import print_table, say
from agentkit.settings import Settings

Call = Callable[..., tuple[int, str, str]]

WORKFLOW = """\
name: birds
inputs:
  document: {type: document}
steps:
  mark:
    skill: place-marker
    input: {document: "{{ inputs.document }}"}
outputs:
  clauses: "{{ steps.mark.output.clauses }}"
"""


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "birds.yaml"
    path.write_text(WORKFLOW, encoding="utf-8")
    return path


def test_no_command_prints_the_help(call: Call) -> None:
    code, out, _ = call([])
    assert code == 0
    assert "validate" in out


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["run"], ["validate", "--bogus", "x"], ["runs", "ls", "--limit", "0"]],
    ids=" ".join,
)
def test_a_malformed_command_line_is_bad_input(call: Call, arguments: list[str]) -> None:
    code, out, err = call(arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error ")


def test_words_of_a_document_drive_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("quote", "a"), [("\x1b]0;title\x07\x9b2J pay", "b\tc\nd")])
    say("\x1b[2J", label="warning")
    out, err = capsys.readouterr()
    assert out == "quote\ta\n\ufffd]0;title\ufffd\ufffd2J pay\tb c d\n"
    assert "\x1b[2J" not in err


def test_an_unknown_setting_is_named_with_those_that_exist(call: Call) -> None:
    code, out, err = call(["models", "ls", "--set", "bakbone=x"])
    assert (code, out) == (2, "")
    assert "bakbone: no such setting" in err
    assert "backbone" in err


def test_a_setting_without_a_value_is_bad_input(call: Call) -> None:
    code, _, err = call(["models", "ls", "--set", "dtype"])
    assert code == 2
    assert "'dtype' is not KEY=VALUE" in err


# ---------------------------------------------------------------- validate and graph


def test_a_sound_workflow_is_said_to_be_sound(
    call: Call, workflow: Path, options: list[str]
) -> None:
    assert call(["validate", workflow, *options])[:2] == (0, "birds: 1 steps, sound\n")


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("outputs:", "outputs: [", ":10:", ""),
        ("skill: place-marker", "skil: place-marker", ":6:5: ", "unknown key 'skil'"),
        ("steps.mark.output", "steps.mask.output", ":9:12: ", "did you mean 'mark'?"),
        ("place-marker", "place-maker", ":6:12: ", "did you mean 'place-marker'?"),
    ],
    ids=["syntax", "unknown key", "missing step", "missing skill"],
)
def test_a_fault_in_a_workflow_is_named_by_file_line_and_column(
    call: Call, workflow: Path, options: list[str], old: str, new: str, place: str, said: str
) -> None:
    workflow.write_text(WORKFLOW.replace(old, new), encoding="utf-8")
    code, out, err = call(["validate", workflow, *options])
    assert (code, out) == (2, "")
    assert f"{workflow}{place}" in err
    assert said in err


def test_a_workflow_that_is_not_there_is_bad_input(call: Call, sets: list[str]) -> None:
    code, _, err = call(["validate", "nowhere.yaml", *sets])
    assert code == 2
    assert "nowhere.yaml" in err


@pytest.mark.parametrize("name", ["contract-review", "document_tasks.yaml"])
def test_a_shipped_workflow_is_found_by_its_name(call: Call, sets: list[str], name: str) -> None:
    code, out, _ = call(["graph", name, "--mermaid"])
    assert code == 0
    assert out.startswith(("graph", "flowchart", "---"))


def test_the_graph_is_mermaid_text_or_a_picture(call: Call, workflow: Path) -> None:
    _, mermaid, _ = call(["graph", workflow, "--mermaid"])
    assert "mark" in mermaid
    assert call(["graph", workflow])[1] == mermaid
    assert call(["graph", workflow, "--svg"])[1].startswith("<svg")


# ---------------------------------------------------------------- run, before anything runs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs the input 'document'"),
        (["--input", "documnt=x.md"], "did you mean 'document'?"),
        (["--input", "document"], "is not KEY=VALUE"),
        (["--input", "document=nowhere.md"], "nowhere.md"),
        (["--input-jsonl", "rows.jsonl"], "--input-jsonl needs --out"),
        (["--input-jsonl", "rows.jsonl", "--out", "out"], "rows.jsonl: cannot read it"),
        (["--input-jsonl", "rows.jsonl", "--out", "out", "--json"], "does not go with --json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_inputs_are_refused_before_a_model_is_loaded(
    call: Call, workflow: Path, options: list[str], arguments: list[str], said: str
) -> None:
    unusable = ["--set", "backbone=/nowhere/at/all"]
    code, out, err = call(["run", workflow, *options, *unusable, *arguments])
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not valid JSON"),
        ('{"id": "b"}', "a row is"),
        ('{"id": "../b", "inputs": {}}', "not an id of its own"),
        ('{"id": "a", "inputs": {}}', "not an id of its own"),
        ('{"id": "b", "inputs": {"document": "\\ud83d"}}', r"half of a character: \ud83d alone"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(
    call: Call, workflow: Path, options: list[str], tmp_path: Path, row: str, said: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "inputs": {}}\n' + row + "\n", encoding="utf-8")
    code, _, err = call(["run", workflow, *options, "--input-jsonl", rows, "--out", "out"])
    assert code == 2
    assert f"{rows}:2:" in err
    assert said in err


@pytest.mark.parametrize("setting", ["threads=0", "max_batch=0"])
def test_a_setting_that_cannot_be_is_refused(call: Call, setting: str) -> None:
    code, out, err = call(["route", "Find the clauses.", "--set", setting])
    assert (code, out) == (2, "")
    assert setting.partition("=")[0] in err
    assert "greater than or equal to 1" in err


def test_a_line_ends_where_the_file_says_not_where_a_text_does(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = ["a\u2028b", "c\x85d", "e\u2029f", "\U0001f600"]
    lines = [
        json.dumps({"id": str(n), "inputs": {"text": text}}, ensure_ascii=n == 3)
        for n, text in enumerate(texts)
    ]
    rows.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert [inputs["text"] for _, inputs in read_rows(rows)] == texts


def test_a_run_with_a_missing_skill_is_refused_at_its_place(
    call: Call, workflow: Path, sets: list[str], agreement_text: str
) -> None:
    Path("a.md").write_text(agreement_text, encoding="utf-8")
    code, _, err = call(["run", workflow, *sets, "--input", "document=a.md"])
    assert code == 2
    assert f"{workflow}:6:12: " in err


# ---------------------------------------------------------------- skills


def test_skills_are_listed_with_how_they_answer(call: Call, options: list[str]) -> None:
    code, out, _ = call(["skills", "ls", *options])
    assert code == 0
    rows = {line.split("\t")[0]: line.split("\t")[1] for line in out.splitlines()}
    assert rows["bird-namer"] == "generate"
    assert rows["weather-teller"] == "choice"
    assert rows["place-marker"] == "marks"


def test_a_bad_folder_is_set_aside_with_its_reason_and_the_others_go_on(
    call: Call, sets: list[str], skills: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(skills, mine)
    (mine / "bird-namer" / "skill.yaml").write_text("utterances: 3\n", encoding="utf-8")
    code, out, err = call(["skills", "ls", "--json", *sets, "--skills", mine])
    assert code == 0
    listed = json.loads(out)
    names = {skill["name"] for skill in listed["skills"]}
    assert {"weather-teller", "place-marker"} <= names
    assert "bird-namer" not in names
    assert "skill.yaml:1:" in listed["rejected"][str(mine / "bird-namer")]
    assert f"set aside {mine / 'bird-namer'}/skill.yaml:1:" in err


def test_the_same_name_in_a_later_folder_wins_and_this_is_said(
    call: Call, options: list[str], skills: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(skills / "bird-namer", mine / "bird-namer")
    manual = mine / "bird-namer" / "SKILL.md"
    manual.write_text(manual.read_text("utf-8").replace("A random skill", "Mine"), encoding="utf-8")
    code, out, err = call(["skills", "show", "bird-namer", *options, "--skills", mine])
    assert code == 0
    assert json.loads(out)["description"].startswith("Mine")
    _, _, err = call(["skills", "ls", *options, "--skills", mine])
    used, instead = mine / "bird-namer", skills / "bird-namer"
    assert f"note bird-namer: {used} is used instead of {instead}" in err


def test_a_skill_is_shown_with_its_manifest_and_digest(call: Call, options: list[str]) -> None:
    code, out, _ = call(["skills", "show", "weather-teller", *options])
    shown = json.loads(out)
    assert code == 0
    assert shown["answer"]["choices"] == ["rain", "sun"]
    assert len(shown["digest"]) == 64
    code, out, err = call(["skills", "show", "weather-taler", *options])
    assert (code, out) == (2, "")
    assert "weather-teller" in err


def test_checking_a_skill_folder_says_whether_it_is_sound(
    call: Call, sets: list[str], skills: Path, tmp_path: Path
) -> None:
    good = skills / "bird-namer"
    broken = tmp_path / "broken-bird"
    shutil.copytree(good, broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, out, err = call(["skills", "check", good, broken, *sets])
    assert code == 2
    assert f"{good}: bird-namer is sound, digest " in out
    assert f"bad {broken}" in err


def test_a_check_with_load_puts_the_adapter_on_the_backbone(
    call: Call, sets: list[str], skills: Path
) -> None:
    code, out, _ = call(["skills", "check", skills / "place-marker", "--load", *sets])
    assert code == 0
    assert "place-marker is sound" in out


def test_a_folder_of_skills_that_is_not_there_is_bad_input(call: Call, sets: list[str]) -> None:
    code, _, err = call(["skills", "ls", *sets, "--skills", "nowhere"])
    assert code == 2
    assert "nowhere: no such folder" in err


# ---------------------------------------------------------------- models and runs


def test_models_that_are_not_fetched_are_listed_so_and_have_no_path(
    call: Call, sets: list[str]
) -> None:
    code, out, _ = call(["models", "ls", *sets])
    assert code == 0
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert {row[0]: row[header.index("fetched")] for row in rows} == dict.fromkeys(
        models.EMBEDDED, "no"
    )
    code, out, err = call(["models", "path", "all-minilm-l6-v2", *sets])
    assert (code, out) == (2, "")
    assert "agentkit models fetch all-minilm-l6-v2" in err


@pytest.mark.weights
def test_a_fetched_model_has_a_path(call: Call, encoder: Path) -> None:
    code, out, _ = call(["models", "path", "all-minilm-l6-v2"])
    assert (code, out) == (0, f"{encoder}\n")
    _, out, _ = call(["models", "ls"])
    assert f"yes\tApache-2.0\t{encoder}" in out


def test_without_runs_the_list_is_empty_and_an_unknown_run_is_bad_input(
    call: Call, sets: list[str]
) -> None:
    assert call(["runs", "ls", *sets])[1].splitlines() == ["run\tworkflow\tstatus\tstarted\terror"]
    assert json.loads(call(["runs", "ls", "--json", *sets])[1]) == []
    code, out, err = call(["runs", "show", "1abc", *sets])
    assert (code, out) == (2, "")
    assert "1abc" in err


# ---------------------------------------------------------------- eval, before anything runs


@pytest.mark.parametrize(
    ("content", "skill", "said"),
    [
        (None, "bird-namer", "cannot read it"),
        ("\n", "bird-namer", "no rows"),
        ("{}\n", "bird-namer", ":1: "),
        ('{"input": {}}\n', "bird-nammer", "there is no skill 'bird-nammer'"),
    ],
    ids=["no file", "no rows", "no input", "no skill"],
)
def test_rows_that_cannot_be_evaluated_are_bad_input(
    call: Call, options: list[str], content: str | None, skill: str, said: str
) -> None:
    if content is not None:
        Path("rows.jsonl").write_text(content, encoding="utf-8")
    code, out, err = call(
        ["eval", skill, "--data", "rows.jsonl", "--predictions", "p.jsonl", *options]
    )
    assert (code, out) == (2, "")
    assert said in err
    assert not Path("p.jsonl").exists()


def test_predictions_into_a_folder_that_is_not_there_are_bad_input(
    call: Call, options: list[str]
) -> None:
    Path("rows.jsonl").write_text('{"input": {}}\n', encoding="utf-8")
    given = ["--data", "rows.jsonl", "--predictions", "nowhere/p.jsonl"]
    code, _, err = call(["eval", "bird-namer", *given, *options])
    assert code == 2
    assert "nowhere: no such folder" in err


def test_a_home_that_cannot_be_written_to_fails_with_the_reason(
    call: Call, sets: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, _, err = call(["runs", "ls", *sets, "--set", f"home={tmp_path / 'file'}"])
    assert code in (1, 2)
    assert str(tmp_path / "file") in err


def test_settings_come_from_the_environment_too(
    call: Call, sets: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTKIT_HOME", str(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in call(["models", "ls"])[1]
    assert Settings().home == tmp_path / "elsewhere"


def test_rows_prints_the_part_of_a_training_set_that_was_asked_for(
    call: Call, tmp_path: Path
) -> None:
    rows = [{"input": {"n": n}, "expected": n % 2} for n in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "train.yaml").write_text(
        "data: [{path: rows.jsonl, tuning: 0.2, holdout: 0.3}]\n", encoding="utf-8"
    )
    parts = []
    for part in ("train", "tuning", "holdout"):
        code, out, _ = call(["rows", str(tmp_path), "--part", part])
        assert code == 0
        parts.append([json.loads(line) for line in out.splitlines()])
    assert all(parts)
    assert sorted(row["input"]["n"] for part in parts for row in part) == list(range(40))
    (tmp_path / "train.yaml").write_text("data: [{path: rows.jsonl}]\n", encoding="utf-8")
    code, out, err = call(["rows", str(tmp_path), "--part", "holdout"])
    assert (code, out) == (0, "")
    assert "a share to keep out: `holdout: 0.1`" in err


def test_rows_of_a_folder_without_a_train_yaml_is_bad_input(call: Call, tmp_path: Path) -> None:
    code, out, err = call(["rows", str(tmp_path)])
    assert (code, out) == (2, "")
    assert "train.yaml" in err
