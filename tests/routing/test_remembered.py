"""Vectors on disk: the same rows for every process, and nothing worse than missing ones."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agentkit.models import resolve
from agentkit.routing import remembered
from agentkit.routing.controller import Controller
from agentkit.routing.encoder import SentenceEncoder
from agentkit.routing.remembered import RememberedVectors
from agentkit.settings import Settings
from agentkit.types import Query

ROWS = {bytes([k]) * 32: np.arange(k, k + 4, dtype=np.float32) for k in range(9)}
WRITER = """
import sys
from pathlib import Path
import numpy as np
from agentkit.routing.remembered import RememberedVectors
vectors = RememberedVectors(Path(sys.argv[1]))
for k in range(40):
    vectors.write({bytes([int(sys.argv[2]), k]): np.full(64, k, np.float32)})
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "of its own" / "vectors.sqlite"


def test_rows_are_read_as_they_were_written(path: Path) -> None:
    RememberedVectors(path).write(ROWS)
    found = RememberedVectors(path).read([*ROWS, b"unknown"])
    assert found.keys() == ROWS.keys()
    for key, row in ROWS.items():
        np.testing.assert_array_equal(found[key], row)


def test_nothing_is_known_before_and_no_file_made(path: Path) -> None:
    assert RememberedVectors(path).read(list(ROWS)) == {}
    assert not path.exists()


def test_many_keys_are_read_in_several_questions(path: Path) -> None:
    rows = {k.to_bytes(4, "big"): np.full(2, k, np.float32) for k in range(1201)}
    RememberedVectors(path).write(rows)
    assert RememberedVectors(path).read(list(rows)).keys() == rows.keys()


def test_a_damaged_row_counts_as_missing_until_it_is_written_again(path: Path) -> None:
    vectors = RememberedVectors(path)
    vectors.write(ROWS)
    broken = next(iter(ROWS))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE vectors SET row = ? WHERE key = ?", (bytes(16), broken))
    database.close()
    assert vectors.read(list(ROWS)).keys() == ROWS.keys() - {broken}
    vectors.write({broken: ROWS[broken]})
    np.testing.assert_array_equal(vectors.read([broken])[broken], ROWS[broken])


@pytest.mark.parametrize("damage", ["no database", "cut", "overwritten"])
def test_a_file_that_is_no_database_is_begun_afresh(path: Path, damage: str) -> None:
    vectors = RememberedVectors(path)
    vectors.write({bytes([k, 1]): np.full(900, k, np.float32) for k in range(50)})
    whole = path.read_bytes()
    if damage == "no database":
        path.write_bytes(b"not a database at all" * 100)
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 3])
    else:
        path.write_bytes(whole[:200] + np.random.default_rng(0).bytes(len(whole) - 200))
    assert vectors.read(list(ROWS)) == {}
    vectors.write(ROWS)
    assert vectors.read(list(ROWS)).keys() == ROWS.keys()


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    vectors = RememberedVectors(tmp_path / "file" / "vectors.sqlite")
    vectors.write(ROWS)
    assert vectors.read(list(ROWS)) == {}


def test_those_written_longest_ago_go_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_MOST", 4)
    vectors = RememberedVectors(path)
    for key, row in ROWS.items():
        vectors.write({key: row})
    assert list(vectors.read(list(ROWS))) == list(ROWS)[-4:]


def test_processes_write_at_the_same_time(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)])
        for number in range(3)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    keys = [bytes([number, k]) for number in range(3) for k in range(40)]
    found = RememberedVectors(path).read(keys)
    assert found.keys() == set(keys)
    assert all((row == key[1]).all() for key, row in found.items())


@pytest.mark.weights
def test_another_process_does_not_embed_what_one_has_embedded(path: Path) -> None:
    folder = resolve("all-minilm-l6-v2", Settings(), "encoder")
    skills = {"rain": ("Weather", ["will it rain", "is it cold"]), "sums": ("Sums", ["add two"])}
    controller = Controller(SentenceEncoder(folder, kept=path))
    controller.fit(skills)
    size = path.stat().st_size
    query = Query("is rain coming")
    route = controller.route(query)

    other = SentenceEncoder(folder, kept=path)
    computed: list[str] = []
    compute = other._compute
    other._compute = lambda model, texts: computed.extend(texts) or compute(model, texts)  # type: ignore[method-assign, func-returns-value]
    again = Controller(other)
    again.fit(skills)
    assert computed == []
    assert again.route(query) == route
    assert computed == ["is rain coming"]
    assert path.stat().st_size == size  # a query is not kept
