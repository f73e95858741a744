from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from agentkit.errors import InputError, OutputError
from agentkit.report import build_report, write_report

from .conftest import document_of

NAMES = {"document.txt", "report.json", "report.md", "report.html"}


def test_the_four_files_are_written_and_nothing_else(outputs, document, run, tmp_path):
    folder = tmp_path / "a" / "b"

    files = write_report(build_report(outputs, document, run), document, folder)

    assert set(files) == NAMES
    assert {path.name for path in folder.iterdir()} == NAMES
    data = json.loads(files["report.json"].read_text("utf-8"))
    text = files["document.txt"].read_text("utf-8")
    for clause in data["clauses"]:
        assert text[clause["start"] : clause["end"]] == clause["quote"]


def test_the_text_file_holds_exactly_the_text_that_offsets_count_in(run, tmp_path):
    text = "one\r\ntwo\rthree\n\u2028four \U0001f600 \ufeff"
    document = document_of(text)

    files = write_report(build_report({}, document, run), document, tmp_path)

    assert files["document.txt"].read_bytes().decode("utf-8") == text


def test_files_of_an_earlier_run_are_replaced(outputs, document, run, tmp_path):
    write_report(build_report({}, document, run), document, tmp_path)

    files = write_report(build_report(outputs, document, run), document, tmp_path)

    assert json.loads(files["report.json"].read_text("utf-8"))["clauses"]
    assert {path.name for path in tmp_path.iterdir()} == NAMES


def test_when_one_file_cannot_be_put_in_place_no_part_of_it_is_left(
    outputs, document, run, tmp_path
):
    (tmp_path / "report.json").mkdir()

    with pytest.raises(InputError, match="cannot be written"):
        write_report(build_report(outputs, document, run), document, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_a_folder_that_is_a_file_is_an_input_error(outputs, document, run, tmp_path):
    (tmp_path / "out").write_text("in the way")

    with pytest.raises(InputError, match="cannot be written"):
        write_report(build_report(outputs, document, run), document, tmp_path / "out")


def test_a_report_of_another_document_is_never_written(outputs, document, run, tmp_path):
    report = build_report(outputs, document, run)

    with pytest.raises(OutputError, match="another document"):
        write_report(report, document_of("Something else."), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_quote_in_a_report_made_by_hand_is_never_written(outputs, document, run, tmp_path):
    report = build_report(outputs, document, run)
    clause = report.clauses[0].model_copy(update={"quote": "The price is fixed."})
    forged = report.model_copy(update={"clauses": (clause,)})

    with pytest.raises(OutputError, match="not the document's text"):
        write_report(forged, document, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_no_unicode_is_refused_before_anything_is_written(run, tmp_path):
    document = document_of("half a pair: \ud800")

    with pytest.raises(OutputError, match="UTF-8"):
        write_report(build_report({}, document, run), document, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_files_are_as_readable_as_any_new_file(outputs, document, run, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()

    files = write_report(build_report(outputs, document, run), document, tmp_path)

    for path in files.values():
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_reader_never_sees_half_a_file(outputs, document, run, tmp_path):
    """A file held open across a rewrite keeps its old, whole content: it is replaced, not
    written over."""
    path = write_report(build_report({}, document, run), document, tmp_path)["report.json"]
    before = path.read_bytes()
    with Path(path).open("rb") as held:
        write_report(build_report(outputs, document, run), document, tmp_path)

        assert held.read() == before
        assert os.fstat(held.fileno()).st_ino != path.stat().st_ino
