"""`agentkit route`, `agentkit controller` and the collisions of `agentkit skills check`."""

from __future__ import annotations

import json
import os
import pty
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from agentkit.cli.app import run
from agentkit.kit import Kit
from agentkit.routing.learning import load_learnt
from agentkit.settings import Settings
from agentkit.skill.utterances import append_utterances
from agentkit.testing import TinyBackbone
from agentkit.types import Query
from agentkit.workflow.store import RunStore

Call = Callable[..., tuple[int, str, str]]

weights = pytest.mark.weights

HEDGE = "Which bird sings in this hedge?"
ODD = "What made this noise?"
WORKFLOW = f"""\
name: look-up
inputs:
  text: {{type: text}}
steps:
  look:
    instruction: {ODD}
    input: {{text: "{{{{ inputs.text }}}}"}}
  all:
    for_each: "['{HEDGE}', 'Is rain coming this afternoon?']"
    instruction: "{{{{ item }}}}"
    input: {{text: "{{{{ item }}}}"}}
  named:
    skill: bird-namer
    input: {{text: "{{{{ inputs.text }}}}"}}
outputs:
  said: "{{{{ steps.named.output }}}}"
"""


def settings_of(options: list[str]) -> Settings:
    given = dict(one.split("=", 1) for one in options if "=" in one)
    return Settings(**given)


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_backbone: TinyBackbone,
    skills: Path,
    encoder: Path,
) -> Path:
    """A home with one run that has routes."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "look.yaml").write_text(WORKFLOW, encoding="utf-8")
    settings = {"home": folder / "home", "backbone": tiny_backbone.path, "encoder": encoder}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    given = ["--input", "text=a squeak", "--set", "dtype=float32", "--set", "threads=1"]
    assert run(["run", str(folder / "look.yaml"), "--skills", str(skills), *sets, *given]) == 0
    return folder / "home"


@pytest.fixture
def run_id(ran: Path, home: Path) -> str:
    """The id of a run with routes of its own, in this test's home."""
    shutil.copytree(ran, home)
    with RunStore(home / "runs.sqlite") as store:
        return store.list(1)[0].id


# ---------------------------------------------------------------- route


@weights
def test_a_route_is_explained_with_its_nearest_utterances_threshold_and_reason(
    call: Call, full: list[str]
) -> None:
    code, out, _ = call(["route", HEDGE, "--explain", *full])
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split("\t") == ["skill", "score", "cosine", "nearest utterance", "why"]
    first = lines[1].split("\t")
    assert first[0] == "bird-namer"
    assert first[3] == "which bird is singing here"
    assert first[4] == "accepted"
    assert lines[2].split("\t")[4] == "scores lower"
    assert lines[-3].startswith("-> bird-namer: ")
    assert "a route needs a score of 0." in lines[-2]
    assert "confidence that any skill is for it: 0." in lines[-1]
    _, out, _ = call(["route", "Book a table for two.", "--explain", *full])
    assert "best, yet abstained" in out
    assert "-> abstains: no skill fits" in out


@weights
def test_a_map_shows_the_text_among_the_skills_utterances(
    call: Call, full: list[str], tmp_path: Path
) -> None:
    picture = tmp_path / "map.svg"
    code, out, err = call(["route", HEDGE, "--map", picture, "--json", *full])
    assert code == 0
    assert json.loads(out)["skill"] == "bird-namer"
    assert f"map {picture}" in err
    ElementTree.parse(picture)
    content = picture.read_text(encoding="utf-8")
    assert ">bird-namer<" in content
    assert ">which bird is singing here<" in content
    assert ">query<" in content


def test_a_map_into_a_folder_that_is_not_there_is_bad_input(call: Call, options: list[str]) -> None:
    code, out, err = call(["route", HEDGE, "--map", "nowhere/map.svg", *options])
    assert (code, out) == (2, "")
    assert "nowhere: no such folder" in err


# ---------------------------------------------------------------- eval

ROWS = [
    {"text": HEDGE, "skill": "bird-namer"},
    {"text": "Is rain coming this afternoon?", "skill": "weather-teller"},
    {"instruction": "underline every place", "skill": "place-marker", "input": "In Oslo"},
    {"text": "Book a table for two at eight o'clock.", "skill": None},
    {"text": "will it be sunny", "skill": "bird-namer"},
]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@weights
def test_an_evaluation_prints_figures_and_writes_them_with_pictures(
    call: Call, full: list[str], tmp_path: Path
) -> None:
    rows, out_dir = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "deep" / "out"
    arguments = ["controller", "eval", "--data", rows, "--resamples", 50, *full]
    code, out, err = call([*arguments, "--out", out_dir])
    assert code == 0, err
    table = {line.split("\t")[0]: line.split("\t")[1] for line in out.splitlines() if line}
    assert table["accuracy"] == "0.8000"
    assert table["oos_recall"] == "1.0000"
    assert table["in_scope_accuracy"] == "0.7500"
    assert "bird-namer\tweather-teller\t1" in out
    names = {"map.svg", "risk-coverage.svg", "reliability.svg", "confusion.svg"}
    assert {file.name for file in out_dir.iterdir()} == names | {"metrics.json", "routes.jsonl"}
    for name in names:
        ElementTree.parse(out_dir / name)
    metrics = json.loads((out_dir / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"]["accuracy"]["value"] == 0.8
    assert metrics["rows"] == 5
    routes = [json.loads(line) for line in (out_dir / "routes.jsonl").read_text().splitlines()]
    assert [row["expected"] for row in routes] == [row["skill"] for row in ROWS]
    assert routes[4]["decided"] == "weather-teller"
    code, out, _ = call([*arguments, "--json"])
    assert json.loads(out) == metrics


@weights
def test_without_matplotlib_figures_are_written_and_the_extra_is_named(
    call: Call, full: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:2])
    arguments = ["controller", "eval", "--data", rows, "--resamples", 0, "--out", tmp_path / "o"]
    code, _, err = call([*arguments, *full])
    assert code == 0
    assert "agentkit-skills[plots]" in err
    assert (tmp_path / "o" / "metrics.json").is_file()
    code, _, err = call(["route", HEDGE, "--map", tmp_path / "map.svg", *full])
    assert code == 2
    assert "agentkit-skills[plots]" in err


def test_rows_that_cannot_be_evaluated_are_bad_input(
    call: Call, options: list[str], tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*ROWS, {"text": "x", "skill": "bird-nammer"}])
    code, out, err = call(["controller", "eval", "--data", rows, *options])
    assert (code, out) == (2, "")
    assert f"{rows}:6: there is no skill 'bird-nammer'" in err
    code, _, err = call(["controller", "eval", "--data", tmp_path / "none.jsonl", *options])
    assert code == 2
    assert "cannot read it" in err


# ---------------------------------------------------------------- collisions


def another(skills: Path, folder: Path, name: str, utterances: list[str]) -> Path:
    """A copy of the bird skill by another name, found by other utterances."""
    shutil.copytree(skills / "bird-namer", folder / name)
    manual = folder / name / "SKILL.md"
    text = manual.read_text("utf-8").replace("name: bird-namer", f"name: {name}")
    manual.write_text(text, encoding="utf-8")
    manifest = json.loads((folder / name / "skill.yaml").read_text("utf-8"))
    content = json.dumps(manifest | {"utterances": utterances})
    (folder / name / "skill.yaml").write_text(content, encoding="utf-8")
    return folder / name


@weights
def test_a_skill_that_collides_is_named_with_its_rival_and_fails_a_strict_check(
    call: Call, full: list[str], skills: Path, tmp_path: Path
) -> None:
    twin = another(
        skills, tmp_path, "bird-caller", ["which bird is singing here", "name that bird for me"]
    )
    code, out, err = call(["skills", "check", twin, *full])
    assert code == 0
    assert "bird-caller is sound" in out
    assert "competes with bird-namer" in out
    assert "collides" in out
    assert "both name the utterance: which bird is singing here" in out
    assert "utterances and earlier routes would change" in out
    code, out, err = call(["skills", "check", twin, "--strict", "--json", *full])
    assert code == 2
    assert f"bad {twin}: bird-caller collides" in err
    (checked,) = json.loads(out)
    assert checked["skill"] == "bird-caller"
    assert checked["collisions"]["competitors"][0]["skill"] == "bird-namer"


@weights
def test_a_skill_for_something_else_passes_a_strict_check(
    call: Call, full: list[str], skills: Path, tmp_path: Path
) -> None:
    calm = another(skills, tmp_path, "tax-filer", ["file my tax return", "declare my income"])
    code, out, _ = call(["skills", "check", calm, "--strict", *full])
    assert code == 0
    assert "collides" not in out


def test_without_an_encoder_collisions_are_not_looked_for_unless_they_must_be(
    call: Call, options: list[str], skills: Path
) -> None:
    code, _, err = call(["skills", "check", skills / "bird-namer", *options])
    assert code == 0
    assert "collisions were not looked for" in err
    assert "agentkit models fetch" in err
    arguments = ["skills", "check", skills / "bird-namer", "--strict", *options]
    code, _, err = call([*arguments, "--set", "encoder=/nowhere/at/all"])
    assert code == 2
    assert "/nowhere/at/all" in err


# ---------------------------------------------------------------- learning from use


@weights
def test_a_correction_is_learnt_after_it_was_confirmed_and_not_before(
    call: Call, full: list[str], sets: list[str], run_id: str, home: Path
) -> None:
    code, out, _ = call(["controller", "routes", "--json", *sets])
    recorded = json.loads(out)
    assert code == 0
    assert {(one["step"], one["item"], one["text"]) for one in recorded} == {
        ("look", None, ODD),
        ("all", 0, HEDGE),
        ("all", 1, "Is rain coming this afternoon?"),
    }
    assert recorded[0]["decided"] is None
    given = ["controller", "correct", run_id, "--step", "look", "--skill", "bird-namer", *full]
    assert "corrected to bird-namer" in call(given)[1]
    accepted = ["controller", "accept", run_id, "--step", "all", "--item", 0, *sets]
    assert json.loads(call([*accepted, "--json"])[1])["outcome"] == "accepted"

    learnt = home / "learnt.json"
    code, out, err = call(["controller", "learn", *full])
    assert code == 2
    assert "nobody to ask" in err
    assert f"{ODD}\tbird-namer\trun {run_id} step look" in out
    assert "right of 2 judged routes: 1 before, 2 after" in out
    assert "1 of " in out
    assert not learnt.exists()
    assert json.loads(call(["route", ODD, "--json", *full])[1])["skill"] is None

    code, out, _ = call(["controller", "learn", "--yes", "--json", *full])
    assert code == 0
    plan = json.loads(out)
    assert plan["written"] == [str(learnt)]
    assert [(one["text"], one["skill"]) for one in plan["learn"]] == [(ODD, "bird-namer")]
    assert (plan["accuracy_before"], plan["accuracy_after"]) == (0.5, 1.0)
    assert json.loads(call(["route", ODD, "--json", *full])[1])["skill"] == "bird-namer"
    code, out, _ = call(["controller", "learn", *full])
    assert code == 0
    assert "nothing to learn" in out


@weights
def test_a_run_keeps_the_controller_that_it_began_with(
    call: Call, full: list[str], run_id: str, skills: Path
) -> None:
    given = ["controller", "correct", run_id, "--step", "look", "--skill", "bird-namer", *full]
    assert call(given)[0] == 0
    assert call(["controller", "learn", "--yes", *full])[0] == 0
    with Kit(settings_of(full), skills=[skills]) as kit:
        began = kit.runs.show(run_id).started
        assert kit.controller().route(Query(ODD)).skill == "bird-namer"
        assert kit.controller(as_of=began).route(Query(ODD)).skill is None


@weights
@pytest.mark.parametrize(("answer", "learns"), [("n\n", False), ("y\n", True)])
def test_at_a_terminal_a_person_is_asked(
    call: Call,
    full: list[str],
    run_id: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    learns: bool,
) -> None:
    given = ["controller", "correct", run_id, "--step", "look", "--skill", "bird-namer", *full]
    assert call(given)[0] == 0
    terminal, end = pty.openpty()
    try:
        os.write(terminal, answer.encode())
        with os.fdopen(end, encoding="utf-8") as keyboard, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", keyboard)
            code, _, err = call(["controller", "learn", *full])
    finally:
        os.close(terminal)
    assert "Learn 1 utterances?" in err
    assert (home / "learnt.json").exists() == learns
    assert (code == 0) == learns


@weights
def test_utterances_may_be_written_into_a_skill_of_ones_own(
    call: Call, full: list[str], run_id: str, skills: Path, home: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(skills / "bird-namer", mine / "bird-namer")
    options = [*full, "--skills", str(mine)]
    given = ["controller", "correct", run_id, "--step", "look", "--skill", "bird-namer", *options]
    assert call(given)[0] == 0
    given = ["controller", "correct", run_id, "--step", "all", "--item", 1, "--skill", "none"]
    assert call([*given, *options])[0] == 0
    code, _, err = call(["controller", "learn", "--yes", "--into-skill", *options])
    assert code == 0
    assert str(mine / "bird-namer" / "skill.yaml") in err
    assert ODD in (mine / "bird-namer" / "skill.yaml").read_text(encoding="utf-8")
    assert ODD not in (skills / "bird-namer" / "skill.yaml").read_text(encoding="utf-8")
    assert [one.skill for one in load_learnt(home / "learnt.json").taught] == [None]
    assert json.loads(call(["route", ODD, "--json", *options])[1])["skill"] == "bird-namer"


@weights
def test_an_utterance_of_another_skill_is_taken_from_it_even_into_a_skill(
    call: Call, full: list[str], run_id: str, skills: Path, home: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    for name in ("bird-namer", "place-marker"):
        shutil.copytree(skills / name, mine / name)
    append_utterances(mine / "place-marker", [ODD])
    options = [*full, "--skills", str(mine)]
    given = ["controller", "correct", run_id, "--step", "look", "--skill", "bird-namer", *options]
    assert call(given)[0] == 0
    code, _, err = call(["controller", "learn", "--yes", "--into-skill", *options])
    assert code == 0
    assert str(home / "learnt.json") in err
    assert json.loads(call(["route", ODD, "--json", *options])[1])["skill"] == "bird-namer"
    assert "nothing to learn" in call(["controller", "learn", "--yes", *options])[1]


@weights
def test_what_cannot_be_judged_is_bad_input(
    call: Call, full: list[str], sets: list[str], run_id: str
) -> None:
    correct = ["correct", run_id, "--step", "look", "--skill", "bird-nammer", *full]
    for arguments, said in (
        (["accept", "nowhere", "--step", "look", *sets], "there is no run 'nowhere'"),
        (["accept", run_id, "--step", "named", *sets], "no recorded route of a step 'named'"),
        (["accept", run_id, "--step", "all", *sets], "--item"),
        (correct, "no skill 'bird-nammer'"),
    ):
        code, out, err = call(["controller", *arguments])
        assert (code, out) == (2, "")
        assert said in err


@weights
def test_a_damaged_file_of_learnt_utterances_is_bad_input(
    call: Call, full: list[str], home: Path
) -> None:
    home.mkdir(parents=True)
    (home / "learnt.json").write_text("{", encoding="utf-8")
    code, out, err = call(["route", HEDGE, *full])
    assert (code, out) == (2, "")
    assert f"{home / 'learnt.json'}: the learnt utterances cannot be read" in err
