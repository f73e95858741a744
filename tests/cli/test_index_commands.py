"""`agentkit index` over real files; the encoder is a deterministic one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentkit.cli.app import run
from agentkit.kit import Kit
from agentkit.testing import FakeEncoder

RENT = "1. Rent\n\nThe tenant pays the rent on the first day of each month.\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Kit, "encoder", FakeEncoder())
    folder = tmp_path / "leases"
    folder.mkdir()
    (folder / "lease.txt").write_text(RENT, encoding="utf-8")
    return folder


def test_build_search_and_stats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "build", "leases", str(folder), "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert (built["added"], built["documents"]) == ([str(folder / "lease.txt")], 1)

    assert run(["index", "search", "leases", "who pays the rent", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["text"] == RENT[found[0]["start"] : found[0]["end"]]

    assert run(["index", "search", "leases", "rent", "--filter", "source=other.txt"]) == 0
    assert "tenant" not in capsys.readouterr().out

    assert run(["index", "stats", "leases", "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert (stats["documents"], stats["chunks"]) == (1, built["chunks"])


def test_a_bad_file_is_reported_and_the_rest_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.txt").write_text("")
    assert run(["index", "build", "leases", str(folder)]) == 3
    said = capsys.readouterr()
    assert "1 files added" in said.out
    assert "1 failed" in said.out
    assert "empty.txt" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "nowhere", "rent"], "no index here"),
        (["stats", "Bad Name"], "not an index's name"),
        (["search", "leases", "rent", "--filter", "x=y"], "unknown filter"),
        (["search", "leases", "rent", "--filter", "page=one"], "takes a number"),
        (["search", "leases", "rent", "--mode", "guess"], "unknown search mode"),
        (["build", "leases", "missing.txt"], ""),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code = run(["index", *arguments])
    assert code == (3 if arguments[0] == "build" else 2)
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert "Traceback" not in error
