"""`agentkit eval` as a user calls it: figures, comparisons, floors, files and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.weights

Call = Callable[..., tuple[int, str, str]]
ROWS = [
    {"input": {"text": f"day {n // 2}, sky {n}"}, "expected": {"weather": ("rain", "sun")[n % 2]}}
    for n in range(8)
]


def rows_file(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evaluated(call: Call, options: Sequence[object], *more: object) -> tuple[int, Any, str]:
    code, out, err = call(["eval", *more, "--json", *options])
    return code, json.loads(out) if out else None, err


def test_a_skill_is_measured_beside_base_another_version_and_the_prior(
    call: Call, full: list[str], skills: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    data = rows_file("rows.jsonl", ROWS)
    older = tmp_path / "older"
    shutil.copytree(skills / "weather-teller", older)
    out_dir = tmp_path / "out"
    code, record, err = evaluated(
        call,
        full,
        *("weather-teller", "--data", data, "--base", "--against", older, "--out", out_dir),
        *("--baseline", "--train-data", data, "--resamples", 50, "--predictions", "p.jsonl"),
    )
    assert code == 0
    assert (record["rows"], record["documents"], record["failed"]) == (8, 8, 0)
    predictions = [json.loads(line) for line in Path("p.jsonl").read_text("utf-8").splitlines()]
    right = [
        one["output"]["weather"] == row["expected"]["weather"]
        for one, row in zip(predictions, ROWS, strict=True)
    ]
    assert record["metrics"]["accuracy"]["value"] == sum(right) / 8
    compared = record["compared"]
    assert list(compared) == ["base", "against", "prior", "tf-idf"]
    # The same skill in another folder answers the same; the prior knows every row's answer.
    assert compared["against"]["metrics"] == record["metrics"]
    assert compared["against"]["differences"]["accuracy"] == {"value": 0, "low": 0, "high": 0}
    assert compared["prior"]["metrics"]["accuracy"]["value"] == 1.0
    assert {path.name for path in out_dir.iterdir()} == {
        "confusion.svg",
        "evaluation.json",
        "reliability.svg",
    }
    assert json.loads((out_dir / "evaluation.json").read_text("utf-8")) == record
    assert "8 rows, 0 failed -> p.jsonl" in err


def test_a_table_is_printed_without_json(call: Call, full: list[str]) -> None:
    data = rows_file("rows.jsonl", ROWS)
    code, out, _ = call(["eval", "weather-teller", "--data", data, "--resamples", 20, *full])
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert lines[0] == ["metric", "value", "95% interval"]
    assert [line[0] for line in lines[1:5]] == ["accuracy", "macro_f1", "ece", "brier"]
    assert [line[0] for line in lines[6:]] == ["label", "rain", "sun"]


def test_a_missed_floor_is_named_and_exits_with_1(
    call: Call, full: list[str], skills: Path, tmp_path: Path
) -> None:
    strict = tmp_path / "strict" / "weather-teller"
    shutil.copytree(skills / "weather-teller", strict)
    manifest = json.loads((strict / "skill.yaml").read_text("utf-8"))
    manifest["metrics"] = {"accuracy": {"floor": 1.01}, "macro_f1": {"floor": 0.0}}
    (strict / "skill.yaml").write_text(json.dumps(manifest), encoding="utf-8")
    data = rows_file("rows.jsonl", ROWS)
    options = [*full, "--skills", strict.parent]
    code, record, err = evaluated(call, options, "weather-teller", "--data", data)
    assert code == 1
    assert [floor["met"] for floor in record["floors"]] == [False, True]
    assert "floor missed accuracy is " in err
    assert "macro_f1" not in err


def test_a_floor_on_a_metric_that_is_not_there_is_refused_before_a_row_is_answered(
    call: Call, full: list[str], skills: Path, tmp_path: Path
) -> None:
    promised = tmp_path / "promised" / "weather-teller"
    shutil.copytree(skills / "weather-teller", promised)
    manifest = json.loads((promised / "skill.yaml").read_text("utf-8"))
    manifest["metrics"] = {"acuracy": {"floor": 0.5}, "f1.rain": {"floor": 0.0}}
    (promised / "skill.yaml").write_text(json.dumps(manifest), encoding="utf-8")
    data = rows_file("rows.jsonl", ROWS)
    options = [*full, "--skills", promised.parent]
    given = ["weather-teller", "--data", data, "--predictions", "p.jsonl"]
    code, out, err = call(["eval", *given, *options])
    assert (code, out) == (2, "")
    assert "there is no metric 'acuracy'" in err
    assert "accuracy, macro_f1, ece, brier" in err
    assert not list(Path().glob("p.jsonl*"))
    code, _, err = call(["skills", "check", promised, *full])
    assert code == 0
    assert "did you mean 'accuracy'?" in err


def test_only_the_first_rows_that_failed_are_named(call: Call, full: list[str]) -> None:
    bad = {"input": {"text": 7}, "expected": {"weather": "sun"}}
    data = rows_file("rows.jsonl", [bad, ROWS[0], *[bad] * 4])
    code, _, err = evaluated(call, full, "weather-teller", "--data", data)
    assert code == 3
    named = [line.split(":")[0] for line in err.splitlines() if line.startswith("failed row")]
    assert named == ["failed row 1", "failed row 3", "failed row 4"]
    assert "5 of 6 rows failed, the first 3 above" in err


@pytest.mark.parametrize(("skill", "said"), [("weather-teller", True), ("bird-namer", False)])
def test_what_base_reads_a_trained_head_with_is_said(
    call: Call, full: list[str], skill: str, said: bool
) -> None:
    row = {"input": {"text": "x"}, "expected": {"weather": "rain", "bird": "wren"}}
    data = rows_file("rows.jsonl", [row])
    _, _, err = call(["eval", skill, "--data", data, "--base", "--resamples", 0, *full])
    assert ("read by the skill's own task head" in err) == said
    _, _, err = call(["eval", skill, "--data", data, "--resamples", 0, *full])
    assert "own task head" not in err
    assert "own task head" in " ".join(call(["eval", "--help"])[1].replace("│", " ").split())


def test_predictions_are_in_the_order_of_the_rows_whatever_document_they_are_over(
    call: Call, full: list[str], agreement_text: str
) -> None:
    texts = [agreement_text, agreement_text.replace("Norway", "Sweden")]
    rows = [{"input": {"document": texts[n % 2]}} for n in range(4)]
    data = rows_file("rows.jsonl", rows)
    given = ["place-marker", "--data", data, "--predictions", "p.jsonl"]
    code, out, _ = call(["eval", *given, *full])
    assert (code, out) == (0, "")
    found = [json.loads(line) for line in Path("p.jsonl").read_text("utf-8").splitlines()]
    assert found[0] == found[2] != found[1] == found[3]
    assert not Path("p.jsonl.part").exists()


def test_rows_that_fail_are_wrong_and_exit_with_3(call: Call, full: list[str]) -> None:
    rows = [*ROWS, {"input": {"text": 7}, "expected": {"weather": "sun"}}]
    data = rows_file("rows.jsonl", rows)
    code, record, err = evaluated(call, full, "weather-teller", "--data", data)
    assert code == 3
    (named,) = (line for line in err.splitlines() if line.startswith("failed row 9: "))
    assert "text" in named
    assert "1 of 9 rows failed" in err
    assert (record["rows"], record["failed"]) == (9, 1)
    assert sum(row[-1] for row in record["confusion"]["rows"]) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--baseline"], "give them with --train-data"),
        (["--against", "nowhere"], "no such version"),
        (["--against", "bird-namer"], "it gives bird (generate), not weather (choice)"),
        (["--predictions", "no/such/p.jsonl"], "no such folder"),
        (["--predictions", "."], "a folder, not a file"),
        (["--out", "rows.jsonl"], "rows.jsonl is a file, not a folder"),
        (["--out", "rows.jsonl/deeper"], "rows.jsonl is a file, not a folder"),
        (["--data", "missing.jsonl"], "cannot read it"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_computed(
    call: Call, full: list[str], more: list[str], message: str
) -> None:
    data = rows_file("rows.jsonl", ROWS)
    code, out, err = call(["eval", "weather-teller", "--data", data, *more, *full])
    assert (code, out) == (2, "")
    assert message in err


def test_a_row_that_says_what_cannot_be_right_is_named_before_any_is_answered(
    call: Call, full: list[str], agreement_text: str
) -> None:
    wrong = {"input": {"text": "x"}, "expected": {"weather": "sunn"}}
    data = rows_file("rows.jsonl", [*ROWS, wrong])
    given = ["--data", data, "--predictions", "p.jsonl"]
    code, out, err = call(["eval", "weather-teller", *given, *full])
    assert (code, out) == (2, "")
    assert "rows.jsonl:9: weather is 'sunn', not one of" in err
    assert not list(Path().glob("p.jsonl*"))
    beyond = {"category": "place", "start": 0, "end": len(agreement_text) + 1}
    mark = {"input": {"document": agreement_text}, "expected": {"clauses": [beyond]}}
    lost = {"input": {}, "expected": {"clauses": []}}
    for bad, said in ((mark, "is no stretch of a document of"), (lost, "the row has no document")):
        data = rows_file("marks.jsonl", [bad])
        code, _, err = call(["eval", "place-marker", "--data", data, *full])
        assert code == 2
        assert said in err


def test_rows_that_say_nothing_need_predictions(call: Call, full: list[str]) -> None:
    data = rows_file("rows.jsonl", [{"input": {"text": "x"}}])
    code, _, err = call(["eval", "weather-teller", "--data", data, *full])
    assert code == 2
    assert "no row says what is right" in err


def test_a_version_that_was_served_is_found_by_its_digest(
    call: Call, full: list[str], skills: Path
) -> None:
    data = rows_file("rows.jsonl", ROWS)
    digest = json.loads(call(["skills", "show", "weather-teller", *full])[1])["digest"]
    code, record, _ = evaluated(
        call, full, "weather-teller", "--data", data, "--against", digest[:16], "--resamples", 0
    )
    assert code == 0
    assert record["digest"] == digest
    assert record["compared"]["against"]["metrics"] == record["metrics"]


def test_rows_that_expect_what_the_skill_does_not_give_are_told(
    call: Call, full: list[str]
) -> None:
    data = rows_file("rows.jsonl", [*ROWS, {"input": {"text": "x"}, "expected": "rain"}])
    code, record, err = evaluated(call, full, "weather-teller", "--data", data, "--resamples", 0)
    assert (code, record["rows"]) == (0, 8)
    assert "1 rows expect no field that the skill gives: not measured" in err
