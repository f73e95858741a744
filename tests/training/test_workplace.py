"""What a training keeps for its next start, and whom it keeps out."""

import json
import mmap
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentkit.errors import InputError
from agentkit.training.meter import Meter
from agentkit.training.several import train_each
from agentkit.training.workplace import alone_in, remembered


def test_two_trainings_do_not_work_in_one_place(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=4)
    work = toy.settings.home / "training" / "toy-skill"
    with alone_in(work), pytest.raises(InputError, match=r"another training.*--work") as refused:
        toy.train()
    assert str(work) in str(refused.value)
    toy.train()


def test_what_was_found_is_not_looked_for_again(tmp_path: Path) -> None:
    found: list[int] = []

    def find() -> list[int]:
        found.append(len(found))
        return found[:]

    file = tmp_path / "measured.json"
    assert [remembered(file, key, find) for key in ("a", "a", "b", "a")] == [[0], [0], [0, 1], [0]]
    file.write_text("{cut sh")
    assert remembered(file, "a", find) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"layers": "auto", "importance": "gradient"}, "gradients:"),
        ({"size": "auto"}, "short training"),
    ],
    ids=["layers", "size"],
)
def test_layers_and_size_are_measured_once(
    make_toy: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=4, **changes)
    first, said = toy.train()
    assert what in said
    again, said = toy.train()
    assert "gradients:" not in said
    assert "short training" not in said
    for key in ("layers", "sizes", "training"):
        assert again.metrics.get(key) == first.metrics.get(key)


def test_states_that_another_training_left_are_told(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=4)
    first, _ = toy.train()
    second, _ = toy.train()
    assert (first.metrics["lower_states_found"], second.metrics["lower_states_found"]) == (0.0, 1.0)
    card = " ".join((toy.folder / "README.md").read_text().split())
    assert "minutes (100% of the lower layers' states were there before)" in card


def test_what_was_spent_on_another_backbone_is_not_counted(
    make_toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=4)

    def interrupted(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("agentkit.training.train.fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy.train()
    (noted,) = toy.settings.home.glob("training/toy-skill/spent-*.json")
    noted.write_text(json.dumps(json.loads(noted.read_text()) | {"seconds": 1000.0}))
    other = tmp_path / "other"
    shutil.copytree(toy.settings.backbone, other)
    elsewhere = replace(toy, settings=toy.settings.model_copy(update={"backbone": str(other)}))
    assert elsewhere.train()[0].metrics["seconds"] < 1000
    assert toy.train()[0].metrics["seconds"] > 1000


def test_of_several_skills_those_that_are_done_are_not_trained_again(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
        (folder / "train.yaml").write_text("method: lora\n")
    tried: list[str] = []
    said: list[str] = []

    def one(folder: Path) -> Path:
        tried.append(folder.name)
        if "broken" in (folder / "train.yaml").read_text():
            raise InputError("no rows")
        out = tmp_path / "out" / folder.name
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").write_text(str(len(tried)))
        (out / "head.safetensors").write_bytes(b"")
        return out

    def every(named: str = "backbone") -> dict[str, Path]:
        return train_each(folders, one, notes=tmp_path / "notes", named=named, said=said.append)

    (folders[1] / "train.yaml").write_text("broken")
    for _ in range(2):
        with pytest.raises(InputError, match="no rows"):
            every()
    assert tried == ["first", "second", "second"]
    for lost in ("metrics.json", "head.safetensors"):
        (tmp_path / "out" / "first" / lost).unlink()
        with pytest.raises(InputError, match="no rows"):
            every()
    assert tried[3:] == ["first", "second", "first", "second"]
    with pytest.raises(InputError, match="no rows"):
        every("another backbone")
    assert tried[7:] == ["first", "second"]
    # The other undertaking wrote over what this one had done.
    (folders[1] / "train.yaml").write_text("method: lora\n")
    written = every()
    assert tried[9:] == ["first", "second", "third"]
    assert written == {folder.name: tmp_path / "out" / folder.name for folder in folders}
    assert said == ["first: trained before this start"]
    every()  # all are done, so that this is another undertaking
    assert tried[12:] == ["first", "second", "third"]


@pytest.mark.parametrize("changed", ["rows.jsonl", "sure/words.jsonl"])
def test_a_skill_whose_own_data_changed_is_not_done(tmp_path: Path, changed: str) -> None:
    """The second of two breaks off, and the first one's data is mended before the next start."""
    for name in ("sure", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "sure" / "train.yaml").write_text(
        "data:\n  - path: ../rows.jsonl\n"
        "  - {dataset: cuad_sentences, options: {words: words.jsonl}}\n"
    )
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "sure" / "words.jsonl").write_text("{}\n")
    tried: list[str] = []

    def one(folder: Path) -> Path:
        tried.append(folder.name)
        if folder.name == "broken":
            raise InputError("no rows")
        (folder / "metrics.json").write_text("{}")
        (folder / "head.safetensors").write_bytes(b"")
        return folder

    def both() -> None:
        folders = [tmp_path / "sure", tmp_path / "broken"]
        with pytest.raises(InputError, match="no rows"):
            train_each(folders, one, notes=tmp_path / "notes", named="", said=print)

    both()
    both()
    assert tried == ["sure", "broken", "broken"]
    (tmp_path / changed).write_text('{"more": 1}\n')
    both()
    assert tried[3:] == ["sure", "broken"]


def test_a_calibration_that_changed_is_made_again_and_the_training_is_not(tmp_path: Path) -> None:
    """As after one that found too few rows: more of them are written, and `train` is called."""
    folder = tmp_path / "sure"
    folder.mkdir()
    said = "data: [{path: rows.jsonl}]\ncalibration: [{path: new.jsonl}]\n"
    (folder / "train.yaml").write_text(said)
    (folder / "new.jsonl").write_text("{}\n")
    done: list[str] = []

    def one(folder: Path) -> Path:
        done.append("train")
        (folder / "metrics.json").write_text('{"seconds": 1}')
        (folder / "head.safetensors").write_bytes(b"")
        return folder

    def finish(folder: Path, written: Path) -> None:
        done.append("calibrate")
        if done.count("calibrate") < 3:
            raise InputError("too few")
        (folder / "metrics.json").write_text('{"seconds": 1, "calibration": {}}')

    def start() -> None:
        train_each([folder], one, notes=tmp_path / "notes", named="", said=print, finish=finish)

    with pytest.raises(InputError):
        start()
    (folder / "new.jsonl").write_text("{}\n{}\n")
    with pytest.raises(InputError):
        start()
    (folder / "train.yaml").write_text(said.replace("new.jsonl}", "new.jsonl, limit: 9}"))
    (folder / "metrics.json").write_text('{"seconds": 1, "calibration": {"own": 1}}')
    start()
    assert done == ["train", "calibrate", "calibrate", "calibrate"]


def test_two_folders_of_one_name_are_not_trained_together(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "same", tmp_path / "b" / "same"]
    with pytest.raises(InputError, match="two folders are called same"):
        train_each(folders, lambda folder: folder, notes=tmp_path, named="", said=print)


@pytest.mark.parametrize("forbidden", [False, True], ids=["as it may", "peak kept for good"])
def test_a_later_training_does_not_inherit_the_peak_of_memory(
    forbidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forbidden:  # as in some containers; whether here or not, the other case tells
        monkeypatch.setattr("agentkit.training.meter._RESET", tmp_path)
    before = psutil.Process().memory_info().rss
    with Meter() as meter:
        # Straight from the system: malloc may have as much left over from what ran before.
        with mmap.mmap(-1, 300_000_000) as much:
            for start in range(0, len(much), mmap.PAGESIZE):
                much[start] = 1
            time.sleep(1)  # twenty looks
        peak = meter.peak_memory
        assert peak > before + 290_000_000
        assert meter.seconds > 0
    with Meter() as later:
        assert later.peak_memory < peak - 200_000_000
    assert "memory" not in {thread.name for thread in threading.enumerate()}


def test_the_record_says_which_files_and_options_the_rows_were_made_with(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=4)
    spec = json.loads((toy.folder / "train.yaml").read_text())
    spec["data"][0] |= {"license": "ours alone", "limit": 9}
    (toy.folder / "train.yaml").write_text(json.dumps(spec))
    trained, _ = toy.train()
    metrics = trained.metrics
    (source,) = metrics["data"]
    assert (source["license"], source["limit"], source["files"]) == ("ours alone", 9, {})
    assert metrics["threads"] == 1
    assert "| rows.jsonl | ours alone |" in (toy.folder / "README.md").read_text()
