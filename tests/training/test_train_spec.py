"""`train.yaml`: read whole, or refused with its file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentkit.errors import SkillError
from agentkit.training.spec import TrainSpec, load_train_spec

SMALLEST = "data: [{path: rows.jsonl}]\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_smallest_file_names_only_its_data(tmp_path: Path) -> None:
    spec = load_train_spec(write(tmp_path, SMALLEST))
    assert (spec.method, spec.layers, spec.data[0].path) == ("lora", "all", "rows.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'data' is missing"),
        ("data: []\n", "data: Tuple should have at least 1 item"),
        (SMALLEST + "rank: 0\n", "rank: Input should be greater than or equal to 1"),
        (SMALLEST + "ranks: 8\n", ":2:1: unknown key 'ranks' (did you mean 'rank'?)"),
        (
            SMALLEST + "search:\n  trails: 8\n",
            ":3:3: unknown key 'trails' (did you mean 'trials'?)",
        ),
        ("data:\n- path: a\n  limt: 3\n", ":3:3: unknown key 'limt'"),
        (SMALLEST + "rank: 8\nrank: 4\n", ':3:1: not valid YAML: found duplicate key "rank"'),
        (SMALLEST + "method: magic\n", "method: Input should be 'lora'"),
        (SMALLEST + "dtype: int8\n", "dtype: Input should be 'auto', 'bfloat16' or 'float32'"),
        ("data: [{path: a, limit: none}]\n", "data.0.limit: "),
        (SMALLEST + "layers: true\n", "layers: Input should be a valid string"),
        (SMALLEST + "method: prefix\ncheckpointing: true\n", "leave checkpointing out"),
        (SMALLEST + "search: {method: [prefix]}\ncheckpointing: true\n", "leave checkpointing"),
        (SMALLEST + "method: prefix\nsize: auto\n", "set virtual_tokens"),
        (SMALLEST + "method: alora\ndropout: 0.1\n", "dropout acts on dora, hybrid, lora alone"),
        ("data: [\n", "not valid YAML"),
        ("just words\n", "Input should be a valid dictionary"),
        (SMALLEST + "search: &s {rank: [4]}\nlimt: 3\n", ":3:1: unknown key 'limt'"),
    ],
)
def test_a_bad_file_says_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SkillError) as raised:
        load_train_spec(path)
    assert str(raised.value).startswith(f"{path}:")
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_missing_file_says_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(SkillError, match=r"train\.yaml: cannot read it \(a skill is trained from"):
        load_train_spec(tmp_path / "train.yaml")


def test_the_rate_is_the_methods_own_unless_given() -> None:
    data = ({"path": "x"},)
    assert TrainSpec(data=data, method="prefix").rate > TrainSpec(data=data).rate
    assert TrainSpec(data=data, learning_rate=0.25).rate == 0.25


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("layers: auto\nlayer_count: 4\n", "layer_count is of `layers: auto` by gradient"),
        ("importance: gradient\nlayer_count: 4\n", "layer_count is of `layers: auto`"),
        ("calibration: [{path: x.jsonl, repeat: 2}]\n", "calibration rows are asked once"),
        (
            "calibration: [{path: x.jsonl, negations: "
            "{field: rule, expected: verdict, opposites: [met, broken]}}]\n",
            "calibration rows are asked once",
        ),
    ],
)
def test_what_would_not_count_is_refused(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(SkillError, match=said):
        load_train_spec(write(tmp_path, SMALLEST + more))


@pytest.mark.parametrize(
    ("written", "text"),
    [("5", "5"), ("[20, 21]", "20, 21"), ("[3, 20-29]", "3, 20-29"), ("upper 1/3", "upper 1/3")],
)
def test_layers_are_a_number_a_list_or_a_text(tmp_path: Path, written: str, text: str) -> None:
    more = f"layers: {written}\nsearch: {{layers: [{written}, all]}}\n"
    spec = load_train_spec(write(tmp_path, SMALLEST + more))
    assert spec.search is not None
    assert (spec.layers, spec.search.layers) == (text, (text, "all"))
