"""Versions of a skill and what-if, by command: a tiny backbone, tiny skills, the real encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentkit.kit import Kit
from agentkit.settings import Settings
from agentkit.testing import TinyBackbone, tiny_adapter, tiny_choice_head
from agentkit.workflow import RunStore, parse_spec, resume

pytestmark = pytest.mark.weights

Call = Callable[..., tuple[int, str, str]]

FLOW = """\
name: tell-weather
inputs:
  texts: {type: list}
steps:
  look:
    skill: weather-teller
    for_each: inputs.texts
    input: {text: "{{ item }}"}
outputs:
  weather: "{{ steps.look | map(attribute='output.weather') }}"
"""


@pytest.fixture
def own(tmp_path: Path, skills: Path, tiny_backbone: TinyBackbone) -> Path:
    """A folder with two versions of a skill; their answers differ."""
    folder = tmp_path / "own"
    shutil.copytree(skills / "weather-teller", folder / "weather-teller")
    shutil.copytree(skills / "bird-namer", folder / "bird-namer")
    new = tiny_adapter(
        tmp_path / "new" / "weather-teller",
        tiny_backbone,
        seed=7,
        head=tiny_choice_head(48, 2, seed=9),
        manifest=json.loads((skills / "weather-teller" / "skill.yaml").read_text("utf-8")),
    )
    new.rename(folder / "weather-teller@2")
    return folder


@pytest.fixture
def given(sets: list[str], encoder: Path, own: Path) -> list[str]:
    return [*sets, "--skills", str(own), "--set", f"encoder={encoder}"]


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    path = tmp_path / "weather.yaml"
    path.write_text(FLOW, encoding="utf-8")
    return path


def run_of(call: Call, flow: Path, given: list[str], texts: str = '["Hm.", "Oh."]') -> Any:
    code, out, err = call(["run", flow, "--input", f"texts={texts}", *given])
    assert code == 0, err
    shown = call(["runs", "show", json.loads(out)["run"], *given[:8]])[1]
    return json.loads(shown)


def test_a_version_is_released_promoted_and_rolled_back(
    call: Call, given: list[str], flow: Path, own: Path, home: Path
) -> None:
    first = run_of(call, flow, given)
    assert first["versions"] == {}

    code, out, _ = call(["skills", "release", "weather-teller@2", "--share", "1", "--json", *given])
    assert code == 0
    assert [(row["label"], row["share"], row["stable"]) for row in json.loads(out)] == [
        ("weather-teller", 0.0, True),
        ("weather-teller@2", 1.0, False),
    ]
    second = run_of(call, flow, given)
    assert second["versions"] == {"weather-teller": "2"}
    assert second["skills"]["weather-teller"] != first["skills"]["weather-teller"]
    assert {entry["record"]["skill"] for entry in second["steps"]} == {"weather-teller"}

    assert call(["skills", "promote", "weather-teller@2", *given])[0] == 0
    assert call(["skills", "rollback", "weather-teller", *given])[0] == 0
    assert run_of(call, flow, given)["versions"] == {}

    # A run keeps the version that it began with, whatever is released or removed meanwhile.
    shutil.rmtree(own / "weather-teller@2")
    settings = Settings(home=home, backbone=given[3].partition("=")[2], dtype="float32", threads=1)
    with RunStore(settings.runs_db) as store, Kit(settings, skills=[own]) as kit:
        record = store.show(second["id"])
        compiled = kit.compile(
            parse_spec(store.spec(record.id)[0]), digests=record.skills, as_of=record.started
        )
        assert resume(compiled, record.id, store=store).status == "done"
        assert compiled.runner.skills["weather-teller"].digest == record.skills["weather-teller"]


def test_a_version_is_shown_and_measured_by_its_label(
    call: Call, given: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    row = {"input": {"text": "Hm."}, "expected": {"weather": "rain"}}
    data.write_text(json.dumps(row), encoding="utf-8-sig")  # as some editors begin a file
    shown = [
        json.loads(call(["skills", "show", label, *given])[1])["digest"]
        for label in ("weather-teller", "weather-teller@2")
    ]
    assert shown[0] != shown[1]
    against = ["--against", "weather-teller", "--resamples", "0", "--json"]
    code, out, _ = call(["eval", "weather-teller@2", "--data", data, *against, *given])
    assert (code, json.loads(out)["digest"]) == (0, shown[1])
    code, _, err = call(["eval", "weather-teller@3", "--data", data, *given])
    assert code == 2
    assert "weather-teller@2" in err


def test_by_input_the_same_document_always_meets_the_same_version(
    call: Call, given: list[str], flow: Path, tmp_path: Path
) -> None:
    release = ["skills", "release", "weather-teller@2", "--share", "0.5", "--by-input"]
    assert call([*release, *given])[0] == 0
    rows = [{"id": f"{text}{n}", "inputs": {"texts": [text]}} for text in "abcde" for n in (1, 2)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert call(["run", flow, "--input-jsonl", data, "--out", tmp_path / "out", *given])[0] == 0
    met: dict[str, set[str]] = {}
    for run in json.loads(call(["runs", "ls", "--json", *given[:8]])[1]):
        met.setdefault(run["inputs"]["texts"][0], set()).add(str(run["versions"]))
    assert len(met) == 5
    assert all(len(versions) == 1 for versions in met.values())
    assert len(set.union(*met.values())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["release", "weather-teller@3", "--share", "0.1"], "there is no skill"),
        (["release", "weather-teller@two", "--share", "0.1"], "not a version"),
        (["release", "weather-teller", "--share", "0.1"], "names no version"),
        (["release", "weather-teller@2", "--share", "1.1"], "within 0 and 1"),
        (["release", "nobody@2", "--share", "0.1"], "there is no skill"),
        (["promote", "weather-teller@7"], "there is no skill"),
        (["promote", "weather-teller"], "serves every run already"),
        (["rollback", "weather-teller"], "nothing to take back"),
        (["compare", "bird-namer"], "only version to compare"),
        (["compare", "nobody"], "there is no skill"),
    ],
)
def test_what_cannot_be_released_is_said_with_exit_code_2(
    call: Call, given: list[str], arguments: list[str], message: str
) -> None:
    code, out, err = call(["skills", *arguments, *given])
    assert (code, out) == (2, "")
    assert message in err


def test_a_released_folder_that_is_gone_is_said_and_the_stable_version_serves(
    call: Call, given: list[str], flow: Path, own: Path
) -> None:
    assert call(["skills", "release", "weather-teller@2", "--share", "1", *given])[0] == 0
    shutil.rmtree(own / "weather-teller@2")
    code, out, err = call(["skills", "releases", *given])
    assert code == 0
    assert "weather-teller@2\t100%" in out
    assert "its folder is not there" in err
    code, out, err = call(["run", flow, "--input", 'texts=["Hm."]', *given])
    assert code == 0
    assert "weather-teller serves instead" in err.replace("\n", " ")


def test_versions_are_compared_on_held_out_rows_and_on_the_runs_so_far(
    call: Call, given: list[str], flow: Path, tmp_path: Path
) -> None:
    run_of(call, flow, given)
    assert call(["skills", "release", "weather-teller@2", "--share", "1", *given])[0] == 0
    run_of(call, flow, given)
    rows = [{"input": {"text": f"day {n}"}, "expected": {"weather": "rain"}} for n in range(6)]
    rows.append({"input": {"text": "who knows"}})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["skills", "compare", "weather-teller", "--data", data, "--resamples", "0", *given]
    code, out, _ = call([*command, "--json"])
    assert code == 0
    found = json.loads(out)
    assert list(found["versions"]) == ["weather-teller", "weather-teller@2"]
    assert {(one["version"], one["runs"], one["calls"]) for one in found["live"]} == {
        (None, 1, 2),
        ("2", 1, 2),
    }
    assert found["held_out"]["rows"] == 7
    assert found["held_out"]["measured"]["rows"] == 6
    assert set(found["held_out"]["differing_rows"]) == {"weather-teller@2"}
    code, out, _ = call(command)
    assert code == 0
    assert "weather-teller@2 answers" in out


# ---------------------------------------------------------------- what if


def test_another_choice_is_shown_beside_what_was_recorded(
    call: Call, given: list[str], flow: Path
) -> None:
    run = run_of(call, flow, given)
    whatif = ["runs", "whatif", run["id"], "--step", "look", "--item", "1"]
    code, out, _ = call([*whatif, "--skill", "bird-namer", "--json", *given])
    assert code == 0
    found = json.loads(out)
    assert found["recorded"] == run["steps"][1]["record"]
    assert found["instead"]["skill"] == "bird-namer"
    assert set(found["instead"]["output"]) == {"bird"}
    assert {one["kind"] for one in found["differences"]} == {"added", "removed"}

    code, out, err = call([*whatif, "--base", *given])
    assert code == 0
    assert "(the bare backbone)" in out
    assert "weather-teller" in out
    assert run["id"] in err

    code, out, _ = call([*whatif, "--no-context", *given])
    assert code == 0
    assert "the outputs are the same" in out

    code, out, _ = call([*whatif, "--skill", "weather-teller@2", "--json", *given])
    assert code == 0
    assert json.loads(out)["instead"]["digest"] != found["recorded"]["digest"]

    after = json.loads(call(["runs", "show", run["id"], *given[:8]])[1])
    assert len(after.pop("what_ifs")) == 4
    run.pop("what_ifs")
    assert after == run


def test_a_choice_that_cannot_be_made_is_an_input_error(
    call: Call, given: list[str], flow: Path
) -> None:
    run = run_of(call, flow, given, '["Hm."]')
    for choice, message in (
        (["--skill", "nobody"], "there is no skill 'nobody'"),
        (["--skill", "bird-namer", "--base"], "does not go with"),
        ([], "no other choice"),
        (["--base", "--step", "other"], "no step 'other'"),
    ):
        code, out, err = call(["runs", "whatif", run["id"], "--step", "look", *choice, *given])
        assert (code, out) == (2, "")
        assert message in err


# ---------------------------------------------------------------- eval-workflow


def test_a_workflow_is_scored_and_its_errors_are_charged(
    call: Call, given: list[str], flow: Path, tmp_path: Path
) -> None:
    answers = json.loads(call(["run", flow, "--input", 'texts=["a", "b"]', *given])[1])["outputs"]
    right = {"skill": "weather-teller", "items": [{"output": {"weather": answers["weather"][0]}}]}
    rows = [
        {"id": "both", "inputs": {"texts": ["a", "b"]}, "expected": answers},
        {"id": "one", "inputs": {"texts": ["a"]}, "steps": {"look": right}},
        {"id": "birds", "inputs": {"texts": ["a"]}, "expected": {"weather": ["bird"]},
         "steps": {"look": {"skill": "bird-namer"}}},
        {"id": "unread", "inputs": {"texts": "a"}, "expected": {"weather": []}},
    ]  # fmt: skip
    data = tmp_path / "gold.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out_file = tmp_path / "predictions.jsonl"
    taken = ["eval-workflow", flow, "--data", data, "--out", tmp_path, *given]
    code, out, err = call(taken)
    assert (code, out) == (2, "")
    assert "a folder, not a file" in err
    command = ["eval-workflow", flow, "--data", data, "--resamples", "0", "--out", out_file, *given]
    code, out, err = call([*command, "--json"])
    assert code == 3
    assert "unread" in err
    found = json.loads(out)
    assert found["charges"]["all"] == {"right": 2, "router": 0, "retrieval": 0, "skill": 1}
    assert found["steps"]["look"]["routes"] == 2
    assert [one["row"] for one in found["wrong_routes"]] == ["birds"]
    lines = [json.loads(line) for line in out_file.read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["both", "one", "birds", "unread"]
    assert lines[0]["outputs"] == answers
    assert lines[0]["targets"][0]["charge"] == "right"
    listed = json.loads(call(["runs", "ls", "--json", *given[:8]])[1])
    assert len(listed) == 1, "an evaluation keeps no runs"
    code, out, _ = call(command)
    assert "charged to\tright\trouter\tretrieval\tskill" in out
