"""`agentkit calibrate`, and `agentkit train` with questions to calibrate on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from agentkit.cli.app import run
from agentkit.evaluation.calibration import ReadingRunner
from agentkit.testing import TinyBackbone

NEW = ("fence", "tower", "bridge")


@pytest.fixture
def settings(tiny_backbone: TinyBackbone) -> list[str]:
    given = (f"backbone={tiny_backbone.path}", "dtype=float32", "threads=1")
    return [part for one in given for part in ("--set", one)]


@pytest.fixture
def call(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> Callable[..., Any]:
    monkeypatch.setenv("AGENTKIT_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, *settings])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def new_rows(count: int) -> str:
    """Questions that no toy's training asks."""
    rows = []
    for n in range(count):
        thing = NEW[n % len(NEW)]
        said = n % 2 == 0
        text = f"Deed {n}. " + (f"The {thing} is red." if said else "The roof is blue.")
        expected = {"answer": "red" if said else "silent"}
        rows.append({"input": {"thing": thing, "document": text}, "expected": expected})
    return "".join(json.dumps(row) + "\n" for row in rows)


def toy_of(make_toy: Callable[..., Any], tmp_path: Path, **train: Any) -> Path:
    folder: Path = make_toy("choice", tmp_path / "toy", steps=4, **train).folder
    (folder / "new.jsonl").write_text(new_rows(60))
    return folder


def test_a_training_with_questions_to_calibrate_on_ends_with_their_figures(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = toy_of(make_toy, tmp_path, calibration=[{"path": "new.jsonl"}])
    code, _, err = call("train", str(folder))
    assert code == 0, err
    metrics = json.loads((folder / "metrics.json").read_text())
    found = metrics["calibration"]
    assert found["parts"]["calibration"]["questions"] == 60
    assert found["data"][0]["source"] == "new.jsonl"
    assert "calibration" not in metrics["training"]
    known = load_file(folder / "head.safetensors")["calibration.known"]
    assert len(known) == found["known_questions"] > 0
    assert "## Calibration" in (folder / "README.md").read_text()


def test_calibrating_again_begins_from_the_plain_head_and_gives_the_same(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = toy_of(make_toy, tmp_path)
    assert call("train", str(folder))[0] == 0
    plain = load_file(folder / "head.safetensors")
    again = []
    for _ in range(2):
        code, out, err = call("calibrate", str(folder), "--data", str(folder / "new.jsonl"))
        assert code == 0, err
        found = json.loads(out)
        assert found.pop("seconds") > 0
        again.append((found, load_file(folder / "head.safetensors")))
    assert again[0][0] == again[1][0]
    assert set(again[0][0]["parts"]) >= {"new.jsonl"}
    for name, tensor in again[1][1].items():
        assert tensor.equal(again[0][1][name])
    assert all(again[0][1][name].equal(tensor) for name, tensor in plain.items())
    assert "calibration.curve" not in plain


@pytest.mark.parametrize("windows", [False, True])
def test_what_is_served_has_the_probabilities_that_were_fitted(
    windows: bool, make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = toy_of(make_toy, tmp_path)
    rows = folder / "new.jsonl"
    if windows:
        manifest = json.loads((folder / "skill.yaml").read_text())
        manifest["retrieval"] |= {"mode": "windows", "window": 64}
        (folder / "skill.yaml").write_text(json.dumps(manifest))
        rows.write_text(
            new_rows(60).replace('"document": "', f'"document": "{"The sky is. " * 40}')
        )
    assert call("train", str(folder))[0] == 0

    code, out, err = call("calibrate", str(folder), "--data", str(rows))
    assert code == 0, err
    after = json.loads(out)["parts"]["new.jsonl"]["after"]
    skills = ("--skills", str(folder.parent))
    code, out, err = call("eval", folder.name, "--data", str(rows), "--json", *skills)
    assert code == 0, err
    figures = json.loads(out)["metrics"]
    assert figures["accuracy"]["value"] == pytest.approx(after["accuracy"], abs=1e-3)
    assert figures["ece"]["value"] == pytest.approx(after["ece"], abs=2e-3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (new_rows(3), "too few"),
        (new_rows(60).replace('"silent"', '"green"'), "not one of"),
        (new_rows(60) + '{"input": {"thing": 5, "document": "x"}, "expected": {}}', "jsonl:61"),
        ("not json\n", "new.jsonl:1"),
    ],
)
def test_rows_that_say_nothing_are_refused_and_the_head_stays(
    rows: str,
    message: str,
    make_toy: Callable[..., Any],
    tmp_path: Path,
    call: Callable[..., Any],
) -> None:
    folder = toy_of(make_toy, tmp_path)
    assert call("train", str(folder))[0] == 0
    before = (folder / "head.safetensors").read_bytes()
    (folder / "new.jsonl").write_text(rows)
    code, _, err = call("calibrate", str(folder), "--data", str(folder / "new.jsonl"), "--alone")
    assert code == 2
    assert message in " ".join(err.split())
    assert (folder / "head.safetensors").read_bytes() == before


def test_a_folder_that_was_trained_meanwhile_keeps_its_new_head(
    make_toy: Callable[..., Any],
    tmp_path: Path,
    call: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = toy_of(make_toy, tmp_path)
    assert call("train", str(folder))[0] == 0
    newer = (folder / "head.safetensors").read_bytes() + b" "
    answer = ReadingRunner._finish

    def trained_meanwhile(self: ReadingRunner, *given: Any) -> Any:
        (folder / "head.safetensors").write_bytes(newer)
        return answer(self, *given)

    monkeypatch.setattr(ReadingRunner, "_finish", trained_meanwhile)
    records = (folder / "metrics.json").read_bytes()
    code, _, err = call("calibrate", str(folder), "--data", str(folder / "new.jsonl"))
    assert code == 2
    assert "by another process meanwhile" in " ".join(err.split())
    assert (folder / "head.safetensors").read_bytes() == newer
    assert (folder / "metrics.json").read_bytes() == records


@pytest.mark.parametrize("kind", ["likelihood", "marks", "generate"])
def test_only_a_choice_of_a_head_is_calibrated(
    kind: str, make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = make_toy(kind, tmp_path / "toy", calibration=[{"path": "rows.jsonl"}]).folder
    for command in ("train", "calibrate"):
        code, _, err = call(command, str(folder))
        assert code == 2
        assert "a choice that a task head makes" in " ".join(err.split())
    assert not (folder / "metrics.json").exists()


def test_questions_that_the_training_asks_are_told(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = toy_of(make_toy, tmp_path, calibration=[{"path": "new.jsonl"}])
    again = (folder / "new.jsonl").read_text().replace("fence", "gate")
    (folder / "new.jsonl").write_text(again)
    code, _, err = call("train", str(folder))
    assert code == 0
    assert "20 of 60 rows" in " ".join(err.split())


def test_rows_of_ones_own_alone_need_no_data_of_the_training(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = toy_of(make_toy, tmp_path, calibration=[{"path": "new.jsonl"}])
    assert call("train", str(folder))[0] == 0
    known = load_file(folder / "head.safetensors")["calibration.known"]
    (folder / "rows.jsonl").unlink()
    other = tmp_path / "tuning"
    unanswered = json.dumps({"input": {"thing": "gate", "document": "The gate is red."}})
    other.write_text(new_rows(60) + unanswered + "\n")
    code, out, err = call("calibrate", str(folder), "--alone", "--data", str(other))
    assert code == 0, err
    assert "1 rows do not say what is right" in " ".join(err.split())
    found = json.loads(out)
    assert list(found["parts"]) == [str(other)]
    assert found["known_questions"] == len(known)
    assert load_file(folder / "head.safetensors")["calibration.known"].equal(known)
    code, _, err = call("calibrate", str(folder), "--alone")
    assert code == 2
    assert "rows of --data" in " ".join(err.split())


@pytest.mark.parametrize("content", ["{}", "not json"])
def test_records_that_are_none_are_refused_before_anything_changes(
    content: str, make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = toy_of(make_toy, tmp_path)
    assert call("train", str(folder))[0] == 0
    before = (folder / "head.safetensors").read_bytes()
    (folder / "metrics.json").write_text(content)
    code, _, err = call("calibrate", str(folder), "--data", str(folder / "new.jsonl"))
    assert code == 2
    assert "not what a training writes" in " ".join(err.split())
    assert (folder / "head.safetensors").read_bytes() == before
    assert (folder / "metrics.json").read_text() == content


def test_questions_that_cannot_be_used_are_refused_before_the_training(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = toy_of(make_toy, tmp_path, calibration=[{"path": "new.jsonl"}])
    for rows in ("", new_rows(60).replace('"silent"', '"green"'), new_rows(20)):
        (folder / "new.jsonl").write_text(rows)
        code, _, err = call("train", str(folder))
        assert code == 2, err
        assert not (folder / "head.safetensors").exists()


TRAIN = "import sys; from agentkit.cli.app import run; sys.exit(run(sys.argv[1:]))"


def test_a_training_that_was_killed_in_its_calibration_is_not_done_again(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any], settings: list[str]
) -> None:
    folder = toy_of(make_toy, tmp_path, calibration=[{"path": "new.jsonl"}])
    (folder / "new.jsonl").write_text(new_rows(900))  # more than are answered in a moment
    journals = tmp_path / "home" / "training"
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, "train", str(folder), *settings],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        # The training notes in its journal that it is done, and goes on to calibrate.
        while process.poll() is None and not list(journals.glob("several-*.json")):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "calibration" not in json.loads((folder / "metrics.json").read_text())
    adapter = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    code, _, err = call("train", str(folder))
    assert code == 0
    assert "trained before this start" in " ".join(err.split())
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == adapter
    assert "calibration" in json.loads((folder / "metrics.json").read_text())
    assert call("train", str(folder))[0] == 0  # done: now it is trained anew
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns > adapter


def test_a_calibration_that_was_killed_answers_the_rest_alone_and_says_the_same(
    make_toy: Callable[..., Any],
    tmp_path: Path,
    call: Callable[..., Any],
    settings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = toy_of(make_toy, tmp_path)
    (folder / "new.jsonl").write_text(new_rows(900))
    assert call("train", str(folder))[0] == 0
    command = ("calibrate", str(folder), "--data", str(folder / "new.jsonl"))
    kept = tmp_path / "home" / "calibration"

    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, *command, *settings],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        while process.poll() is None and len(list(kept.glob("*/*/*.npz"))) < 3:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    files = sorted(kept.glob("*/*/*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:-9])  # as if the disk had been full

    answered = 0
    answer = ReadingRunner._finish

    def counted(self: ReadingRunner, *given: Any) -> Any:
        nonlocal answered
        answered += 1
        return answer(self, *given)

    monkeypatch.setattr(ReadingRunner, "_finish", counted)

    def calibrated() -> dict[str, Any]:
        code, out, err = call(*command)
        assert code == 0, err
        return {key: value for key, value in json.loads(out).items() if key != "seconds"}

    resumed, of_the_rest = calibrated(), answered
    head = load_file(folder / "head.safetensors")
    assert not list(kept.glob("*/*"))
    assert calibrated() == resumed
    assert answered - of_the_rest > of_the_rest  # nothing is left that was answered before
    again = load_file(folder / "head.safetensors")
    assert again.keys() == head.keys()
    assert all(tensor.equal(head[name]) for name, tensor in again.items())


def test_where_nothing_can_be_kept_a_calibration_goes_through(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    folder = toy_of(make_toy, tmp_path)
    assert call("train", str(folder))[0] == 0
    (tmp_path / "home" / "calibration").write_text("")  # a file where the folder would be
    code, out, err = call("calibrate", str(folder), "--data", str(folder / "new.jsonl"))
    assert code == 0, err
    assert json.loads(out)["parts"]["new.jsonl"]["questions"] == 60
