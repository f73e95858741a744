import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentkit.errors import SkillError
from agentkit.skill.folder import folder_digest, load_skill
from agentkit.skill.store import SkillStore

ADMIT = """
import sys
from pathlib import Path
from agentkit.skill.folder import load_skill
from agentkit.skill.store import SkillStore
skill = load_skill(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(SkillStore(Path(sys.argv[2])).admit(skill).path)
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_copy_is_the_same_skill_elsewhere(tmp_path, write_skill):
    skill = load_skill(write_skill(tmp_path / "clause-finder"))
    (skill.path / "metrics.json").write_text("{}")
    (skill.path / "helper.py").write_text("raise SystemExit")
    copy = SkillStore(tmp_path / "store").admit(skill)
    assert copy.path == tmp_path / "store" / skill.digest
    assert copy.manifest == skill.manifest
    assert sorted(contents(copy.path)) == sorted((*skill.files, "metrics.json"))
    assert load_skill(copy.path, name="clause-finder").digest == skill.digest


def test_admitting_again_changes_nothing(tmp_path, write_skill):
    skill = load_skill(write_skill(tmp_path / "clause-finder"))
    first = SkillStore(tmp_path / "store").admit(skill)
    stamps = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    store = SkillStore(tmp_path / "store")
    assert store.admit(skill) == first
    assert store.admit(first) == first
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == stamps
    assert [path.name for path in (tmp_path / "store").iterdir()] == [skill.digest]


def test_two_processes_admitting_the_same_skill_both_finish(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    skill = load_skill(folder)
    store = tmp_path / "store"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", ADMIT, str(folder), str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    paths = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert paths == [str(store / skill.digest)] * 2
    assert [path.name for path in store.iterdir()] == [skill.digest]
    assert SkillStore(store).get(skill.digest, "clause-finder").digest == skill.digest


def test_a_folder_that_changed_since_it_was_read_is_read_again(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder", seed=1)
    stale = load_skill(folder)
    write_skill(folder, seed=2)
    copy = SkillStore(tmp_path / "store").admit(stale)
    assert copy.digest == load_skill(folder).digest != stale.digest
    assert contents(copy.path) == contents(folder)


def test_a_folder_that_is_gone_is_an_error(tmp_path, write_skill):
    skill = load_skill(write_skill(tmp_path / "clause-finder"))
    shutil.rmtree(skill.path)
    with pytest.raises(SkillError):
        SkillStore(tmp_path / "store").admit(skill)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_damaged_copy_is_replaced(tmp_path, write_skill):
    skill = load_skill(write_skill(tmp_path / "clause-finder"))
    copy = SkillStore(tmp_path / "store").admit(skill)
    (copy.path / "skill.yaml").chmod(0o644)
    (copy.path / "skill.yaml").write_text("utterances: [something else]\n")
    with pytest.raises(SkillError, match="was changed"):
        SkillStore(tmp_path / "store").get(skill.digest, "clause-finder")
    SkillStore(tmp_path / "store").admit(skill)
    assert contents(copy.path) == contents(skill.path)


def test_figures_measured_later_reach_the_copy(tmp_path, write_skill):
    skill = load_skill(write_skill(tmp_path / "clause-finder"))
    store = SkillStore(tmp_path / "store")
    copy = store.admit(skill)
    for text in ('{"f1": 0.5}', '{"f1": 0.6}'):
        (skill.path / "metrics.json").write_text(text)
        assert store.admit(load_skill(skill.path)).digest == skill.digest
        assert (copy.path / "metrics.json").read_text() == text


def test_a_bare_folder_comes_back_with_its_description(tmp_path, write_skill):
    folder = write_skill(tmp_path / "bare-one", skill_md=None, skill_yaml=None)
    (folder / "README.md").write_text("Sums up letters.\n")
    copy = SkillStore(tmp_path / "store").admit(load_skill(folder))
    assert SkillStore(tmp_path / "store").admit(load_skill(folder)) == copy
    again = SkillStore(tmp_path / "store").get(copy.digest, "bare-one")
    assert again == copy
    assert again.manifest.description == "Sums up letters."


@pytest.mark.parametrize("digest", ["0" * 64, "../clause-finder", "", "x"])
def test_an_unknown_digest_is_an_error(tmp_path, digest):
    with pytest.raises(SkillError, match="no copy of the skill"):
        SkillStore(tmp_path / "store").get(digest, "clause-finder")


def test_what_a_dead_process_left_is_swept_up(tmp_path, write_skill):
    store = tmp_path / "store"
    for name, age in ((".tmp-old", 7200), (".tmp-new", 0)):
        (store / name).mkdir(parents=True)
        if age:
            os.utime(store / name, (1, 1))
    SkillStore(store).admit(load_skill(write_skill(tmp_path / "clause-finder")))
    assert not (store / ".tmp-old").exists()
    assert Path(store / ".tmp-new").exists()


def test_what_is_admitted_while_the_folder_changes_is_what_its_digest_says(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    stop = threading.Event()

    def rewrite():
        seed = 0
        while not stop.is_set():
            seed += 1
            write_skill(folder, seed=seed)

    writer = threading.Thread(target=rewrite)
    writer.start()
    admitted = []
    try:
        for _ in range(60):
            with contextlib.suppress(SkillError):
                admitted.append(SkillStore(tmp_path / "store").admit(load_skill(folder)))
    finally:
        stop.set()
        writer.join()
    admitted.append(SkillStore(tmp_path / "store").admit(load_skill(folder)))
    for skill in admitted:
        assert folder_digest(skill.path, skill.files) == skill.digest == skill.path.name
        assert load_skill(skill.path, name="clause-finder").manifest == skill.manifest
    assert not list((tmp_path / "store").glob(".tmp-*"))
