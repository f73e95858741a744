"""Sources to rows, and the split by document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import InputError
from agentkit.training.rows import Row, _split, load_rows, rows_from_jsonl
from agentkit.training.spec import DataSpec, TrainSpec

LONG = "This is a document of its own. " * 20


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def spec(**source: Any) -> TrainSpec:
    return TrainSpec(data=(DataSpec(**source),))


def load(folder: Path, **source: Any):
    return load_rows(spec(**source), skill=folder, data_dir=folder)


# ---------------------------------------------------------------- split

groups = st.lists(st.text("abcdef", min_size=1, max_size=6), min_size=1, max_size=40)


@given(groups, st.floats(0.0, 0.9), st.floats(0.0, 0.9), st.none() | st.integers(1, 10))
def test_a_split_never_parts_a_group(
    names: list[str], tuning: float, holdout: float, limit: int | None
) -> None:
    rows = [Row({"n": n}, None, name) for n, name in enumerate(names)]
    parts = _split(rows, DataSpec(path="x", tuning=tuning, holdout=holdout, limit=limit))
    train, tuned, held = ({row.group for row in part} for part in parts)
    assert len(train) + len(tuned) + len(held) == len(train | tuned | held)
    assert len(train | tuned) == min(len(set(names) - held), limit or len(names))
    kept = train | tuned | held
    assert sum(len(part) for part in parts) == sum(row.group in kept for row in rows)
    if tuning == 0:
        assert not tuned
    if holdout == 0:
        assert not held


@given(groups, st.floats(0.0, 0.9), st.integers(1, 5))
def test_a_larger_limit_never_trains_on_what_is_held_out(
    names: list[str], holdout: float, limit: int
) -> None:
    rows = [Row({"n": n}, None, name) for n, name in enumerate(names)]
    small, large = (
        _split(rows, DataSpec(path="x", holdout=holdout, limit=size)) for size in (limit, None)
    )
    assert small[2] == large[2]


@given(groups, groups)
def test_more_rows_move_no_group_to_the_other_side(names: list[str], more: list[str]) -> None:
    source = DataSpec(path="x", tuning=0.3, holdout=0.2)
    before = _split([Row({}, None, name) for name in names], source)
    after = _split([Row({}, None, name) for name in [*more, *names]], source)
    for small, large in zip(before, after, strict=True):
        assert {row.group for row in small} <= {row.group for row in large}


# ---------------------------------------------------------------- JSONL


def test_rows_over_one_document_are_one_group(tmp_path: Path) -> None:
    rows = rows_from_jsonl(
        write(
            tmp_path / "rows.jsonl",
            [
                {"input": {"rule": "a", "document": LONG}, "expected": {"x": 1}},
                {"input": {"rule": "b", "document": LONG}},
                {"input": {"rule": "b", "document": LONG + "more"}},
                {"input": {"rule": "a"}},
                {"input": {"rule": "b"}},
            ],
        )
    )
    first, second, third, fourth, fifth = (row.group for row in rows)
    assert first == second
    assert len({first, third, fourth, fifth}) == 4
    assert rows[0].expected == {"x": 1}
    assert rows[1].expected is None


def test_a_document_is_what_the_manifest_calls_so_however_short(tmp_path: Path) -> None:
    policy = {"policy": LONG}
    path = write(
        tmp_path / "rows.jsonl",
        [
            {"input": policy | {"rule": "a", "letter": "Dear Sirs"}},
            {"input": policy | {"rule": "b", "letter": "Dear Sirs"}},
            {"input": policy | {"rule": "a", "letter": "Hello"}},
            {"input": policy | {"rule": "a", "letter": ""}},
        ],
    )
    first, second, third, _ = (row.group for row in rows_from_jsonl(path, "letter"))
    assert first == second != third
    assert len({row.group for row in rows_from_jsonl(path)}) == 1  # the longest text by default
    split = load_rows(spec(path="rows.jsonl"), skill=tmp_path, data_dir=tmp_path, document="letter")
    assert {row.group for row in (*split.train, *split.tuning)} >= {first, third}


@pytest.mark.parametrize("row", [{"expected": 1}, [1], "words"])
def test_a_row_without_input_is_named_by_its_line(tmp_path: Path, row: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [{"input": {}}, row])
    with pytest.raises(InputError, match=r"rows\.jsonl:2: a row is"):
        rows_from_jsonl(path)


def test_half_of_a_character_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps({"input": {"text": "\U0001f600"}})  # escaped: both halves of it
    path.write_text(f"{line}\n" + line.replace("\\ude00", ""), encoding="utf-8")
    with pytest.raises(InputError, match=r"half of a character: \\ud83d alone") as error:
        rows_from_jsonl(path)
    assert error.value.where == f"{path}:2"


@pytest.mark.parametrize("row", ["[" * 100_000, '{"input": {}, "expected": ' + "9" * 5000 + "}"])
def test_what_json_allows_and_no_program_reads_is_named_by_its_line(
    tmp_path: Path, row: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"input": {{}}}}\n{row}', encoding="utf-8")
    with pytest.raises(InputError, match="it cannot be read") as error:
        rows_from_jsonl(path)
    assert error.value.where == f"{path}:2"


# ---------------------------------------------------------------- sources


def test_a_source_is_recorded_with_its_digest_and_counts(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"input": {"n": n}, "expected": {}} for n in range(50)])
    split = load(tmp_path, path="rows.jsonl", tuning=0.3)
    (source,) = split.sources
    assert source["source"] == "rows.jsonl"
    assert len(source["sha256"]) == 64
    assert source["train_rows"] + source["tuning_rows"] == 50
    assert 0 < source["tuning_rows"] < 50
    again = load(tmp_path, path="rows.jsonl", tuning=0.3)
    assert again == split


def test_only_what_is_trained_on_is_repeated(tmp_path: Path) -> None:
    rows = [{"input": {"text": str(number)}, "expected": "x"} for number in range(60)]
    write(tmp_path / "rows.jsonl", rows)
    write(tmp_path / "other.jsonl", [{"input": {"text": "other"}}])
    source = DataSpec(path="rows.jsonl", tuning=0.3, holdout=0.2)
    sources = (source, DataSpec(path="other.jsonl", tuning=0.0))
    once = load_rows(TrainSpec(data=sources), skill=tmp_path, data_dir=tmp_path)
    thrice = load_rows(
        TrainSpec(data=(source.model_copy(update={"repeat": 3}), sources[1])),
        skill=tmp_path,
        data_dir=tmp_path,
    )
    (own, other) = once.train[:-1], once.train[-1]
    assert sorted(map(repr, thrice.train)) == sorted(map(repr, [*own * 3, other]))
    assert own
    assert (thrice.tuning, thrice.holdout) == (once.tuning, once.holdout)
    assert [facts["train_rows"] for facts in thrice.sources] == [len(own), 1]
    assert [facts["repeat"] for facts in thrice.sources] == [3, 1]


def test_a_document_that_one_source_measures_on_is_trained_on_by_none(tmp_path: Path) -> None:
    for ask in ("a", "b"):
        rows = [{"input": {"n": ask, "document": f"{LONG} {n}"}} for n in range(30)]
        write(tmp_path / f"{ask}.jsonl", rows)
    data = [
        {"path": "a.jsonl", "tuning": 0.3, "holdout": 0.2},
        {"path": "b.jsonl", "tuning": 0},
    ]
    spec = TrainSpec.model_validate({"data": data})
    said: list[str] = []
    split = load_rows(spec, skill=tmp_path, data_dir=tmp_path, said=said.append)
    assert said == ["reading a.jsonl (1 of 2)", "reading b.jsonl (2 of 2)"]
    parts = [{row.group for row in part} for part in (split.train, split.tuning, split.holdout)]
    assert all(parts)
    assert sum(map(len, parts)) == 30
    assert [s["train_rows"] for s in split.sources] == [len(parts[0])] * 2


NEGATED = {"field": "rule", "expected": "said", "opposites": ["yes", "no"]}


def rules(folder: Path, count: int = 40) -> None:
    said = ("yes", "no", "silent")
    write(
        folder / "rows.jsonl",
        [
            {
                "input": {"rule": f"Door {n} must be shut.", "document": f"{LONG} {n // 3}"},
                "expected": {"said": said[n % 3], "evidence": [n]},
            }
            for n in range(count)
        ],
    )


def test_statements_are_asked_negated_too(tmp_path: Path) -> None:
    rules(tmp_path)
    plain = load(tmp_path, path="rows.jsonl", tuning=0.2, holdout=0.2)
    both = load(tmp_path, path="rows.jsonl", tuning=0.2, holdout=0.2, negations=NEGATED)
    count = len(plain.train)
    assert both.train[:count] == plain.train
    assert (both.tuning, both.holdout) == (plain.tuning, plain.holdout)
    assert [facts["train_rows"] for facts in both.sources] == [count]
    assert [facts["negated_rows"] for facts in both.sources] == [count]
    turned = {"yes": "no", "no": "yes", "silent": "silent"}
    for row, negation in zip(both.train[:count], both.train[count:], strict=True):
        assert negation.input["rule"] == row.input["rule"].replace("must", "need not")
        assert negation.input["document"] == row.input["document"]
        assert negation.expected["said"] == turned[row.expected["said"]]
        assert negation.expected["evidence"] == row.expected["evidence"]
        assert (negation.group, negation.place) == (row.group, f"{row.place}, negated")


def test_a_share_of_them_is_the_same_each_time(tmp_path: Path) -> None:
    rules(tmp_path, 300)
    some = load(tmp_path, path="rows.jsonl", negations=NEGATED | {"share": 0.5})
    (facts,) = some.sources
    assert 0.3 < facts["negated_rows"] / facts["train_rows"] < 0.7
    assert facts["negations"] == NEGATED | {"share": 0.5}
    assert some == load(tmp_path, path="rows.jsonl", negations=NEGATED | {"share": 0.5})


@pytest.mark.parametrize("document", [LONG, "A short one."])
@pytest.mark.parametrize("part", ["train", "tuning", "holdout"])
def test_a_negation_that_another_row_asks_is_not_added_wherever_that_is(
    document: str, part: str, tmp_path: Path
) -> None:
    asked = [("It must ring.", "yes"), ("Bells are loud.", "no")]
    rows = [
        {"input": {"rule": rule, "document": document}, "expected": {"said": said}}
        for rule, said in asked
    ]
    write(tmp_path / "rows.jsonl", rows)
    there = {"rule": "It  need not\nring.", "document": document + " "}
    write(tmp_path / "other.jsonl", [{"input": there, "expected": {"said": "silent"}}])
    shares = {"train": {}, "tuning": {"tuning": 0.999}, "holdout": {"holdout": 0.999}}
    data = [
        {"path": "rows.jsonl", "tuning": 0, "negations": NEGATED},
        {"path": "other.jsonl", "tuning": 0} | shares[part],
    ]
    spec = TrainSpec.model_validate({"data": data})
    split = load_rows(spec, skill=tmp_path, data_dir=tmp_path)
    added = [row.input["rule"] for row in split.train if row.place.endswith("negated")]
    assert added == ["Bells are not loud."]


def test_a_question_has_no_negation(tmp_path: Path) -> None:
    rows = [
        {"input": {"rule": rule, "document": LONG}, "expected": {"said": said}}
        for rule, said in (("Does it ring?", "yes"), ("It rings.", "no"))
    ]
    write(tmp_path / "rows.jsonl", rows)
    split = load(tmp_path, path="rows.jsonl", tuning=0.0, negations=NEGATED)
    assert [row.input["rule"] for row in split.train[2:]] == ["It is not true that it rings."]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": {"said": "a text"}, "expected": {"said": "yes"}}, "negations want texts"),
        ({"input": "a text", "expected": {"said": "yes"}}, "negations want texts"),
        ({"input": {"rule": "It rings."}, "expected": "yes"}, "negations want texts"),
        ({"input": {"rule": "It rings."}, "expected": {"sad": "yes"}}, "negations want texts"),
        ({"input": {"rule": "It rings."}, "expected": {"said": ["yes"]}}, "negations want texts"),
        ({"input": {"rule": "It rings."}, "expected": {"said": "Yes"}}, "no row is answered 'yes'"),
    ],
)
def test_rows_that_cannot_be_negated_are_an_input_error(
    tmp_path: Path, row: object, message: str
) -> None:
    write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, path="rows.jsonl", tuning=0.0, negations=NEGATED)
    assert "rows.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"path": "empty.jsonl"}, "empty.jsonl: no rows"),
        ({}, "a source needs `path` or `dataset`"),
        ({"dataset": "nothing"}, "unknown data set 'nothing'"),
    ],
)
def test_a_source_that_cannot_be_read_is_an_input_error(
    tmp_path: Path, source: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError) as raised:
        load(tmp_path, **source)
    assert message in str(raised.value)


@pytest.fixture
def summaries(tmp_path: Path) -> Path:
    folder = tmp_path / "plain_english"
    folder.mkdir()
    row = {"doc": 1, "original": "It is governed by law.", "summary": "There is a law."}
    import gzip

    (folder / "tldrlegal.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    return tmp_path


def test_records_are_mapped_by_expressions(summaries: Path) -> None:
    split = load(
        summaries,
        dataset="tldrlegal",
        tuning=0.0,
        input={"text": "original", "none": "none", "parts": {"n": "original | length"}, "one": 1},
        expected={"said": ["summary ~ '!'", "{'a': 'b'}['a']"]},
    )
    (row,) = split.train
    assert row.input == {"text": "It is governed by law.", "parts": {"n": 22}, "one": 1}
    assert row.expected == {"said": ["There is a law.!", "b"]}
    assert split.sources[0]["license"] == "Apache-2.0"


def test_a_data_set_may_lie_in_a_folder_named_from_the_skill(summaries: Path) -> None:
    skill = summaries / "skills" / "bell-notes"
    skill.mkdir(parents=True)
    source = {"dataset": "tldrlegal", "path": "../..", "input": {"text": "original"}}
    split = load_rows(spec(**source, tuning=0.0), skill=skill, data_dir=skill)
    assert [row.input for row in split.train] == [{"text": "It is governed by law."}]


@pytest.mark.parametrize(
    "expression", ["missing_field", "original[", "original.__class__.__mro__", "original + 1"]
)
def test_a_mapping_that_fails_is_an_input_error(summaries: Path, expression: str) -> None:
    with pytest.raises(InputError) as raised:
        load(summaries, dataset="tldrlegal", input={"text": expression})
    assert str(raised.value).startswith("train.yaml: ")
