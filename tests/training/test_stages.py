"""`agentkit train` of a skill that starts from another: what has to be trained first is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from agentkit.adapters.tensor_file import BACKBONE_KEY
from agentkit.cli.app import run
from agentkit.testing import TinyBackbone
from agentkit.training.stages import trained_for, weights_digest

WEIGHTS = "adapter_model.safetensors"
OTHER = "f" * 64


@pytest.fixture
def call(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> Callable[..., Any]:
    monkeypatch.setenv("AGENTKIT_HOME", str(tmp_path / "home"))

    def call(*arguments: Any) -> tuple[int, str, str]:
        given = [str(argument) for argument in arguments]
        code = run([*given, "--backbone", str(tiny_backbone.path), "--set", "threads=1"])
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return call


def renamed(folder: Path, to: Path) -> Path:
    """A skill folder in another place, called what that is called."""
    card = (folder / "SKILL.md").read_text().replace(f"name: {folder.name}", f"name: {to.name}")
    (folder / "SKILL.md").write_text(card)
    to.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(to)


@pytest.fixture
def chain(make_toy: Callable[..., Any], tmp_path: Path) -> Path:
    """A skill that starts from a folder in its own, which starts from one beside the skill."""
    skills = tmp_path / "skills"
    toy = make_toy("likelihood", skills, steps=2, start_from="training/first").folder
    first = make_toy("likelihood", tmp_path / "a", steps=2, start_from="../../../general").folder
    general = make_toy("likelihood", tmp_path / "b", steps=2).folder
    renamed(first, toy / "training" / "first")
    renamed(general, skills / "general")
    return toy


def trained_in(said: str) -> list[str]:
    """Which skills' rows a training counted, in order."""
    return re.findall(r"([a-z-]+): \d+ rows in ", said)


def backbone_of(folder: Path) -> str:
    return str(json.loads((folder / "metrics.json").read_text())["backbone"]["fingerprint"])


def of_another_backbone(folder: Path) -> None:
    """A trained folder whose weights say that another backbone is theirs."""
    weights = load_file(folder / WEIGHTS)
    save_file(weights, folder / WEIGHTS, metadata={BACKBONE_KEY: OTHER})


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_a_skill_starts_from_is_trained_first(chain: Path, call: Callable[..., Any]) -> None:
    code, out, err = call("train", chain)
    assert code == 0, err
    assert trained_in(err) == ["general", "first", "toy-skill"]
    assert "first: starts from general" in err
    assert "toy-skill: starts from first" in err
    assert "trained" in json.loads(out)  # figures of the skill alone
    metrics = json.loads((chain / "metrics.json").read_text())
    assert metrics["training"]["start_from"] == "first"
    assert "trained with `agentkit train` from the weights of `first`" in card_of(chain)
    before = [contents(folder) for folder in (chain.parent / "general", chain / "training")]
    code, _, err = call("train", chain)
    assert code == 0
    assert "toy-skill: starts from first with 28 of the adapter's 28 tensors" in err
    assert trained_in(err) == ["toy-skill"]
    assert before == [contents(folder) for folder in (chain.parent / "general", chain / "training")]


def test_what_was_trained_on_another_backbone_is_trained_anew(
    chain: Path, tiny_backbone: TinyBackbone, call: Callable[..., Any]
) -> None:
    assert call("train", chain)[0] == 0
    of_another_backbone(chain / "training" / "first")
    code, _, err = call("train", chain)
    assert code == 0, err
    assert "first: starts from general with 28" in err
    assert trained_in(err) == ["first", "toy-skill"]
    assert backbone_of(chain / "training" / "first") == tiny_backbone.fingerprint


def test_copies_are_trained_for_another_backbone_and_what_was_trained_stays(
    chain: Path, tiny_backbone: TinyBackbone, tmp_path: Path, call: Callable[..., Any]
) -> None:
    assert call("train", chain)[0] == 0
    for folder in (chain.parent / "general", chain / "training" / "first", chain):
        of_another_backbone(folder)
    before = contents(chain.parent)
    out = tmp_path / "out"
    code, _, err = call("train", chain, "--out", out)
    assert code == 0, err
    assert contents(chain.parent) == before
    for folder in ("general", "toy-skill/training/first", "toy-skill"):
        assert backbone_of(out / folder) == tiny_backbone.fingerprint
    assert "toy-skill: starts from first with 28 of the adapter's 28 tensors" in err


def test_a_setting_of_the_skill_is_changed_in_the_skill_alone(
    chain: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    code, _, err = call("train", chain, "--out", tmp_path / "out", "--with", "seed=11")
    assert code == 0, err
    folders = (tmp_path / "out" / name for name in ("toy-skill", "toy-skill/training/first"))
    records = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert [record["training"]["seed"] for record in records] == [11, 7]
    out = tmp_path / "alone"
    code, _, err = call("train", chain, "--out", out, "--with", "start_from=null")
    assert code == 0, err
    assert trained_in(err) == ["toy-skill"]
    assert "starts from" not in err
    assert not (out / "general").exists()


def test_a_general_skill_is_trained_once_for_all_that_start_from_it(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    skills = tmp_path / "skills"
    for name in ("one", "two", "general"):
        start = dict.fromkeys(("start_from", "layers_of"), "../general")
        start = {} if name == "general" else start
        renamed(make_toy("likelihood", tmp_path / name, steps=2, **start).folder, skills / name)
    names = ("one", "general", "two")
    for out in ((), ("--out", tmp_path / "out")):
        for weights in skills.rglob(WEIGHTS):
            weights.unlink()
        code, printed, err = call("train", *(skills / name for name in names), *out)
        assert code == 0, err
        assert list(json.loads(printed)) == list(names)
        assert trained_in(err) == ["general", "one", "two"]
        assert err.count("starts from general with 28 of the adapter's 28 tensors") == 2


def kill(command: list[Any], home: Path, seen: str) -> str:
    """Kill a real training once it says so; what it had said."""
    said = home.parent / "said"
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("agentkit"), *command, "--set", "threads=1"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "AGENTKIT_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        while seen not in said.read_text() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return said.read_text()


@pytest.fixture
def two(make_toy: Callable[..., Any], tmp_path: Path) -> Path:
    """A skill of 500 steps that starts from one of 600, which lies in its folder."""
    toy = make_toy("likelihood", tmp_path / "skills", steps=500, start_from="training/first").folder
    first = make_toy("likelihood", tmp_path / "a", steps=600).folder
    renamed(first, toy / "training" / "first")
    return toy


@pytest.mark.parametrize("out", [(), ("--out",)])
@pytest.mark.parametrize(("step", "left"), [("200/600", 2), ("200/500", 1)])
def test_a_training_that_was_killed_goes_on_with_the_stage_it_was_in(
    two: Path,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    call: Callable[..., Any],
    out: tuple[str, ...],
    step: str,
    left: int,
) -> None:
    command = ["train", two, *(out and (*out, tmp_path / "out"))]
    kill([*command, "--backbone", tiny_backbone.path], tmp_path / "home", f"step {step}")
    code, _, err = call(*command)
    assert code == 0, err
    assert trained_in(err) == ["first", "toy-skill"][-left:]
    assert ("first: trained before this start" in err) is (bool(out) and left == 1)
    assert f"step 100/{step[-3:]}" not in err  # it went on from later
    assert "step 500/500" in err


def test_a_training_does_not_go_on_from_what_began_with_something_else(
    two: Path, tiny_backbone: TinyBackbone, tmp_path: Path, call: Callable[..., Any]
) -> None:
    kill(["train", two, "--backbone", tiny_backbone.path], tmp_path / "home", "step 200/500")
    first = two / "training" / "first"
    train = json.loads((first / "train.yaml").read_text())
    (first / "train.yaml").write_text(json.dumps(train | {"seed": 3, "epochs": 2}))
    (first / WEIGHTS).unlink()
    code, _, err = call("train", two)
    assert code == 0, err
    assert trained_in(err) == ["first", "toy-skill"]
    assert "step 100/500" in err


def test_what_starts_from_a_skill_that_changed_is_trained_anew(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    skills = tmp_path / "skills"
    for name in ("one", "two", "last", "general"):
        start = {"start_from": "../general"} if name in ("one", "two") else {}
        renamed(make_toy("likelihood", tmp_path / name, steps=2, **start).folder, skills / name)
    good = (skills / "last" / "rows.jsonl").read_text()
    (skills / "last" / "rows.jsonl").write_text("no row\n")
    asked = ("train", *(skills / name for name in ("one", "two", "last")), "--out", tmp_path / "o")
    assert call(*asked)[0] == 2  # what comes before the last is done, and noted
    code, _, err = call(*asked)
    assert (code, err.count("trained before this start"), trained_in(err)) == (2, 3, [])
    train = json.loads((skills / "general" / "train.yaml").read_text())
    (skills / "general" / "train.yaml").write_text(json.dumps(train | {"seed": 3}))
    (skills / "last" / "rows.jsonl").write_text(good)
    code, _, err = call(*asked)
    assert code == 0, err
    assert trained_in(err) == ["general", "one", "two", "last"]
    digests = {
        json.loads((tmp_path / "o" / name / "metrics.json").read_text())["start_sha256"]
        for name in ("one", "two")
    }
    assert digests == {weights_digest(tmp_path / "o" / "general")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 8}, "an adapter of the same rank: 4 there, 8 here"),
        ({"size": "auto"}, "an adapter of the same size, which size: auto would find"),
        ({"search": {"minutes": 1}}, "an adapter of the same size, which search.rank would find"),
    ],
)
def test_another_size_is_refused_before_what_is_started_from_is_trained(
    make_toy: Callable[..., Any],
    tmp_path: Path,
    call: Callable[..., Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    start = {"start_from": "../general"} | changes
    toy = make_toy("likelihood", tmp_path / "skills", steps=2, **start).folder
    general = make_toy("likelihood", tmp_path / "a", steps=2).folder
    renamed(general, toy.with_name("general"))
    code, out, err = call("train", toy)
    assert (code, out, trained_in(err)) == (2, "", [])
    assert message in err


def test_another_skills_start_is_not_trained_over(chain: Path, call: Callable[..., Any]) -> None:
    """In place, one beside the skill that is of another backbone: others may start from it."""
    assert call("train", chain)[0] == 0
    for folder in (chain.parent / "general", chain / "training" / "first"):
        of_another_backbone(folder)
    before = contents(chain.parent)
    code, out, err = call("train", chain)
    assert (code, out) == (2, "")
    assert "was trained on another backbone, and other skills may start from it" in err
    assert contents(chain.parent) == before
    code, _, err = call("train", chain, chain.parent / "general")  # it is asked for
    assert code == 0, err
    assert trained_in(err) == ["general", "first", "toy-skill"]


def test_a_head_whose_adapter_was_not_written_any_more_is_no_trained_skill(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("choice", tmp_path / "toy", steps=2)
    backbone = toy.train()[0].metrics["backbone"]["fingerprint"]
    assert trained_for(toy.folder, backbone)
    assert not trained_for(toy.folder, OTHER)
    (toy.folder / WEIGHTS).unlink()
    assert not trained_for(toy.folder, backbone)
    alone = make_toy("choice", tmp_path / "alone", steps=2, method="head")
    alone.train()
    assert trained_for(alone.folder, backbone)
    assert not trained_for(alone.folder, OTHER)


def test_a_skill_can_start_from_itself(
    chain: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    """What it was, in a copy; there is nothing to be trained before."""
    assert call("train", chain)[0] == 0
    out = ("--out", tmp_path / "out", "--with", "start_from=.")
    code, _, err = call("train", chain, *out)
    assert code == 0, err
    assert trained_in(err) == ["toy-skill"]
    assert "toy-skill: starts from toy-skill with 28" in err


def test_a_circle_is_bad_input(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    toy = make_toy("likelihood", tmp_path / "skills", steps=2, start_from="../other").folder
    other = make_toy("likelihood", tmp_path / "a", steps=2, start_from="../toy-skill").folder
    renamed(other, tmp_path / "skills" / "other")
    code, out, err = call("train", toy)
    assert (code, out) == (2, "")
    assert "cannot start from what it leads to" in err


def test_a_copy_that_would_lie_elsewhere_is_bad_input(
    make_toy: Callable[..., Any], tmp_path: Path, call: Callable[..., Any]
) -> None:
    general = make_toy("likelihood", tmp_path / "a", steps=2).folder
    toy = make_toy("likelihood", tmp_path / "b", steps=2, start_from=str(general)).folder
    code, out, err = call("train", toy, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "--with start_from=FOLDER" in err
    assert trained_in(err) == []
    assert not (general / WEIGHTS).exists()


def test_a_head_trained_alone_starts_from_the_head_of_an_adapter(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    general = make_toy("choice", tmp_path / "general", steps=4)
    general.train()
    toy = make_toy(
        "choice", tmp_path / "toy", steps=2, method="head", start_from=str(general.folder)
    )
    _, said = toy.train()
    assert "starts from toy-skill with 13 of the head's 13" in " ".join(said.split())
    assert not (toy.folder / WEIGHTS).exists()
