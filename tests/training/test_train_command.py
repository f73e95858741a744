"""`agentkit train`: several skills, copies, another backbone."""

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

from agentkit.adapters.weights import check_adapter
from agentkit.cli.app import run
from agentkit.skill.folder import load_skill
from agentkit.testing import TinyBackbone


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., Any]:
    monkeypatch.setenv("AGENTKIT_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--set", "threads=1"])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_copies_are_trained_for_another_backbone_and_the_folders_stay(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
) -> None:
    toys = [make_toy("likelihood", tmp_path / name, steps=2) for name in ("a", "b")]
    second = toys[1].folder.with_name("other-skill")
    toys[1].folder.rename(second)
    card = (second / "SKILL.md").read_text().replace("toy-skill", "other-skill")
    (second / "SKILL.md").write_text(card)
    (second / "metrics.json").write_text("{}")
    before = {path.name for path in toys[0].folder.iterdir()}
    folders = (str(toys[0].folder), str(second))
    out = tmp_path / "out"
    code, printed, _ = call(
        "train", *folders, "--backbone", str(tiny_backbone.path), "--out", str(out)
    )
    assert code == 0
    assert set(json.loads(printed)) == {"toy-skill", "other-skill"}
    assert {path.name for path in toys[0].folder.iterdir()} == before
    for name in ("toy-skill", "other-skill"):
        assert (out / name / "adapter_model.safetensors").exists()
        metrics = json.loads((out / name / "metrics.json").read_text())
        assert metrics["backbone"]["name"] == tiny_backbone.path.name


def test_every_shipped_skill_is_trained_for_another_backbone_by_one_command(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shipped = tmp_path / "shipped"
    for kind in ("choice", "marks", "probed"):
        folder = make_toy(kind, tmp_path / kind, steps=2).folder
        card = (folder / "SKILL.md").read_text().replace("toy-skill", f"{kind}-skill")
        (folder / "SKILL.md").write_text(card)
        shipped.mkdir(exist_ok=True)
        folder.rename(shipped / f"{kind}-skill")
    monkeypatch.setattr("agentkit.skill.registry.shipped_folder", lambda: shipped)
    out = tmp_path / "out"
    code, printed, err = call(
        "train", "--all", "--backbone", str(tiny_backbone.path), "--out", str(out)
    )
    assert code == 0, err
    assert set(json.loads(printed)) == {"choice-skill", "marks-skill", "probed-skill"}
    for folder in out.iterdir():
        skill = load_skill(folder)
        check_adapter(skill)
        assert skill.head
        backbone = json.loads((folder / "metrics.json").read_text())["backbone"]
        assert backbone["fingerprint"] == tiny_backbone.fingerprint
    assert not list(shipped.rglob("*.safetensors"))


def test_settings_are_changed_in_the_copy_alone(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
) -> None:
    toy = make_toy("choice", tmp_path, steps=2)
    before = (toy.folder / "train.yaml").read_text()
    out = tmp_path / "out"
    changes = ("--with", "method=head", "--with", "data=[{path: rows.jsonl, limit: 4}]")
    code, _, _ = call(
        "train", str(toy.folder), "--backbone", str(tiny_backbone.path), "--out", str(out), *changes
    )
    assert code == 0
    assert (toy.folder / "train.yaml").read_text() == before
    training = json.loads((out / "toy-skill" / "metrics.json").read_text())["training"]
    assert (training["method"], training["rank"]) == ("head", 4)
    assert not (out / "toy-skill" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--with", "method=head"), "--out"),
        (("--with", "method", "--out", "o"), "is not KEY=VALUE"),
        (("--with", "method=none", "--out", "o"), "method"),
    ],
)
def test_a_change_that_cannot_be_made_is_bad_input(
    make_toy: Callable[..., Any],
    tmp_path: Path,
    call: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    changes: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = make_toy("choice", tmp_path / "at")
    code, out, err = call("train", str(toy.folder), *changes)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no skill folder is given"),
        (("x", "--all"), "every shipped skill"),
        (("nowhere",), "nowhere"),
    ],
)
def test_a_training_without_a_folder_is_bad_input(
    call: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = call("train", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_copy_is_never_made_onto_its_own_folder(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    toy = make_toy("likelihood", tmp_path)
    code, _, err = call("train", str(toy.folder), "--out", str(toy.folder.parent))
    assert code == 2
    assert "the folder itself" in err
    code, _, err = call("train", str(toy.folder), "--out", str(toy.folder / "out"))
    assert code == 2
    assert "a part of the folder" in " ".join(err.split())
    assert not (toy.folder / "out").exists()


def test_a_copy_follows_its_folder_and_a_refused_change_leaves_no_trace(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=2)
    out = tmp_path / "out"
    backbone = ("--backbone", str(tiny_backbone.path))
    train = ("train", str(toy.folder), *backbone, "--out", str(out))

    def recorded() -> Any:
        return json.loads((out / "toy-skill" / "metrics.json").read_text())

    assert call(*train)[0] == 0
    assert recorded()["training"]["rank"] == 4
    code, _, err = call(*train, "--with", "rnk=3")
    assert (code, "rnk" in err) == (2, True)
    settings = json.loads((toy.folder / "train.yaml").read_text())
    (toy.folder / "train.yaml").write_text(json.dumps(settings | {"rank": 2}))
    rows = (toy.folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (toy.folder / "rows.jsonl").write_text("".join(rows[:12]))
    assert call(*train)[0] == 0
    assert recorded()["training"]["rank"] == 2
    assert sum(recorded()["data"][0][part] for part in ("train_rows", "tuning_rows")) == 12


def test_a_copys_paths_count_from_the_folder_that_it_was_made_of(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
) -> None:
    general = make_toy("likelihood", tmp_path / "general", steps=2, layers="1-3")
    toy = make_toy(
        "likelihood",
        tmp_path / "skills",
        steps=2,
        data=[{"path": "../rows.jsonl"}],
        start_from="../../general/toy-skill",
        layers_of="../../general/toy-skill",
    )
    (toy.folder / "rows.jsonl").rename(toy.folder.parent / "rows.jsonl")
    backbone = ("--backbone", str(tiny_backbone.path))
    assert call("train", str(general.folder), *backbone)[0] == 0
    out = tmp_path / "some" / "where"
    code, _, err = call("train", str(toy.folder), *backbone, "--out", str(out))
    assert code == 0, err
    metrics = json.loads((out / "toy-skill" / "metrics.json").read_text())
    assert metrics["data"][0]["source"] == "../rows.jsonl"
    assert metrics["layers"]["chosen"] == [1, 2, 3]
    assert "layers: 1-3 (of toy-skill)" in err
    assert "42 of the adapter's 42 tensors" in " ".join(err.split())


def test_an_interrupted_training_says_how_it_goes_on(
    make_toy: Callable[..., Any], tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=5000)
    command = Path(sys.executable).with_name("agentkit")
    said = tmp_path / "said"
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [command, "train", toy.folder, "--backbone", tiny_backbone.path],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "AGENTKIT_HOME": str(tmp_path / "home")}
            | {"PYTHONFAULTHANDLER": "1"},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        while "\nstep " not in said.read_text() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # says where it hangs
            process.wait()
            pytest.fail(said.read_text())
    assert code == 130
    assert "interrupted; the same command goes on where the training was" in said.read_text()
    assert "Traceback" not in said.read_text()


@pytest.mark.parametrize("kind", ["choice", "generate", "marks"])
def test_no_rows_to_tune_on_are_told(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
    kind: str,
) -> None:
    data = [{"path": "rows.jsonl", "tuning": 0.0}]
    toy = make_toy(kind, tmp_path, steps=2, data=data)
    code, _, err = call("train", str(toy.folder), "--backbone", str(tiny_backbone.path))
    assert code == 0
    assert "no rows to tune on: no figures will be measured" in " ".join(err.split())


@pytest.mark.parametrize(("kind", "told"), [("choice", True), ("generate", False)])
def test_few_rows_to_tune_on_are_told(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
    kind: str,
    told: bool,
) -> None:
    data = [{"path": "rows.jsonl", "tuning": 0.5}]
    toy = make_toy(kind, tmp_path, steps=2, data=data)
    code, _, err = call("train", str(toy.folder), "--backbone", str(tiny_backbone.path))
    assert code == 0
    assert ("rows to tune on are few" in " ".join(err.split())) == told


def test_layers_that_are_not_there_are_refused_before_a_row_is_read(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
) -> None:
    for number, changes in enumerate(({"layers": "3-9"}, {"method": "prefix", "layers": "2-3"})):
        toy = make_toy("likelihood", tmp_path / str(number), steps=2, **changes)
        code, out, err = call("train", str(toy.folder), "--backbone", str(tiny_backbone.path))
        assert (code, out) == (2, "")
        assert "layer" in err
        assert "reading rows.jsonl" not in err


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("choice", lambda r: r["expected"].update(answer="green"), "'green', not one of"),
        ("choice", lambda r: r.pop("expected"), "says not what is `expected`"),
        ("choice", lambda r: r["input"].update(document=5), "input does not fit: document"),
        ("choice", lambda r: r["expected"].update(evidence=["abc"]), "evidence/0: a stretch is"),
        (
            "choice",
            lambda r: r["expected"].update(evidence=[{"start": 4, "end": 4000}]),
            "4 to 4000 is no stretch of a document of",
        ),
        ("choice", lambda r: r.update(expected="red"), "no object with answer"),
        ("marks", lambda r: r["expected"]["marks"][0].update(label="green"), "'green' is not one"),
        ("generate", lambda r: r.update(expected={"sad": "red"}), "('sad' was unexpected)"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_is_named_by_its_line(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
    kind: str,
    spoil: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    toy = make_toy(kind, tmp_path, steps=2)
    rows = [json.loads(line) for line in (toy.folder / "rows.jsonl").read_text().splitlines()]
    spoil(rows[2])
    lines = [json.dumps(row) for row in rows]
    (toy.folder / "rows.jsonl").write_text("\n".join(["", *lines]))
    code, out, err = call("train", str(toy.folder), "--backbone", str(tiny_backbone.path))
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "rows.jsonl:4" in "".join(err.split())


def test_a_document_longer_than_what_is_shown_when_served_is_told(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
) -> None:
    toy = make_toy("generate", tmp_path, steps=2)
    manifest = json.loads((toy.folder / "skill.yaml").read_text())
    manifest["input"]["properties"]["document"] = {"type": "string"}
    manifest["retrieval"] = {"document": "document", "window": 64}
    (toy.folder / "skill.yaml").write_text(json.dumps(manifest))
    rows = toy.rows
    for number, row in enumerate(rows):
        row["input"]["document"] = f"Deed {number}. " + "The gate is red. " * (9 if number else 1)

    def train() -> tuple[int, str]:
        (toy.folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        data = {"data": [{"path": "rows.jsonl", "tuning": 0}]}
        spec = json.loads((toy.folder / "train.yaml").read_text()) | data
        (toy.folder / "train.yaml").write_text(json.dumps(spec))
        code, _, err = call("train", str(toy.folder), "--backbone", str(tiny_backbone.path))
        return code, " ".join(err.split())

    code, err = train()
    assert code == 0
    assert f"{len(rows) - 1} rows have documents of more than 64 tokens" in err
    rows[3]["input"]["document"] *= 2000
    code, err = train()
    assert code == 2
    assert "rows.jsonl:4" in err
    assert "and the backbone reads" in err


def test_a_text_longer_than_what_is_served_is_learnt_from_and_told(
    make_toy: Callable[..., Any],
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
) -> None:
    toy = make_toy("generate", tmp_path, steps=2)
    rows = [json.loads(line) for line in (toy.folder / "rows.jsonl").read_text().splitlines()]
    rows[2]["expected"]["said"] = "red " * 10
    (toy.folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    code, _, err = call("train", str(toy.folder), "--backbone", str(tiny_backbone.path))
    assert code == 0
    assert "longer text than skill.yaml lets it write: 1, the first of" in " ".join(err.split())
    assert "rows.jsonl:3" in "".join(err.split())
