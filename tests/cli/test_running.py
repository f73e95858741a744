"""Commands that route and run: a tiny backbone, tiny skills and the real encoder."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from watchfiles import watch

from agentkit.report.write import FILES
from agentkit.testing import TinyBackbone
from agentkit.workflow.store import RunStore

from .conftest import finish, spawn

pytestmark = pytest.mark.weights

Call = Callable[..., tuple[int, str, str]]

MARK = """\
name: mark-places
inputs:
  document: {type: document}
steps:
  mark:
    instruction: Mark the places and times.
    input: {document: "{{ inputs.document }}"}
outputs:
  clauses: "{{ steps.mark.output.clauses }}"
"""
BIRDS_ASKED = "which bird is singing here"
BIRDS = """\
name: name-birds
inputs:
  texts: {type: list}
steps:
  look:
    skill: bird-namer
    for_each: inputs.texts
    input: {text: "{{ item }}"}
outputs:
  birds: "{{ steps.look | map(attribute='output.bird') }}"
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    path = tmp_path / "mark.yaml"
    path.write_text(MARK, encoding="utf-8")
    return path


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    path = tmp_path / "birds.yaml"
    path.write_text(BIRDS, encoding="utf-8")
    return path


@pytest.fixture
def letter(tmp_path: Path, agreement_text: str) -> Path:
    path = tmp_path / "letter.md"
    path.write_text(agreement_text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- run


def test_a_run_prints_its_report_and_nothing_else_on_stdout(
    call: Call, full: list[str], mark: Path, letter: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "out"
    given = ["--input", f"document={letter}", "--out", out_dir, "--json"]
    code, out, err = call(["run", mark, *given, *full])
    assert code == 0
    report = json.loads(out)
    text = (out_dir / "document.txt").read_text("utf-8")
    assert report["document"]["characters"] == len(text)
    assert report["clauses"]
    for clause in report["clauses"]:
        assert text[clause["start"] : clause["end"]] == clause["quote"]
    assert report["run"]["skills"]["place-marker"]
    assert report == json.loads((out_dir / "report.json").read_text("utf-8"))
    assert {path.name for path in out_dir.iterdir()} == {
        "document.txt",
        "report.html",
        "report.json",
        "report.md",
    }
    assert "mark" in err
    assert "clauses" in err

    listed = json.loads(call(["runs", "ls", "--json", *full[:8]])[1])
    assert [(run["id"], run["status"]) for run in listed] == [(report["run"]["id"], "done")]
    code, out, _ = call(["runs", "show", report["run"]["id"], *full[:8]])
    shown = json.loads(out)
    assert code == 0
    assert shown["workflow"] == "mark-places"
    assert [entry["step"] for entry in shown["steps"]] == ["mark"]
    assert text not in out


def test_with_out_alone_a_run_prints_the_paths_of_its_files(
    call: Call, full: list[str], mark: Path, letter: Path, tmp_path: Path
) -> None:
    code, out, _ = call(
        ["run", mark, "--input", f"document={letter}", "--out", tmp_path / "out", *full]
    )
    assert code == 0
    assert sorted(out.splitlines()) == sorted(str(p) for p in (tmp_path / "out").iterdir())


def test_a_workflow_without_a_document_prints_its_outputs(
    call: Call, full: list[str], birds: Path
) -> None:
    code, out, _ = call(["run", birds, "--input", 'texts=["a song", "a cry"]', *full])
    assert code == 0
    found = json.loads(out)["outputs"]["birds"]
    assert len(found) == 2
    assert set(found) <= {"wren", "heron"}
    code, _, err = call(["run", birds, "--input", "texts=a song", *full])
    assert code == 2
    assert "input 'texts' must be a list, written as JSON" in err


def test_a_step_that_fails_makes_the_run_fail_without_a_traceback(
    call: Call, full: list[str], birds: Path
) -> None:
    code, out, err = call(["run", birds, "--input", "texts=[1, 2]", *full])
    assert code == 2
    assert out == ""
    assert "step look" in err
    assert "skill bird-namer" in err
    listed = json.loads(call(["runs", "ls", "--json", *full[:8]])[1])
    assert [run["status"] for run in listed] == ["failed"]


def test_many_documents_of_which_one_is_bad_exit_with_3_and_the_others_are_done(
    full: list[str], mark: Path, letter: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    rows = [("good", letter), ("bad", tmp_path / "broken.pdf"), ("again", letter)]
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text(
        "".join(
            json.dumps({"id": name, "inputs": {"document": str(path)}}) + "\n"
            for name, path in rows
        ),
        encoding="utf-8",
    )
    out_dir = tmp_path / "out"
    process = spawn(["run", mark, "--input-jsonl", jsonl, "--out", out_dir, *full], tmp_path)
    code, out, err = finish(process)
    assert code == 3
    assert sorted(path.name for path in out_dir.iterdir()) == ["again", "good"]
    assert len(out.splitlines()) == 8
    assert all(Path(line).is_file() for line in out.splitlines())
    assert "failed bad: " in err
    assert "broken.pdf" in err
    assert "2 of 3 done" in err


WAITS = """\
name: asks
inputs:
  text: {type: text}
steps:
  look:
    instruction: "{{ inputs.text }}"
    on_uncertain: human
    input: {text: "{{ inputs.text }}"}
outputs: {said: "{{ steps.look.output }}"}
"""


def test_documents_that_wait_are_not_done_and_a_place_that_is_taken_ends_no_batch(
    call: Call, full: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "asks.yaml"
    path.write_text(WAITS, encoding="utf-8")
    texts = {"clear": BIRDS_ASKED, "taken": BIRDS_ASKED, "odd": "Fold the napkins into swans."}
    rows = [json.dumps({"id": name, "inputs": {"text": text}}) for name, text in texts.items()]
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("\n".join(rows), encoding="utf-8")
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    (out_dir / "taken").write_text("a file")
    code, out, err = call(["run", path, "--input-jsonl", jsonl, "--out", out_dir, *full])
    assert code == 3
    assert out.splitlines() == [str(out_dir / "clear" / "outputs.json")]
    assert "the outputs cannot be written" in err
    assert "1 of 3 done, 1 waiting for a person" in err


def test_what_a_report_has_no_place_for_is_written_beside_it_and_without_a_report_too(
    call: Call, full: list[str], mark: Path, letter: Path, tmp_path: Path
) -> None:
    own = MARK + '  count: "{{ steps.mark.output.clauses | length }}"\n'
    mark.write_text(own + "report:\n  title: Marked\n", encoding="utf-8")
    given = ["--input", f"document={letter}", "--out", tmp_path / "out"]
    code, out, _ = call(["run", mark, *given, "--json", *full])
    assert code == 0
    told = json.loads(out)
    beside = json.loads((tmp_path / "out" / "outputs.json").read_text("utf-8"))
    assert beside["run"] == told["run"]["id"]
    assert beside["report"] == told["report"] == {"title": "Marked"}
    outputs = beside["outputs"]
    assert outputs == told["outputs"] == {"count": len(told["clauses"])}

    mark.write_text(MARK, encoding="utf-8")  # a report alone takes away what an earlier run left
    code, _, _ = call(["run", mark, *given, *full])
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)

    mark.write_text(MARK.replace("  clauses:", "  reviews:"), encoding="utf-8")
    code, out, err = call(["run", mark, *given, *full])
    assert (code, out) == (1, "")
    assert "reviews[0].rule" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["outputs.json"]
    kept = json.loads((tmp_path / "out" / "outputs.json").read_text("utf-8"))["outputs"]
    assert len(kept["reviews"]) == outputs["count"]


def test_a_run_is_not_finished_by_another_backbone(
    call: Call, full: list[str], birds: Path, home: Path, tmp_path: Path
) -> None:
    code, _, _ = call(["run", birds, "--input", "texts=[1, 2]", *full])
    assert code == 2
    (run,) = json.loads(call(["runs", "ls", "--json", *full[:8]])[1])
    assert "steps" not in run
    other = TinyBackbone.create(tmp_path / "other", seed=5)
    elsewhere = ["--set", f"backbone={other.path}"]
    code, out, err = call(["runs", "resume", run["id"], *full, *elsewhere])
    assert (code, out) == (2, "")
    assert "began with another backbone" in err
    assert json.loads(call(["runs", "show", run["id"], *full[:8]])[1])["status"] == "failed"


def test_a_run_is_not_finished_by_another_encoder(
    call: Call, full: list[str], encoder: Path, birds: Path, tmp_path: Path
) -> None:
    assert call(["run", birds, "--input", "texts=[1, 2]", *full])[0] == 2
    (run,) = json.loads(call(["runs", "ls", "--json", *full[:8]])[1])
    other = tmp_path / "other"
    shutil.copytree(encoder, other)
    weights = other / "model.safetensors"
    weights.chmod(0o644)
    tensors = load_file(weights)
    save_file({name: value * 1.5 for name, value in tensors.items()}, weights, {"format": "pt"})
    code, out, err = call(["runs", "resume", run["id"], *full, "--set", f"encoder={other}"])
    assert (code, out) == (2, "")
    assert "began with another encoder" in err
    assert call(["runs", "resume", run["id"], *full])[0] == 2  # the same one goes on, and fails
    shown = json.loads(call(["runs", "show", run["id"], *full[:8]])[1])
    assert (shown["status"], len(shown["encoder"])) == ("failed", 64)


def test_when_every_document_is_bad_the_exit_code_is_1(
    call: Call, full: list[str], mark: Path, tmp_path: Path
) -> None:
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text('{"id": "a", "inputs": {"document": "nowhere.md"}}\n', encoding="utf-8")
    code, out, err = call(["run", mark, "--input-jsonl", jsonl, "--out", tmp_path / "out", *full])
    assert (code, out) == (1, "")
    assert "0 of 1 done" in err


def test_an_interrupt_ends_a_run_with_130_and_it_goes_on_when_resumed(
    call: Call, full: list[str], birds: Path, home: Path, tmp_path: Path
) -> None:
    texts = json.dumps([f"bird number {number}" for number in range(200)])
    home.mkdir()
    process = spawn(["run", birds, "--input", f"texts={texts}", *full], tmp_path)
    run = _first_item(home)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    with RunStore(home / "runs.sqlite") as store:
        record = store.show(run)
    assert record.status == "interrupted"
    assert 0 < len(record.steps) < 200
    assert all(entry["record"]["error"] is None for entry in record.steps)
    code, out, _ = call(["runs", "resume", run, *full])
    assert code == 0
    assert len(json.loads(out)["outputs"]["birds"]) == 200


WAITING = """\
name: ask-someone
inputs:
  text: {type: text}
steps:
  look:
    instruction: Book a table for two at eight o'clock.
    input: {text: "{{ inputs.text }}"}
    on_uncertain: human
outputs:
  found: "{{ steps.look.output }}"
"""


def test_a_run_that_waits_for_a_person_goes_on_with_the_decision(
    call: Call, full: list[str], tmp_path: Path
) -> None:
    workflow = tmp_path / "ask.yaml"
    workflow.write_text(WAITING, encoding="utf-8")
    code, out, err = call(["run", workflow, "--input", "text=a wren", *full])
    waiting = json.loads(out)
    assert code == 0
    assert f"agentkit runs resume {waiting['run']}" in err
    assert waiting["waiting"][0]["step"] == "look"

    resume = ["runs", "resume", waiting["run"], *full]
    code, out, _ = call(resume)  # without a decision it waits on
    assert (code, json.loads(out)) == (0, waiting)
    code, _, err = call([*resume, "--decide", '{"skill": '])
    assert (code, "not JSON" in err) == (2, True)
    code, out, _ = call([*resume, "--decide", "bird-namer"])
    assert code == 0
    assert set(json.loads(out)["outputs"]["found"]) == {"bird"}


def _first_item(home: Path) -> str:
    """Wait until a run has finished an item; returns its id."""
    database = home / "runs.sqlite"
    for _ in watch(home, step=50, rust_timeout=500, yield_on_timeout=True):
        if not database.exists():
            continue
        with RunStore(database) as store:
            for record in store.list(1):
                if store.show(record.id).steps:
                    return record.id
    raise AssertionError("watching ended")


# ---------------------------------------------------------------- route


def routed(call: Call, options: Sequence[str], text: str) -> str | None:
    code, out, _ = call(["route", text, "--json", *options])
    assert code == 0
    skill: str | None = json.loads(out)["skill"]
    return skill


def test_a_route_is_explained_with_every_score(call: Call, full: list[str]) -> None:
    code, out, _ = call(["route", "Which bird sings in this hedge?", *full])
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "skill\tscore"
    assert lines[1].startswith("bird-namer\t")
    assert {line.split("\t")[0] for line in lines[1:-1]} >= {"weather-teller", "place-marker"}
    assert lines[-1].startswith("-> bird-namer: ")


def test_a_task_that_no_skill_can_do_is_abstained_from(call: Call, full: list[str]) -> None:
    _, out, _ = call(["route", "Book a table for two at eight o'clock.", *full])
    assert out.splitlines()[-1].startswith("-> abstains: no skill fits")


def test_swapping_the_utterances_of_two_skills_changes_the_routes(
    call: Call, full: list[str], skills: Path, tmp_path: Path
) -> None:
    bird, rain = "Which bird sings in this hedge?", "Is rain coming this afternoon?"
    assert routed(call, full, bird) == "bird-namer"
    assert routed(call, full, rain) == "weather-teller"
    swapped = tmp_path / "swapped"
    names = ("bird-namer", "weather-teller")
    for name in names:
        shutil.copytree(skills / name, swapped / name)
    manifests = [json.loads((skills / name / "skill.yaml").read_text("utf-8")) for name in names]
    utterances = [manifest["utterances"] for manifest in manifests]
    for name, manifest, given in zip(names, manifests, reversed(utterances), strict=True):
        text = json.dumps(manifest | {"utterances": given})
        (swapped / name / "skill.yaml").write_text(text, encoding="utf-8")
    options = [*full, "--skills", str(swapped)]
    assert routed(call, options, bird) == "weather-teller"
    assert routed(call, options, rain) == "bird-namer"


# ---------------------------------------------------------------- eval


def evaluated(
    call: Call, options: Sequence[str], skill: str, rows: list[Any], *more: str
) -> tuple[int, list[dict[str, Any]], str]:
    data, predictions = Path("data.jsonl"), Path("predictions.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["--data", data, "--predictions", predictions, *more]
    code, out, err = call(["eval", skill, *given, *options])
    assert out == ""
    return code, [json.loads(line) for line in predictions.read_text("utf-8").splitlines()], err


def test_predictions_are_one_object_per_row_in_order_even_when_a_row_fails(
    call: Call, full: list[str]
) -> None:
    texts: list[Any] = [f"bird {number}" for number in range(40)]
    texts[7] = 7
    rows = [{"input": {"text": text}, "expected": {}} for text in texts]
    code, predictions, err = evaluated(call, full, "bird-namer", rows)
    assert code == 3
    assert len(predictions) == 40
    assert predictions[7]["output"] is None
    assert "does not fit" in predictions[7]["error"]
    assert "40 rows, 1 failed" in err
    alone = evaluated(call, full, "bird-namer", [rows[23]])
    assert alone[0] == 0
    assert alone[1] == [predictions[23]]


def test_all_scores_lowers_the_thresholds_to_zero(
    call: Call, full: list[str], agreement_text: str
) -> None:
    rows = [{"input": {"document": agreement_text}}]
    _, (kept,), _ = evaluated(call, full, "place-marker", rows)
    _, (all_of_them,), _ = evaluated(call, full, "place-marker", rows, "--all-scores")
    assert {clause["category"] for clause in kept["output"]["clauses"]} == {"time"}
    found = all_of_them["output"]["clauses"]
    assert {clause["category"] for clause in found} == {"place", "time"}
    assert all(0 <= clause["score"] <= 1 for clause in found)
