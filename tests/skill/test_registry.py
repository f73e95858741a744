import queue
import shutil
import sys
from pathlib import Path

import pytest

from agentkit.adapters.weights import check_adapter
from agentkit.errors import SkillError
from agentkit.skill.folder import load_skill
from agentkit.skill.registry import Registry, default_folders, shipped_folder
from agentkit.skill.store import SkillStore

TIMEOUT = 10.0


@pytest.fixture
def skills(tmp_path):
    (tmp_path / "skills").mkdir()
    return tmp_path / "skills"


@pytest.fixture
def open_registry(tmp_path):
    registries = []

    def make(*folders: Path) -> Registry:
        registry = Registry(folders, SkillStore(tmp_path / "store"), check=check_adapter)
        registries.append(registry)
        return registry

    yield make
    for registry in registries:
        registry.close()


@pytest.fixture
def watched(skills, open_registry):
    """A watching registry, and a function that waits until a snapshot meets a condition."""
    registry = open_registry(skills)
    snapshots = queue.SimpleQueue()
    registry.subscribe(snapshots.put)
    registry.watch()

    def wait(condition):
        snapshot = registry.snapshot
        while not condition(snapshot):
            snapshot = snapshots.get(timeout=TIMEOUT)
        return snapshot

    return registry, wait


@pytest.fixture
def opened_files():
    """Paths of the files that this process opens from now on."""
    opened = []
    active = [True]

    def note(event, arguments):
        if active and event == "open":
            opened.append(arguments[0])

    sys.addaudithook(note)  # there is no way to take it back, only to silence it
    yield opened
    active.clear()


def test_good_folders_are_listed_from_the_store_and_bad_ones_set_aside(
    skills, open_registry, write_skill, tmp_path
):
    write_skill(skills / "b-skill")
    write_skill(skills / "a-skill")
    write_skill(skills / "broken", skill_yaml="uterances: []\n")
    write_skill(skills / "lora", skill_md=None, skill_yaml=None)
    (skills / "notes").mkdir()
    (skills / ".hidden").mkdir()
    snapshot = open_registry(skills).snapshot
    assert list(snapshot.skills) == ["a-skill", "b-skill"]
    assert all(
        skill.path == tmp_path / "store" / skill.digest for skill in snapshot.skills.values()
    )
    assert set(snapshot.rejected) == {skills / "broken", skills / "lora"}
    assert "skill.yaml:1:1" in snapshot.rejected[skills / "broken"]
    assert "reserved" in snapshot.rejected[skills / "lora"]


@pytest.mark.parametrize(
    "output",
    [
        "{type: object, properties: {kind: }}",
        "{type: object, properties: }",
        "{type: object, properties: [kind]}",
        "{type: object, properties: {kind: {enum: }}}",
        "{type: object, properties: {kind: {enum: 5}}}",
        "{type: object, properties: {kind: {enum: [[a], [b]]}}}",
    ],
)
def test_a_half_written_skill_yaml_is_set_aside_and_the_others_go_on(
    skills, open_registry, write_skill, output
):
    write_skill(skills / "good-one")
    text = f"output: {output}\nanswer: {{kind: generate, choice_field: kind}}\n"
    folder = write_skill(skills / "half-done", skill_yaml=text)
    snapshot = open_registry(skills).snapshot
    assert list(snapshot.skills) == ["good-one"]
    assert str(folder) in snapshot.rejected[folder]


def test_what_nobody_foresaw_in_one_folder_stops_neither_the_others_nor_the_watch(
    skills, watched, write_skill, monkeypatch
):
    def surprised(path, **given):
        if path.name == "odd-one":
            raise ZeroDivisionError("by surprise")
        return load_skill(path, **given)

    _, wait = watched
    monkeypatch.setattr("agentkit.skill.registry.load_skill", surprised)
    folder = write_skill(skills / "odd-one")
    rejected = wait(lambda snapshot: folder in snapshot.rejected).rejected
    assert "ZeroDivisionError: by surprise" in rejected[folder]
    write_skill(skills / "late-one")
    wait(lambda snapshot: "late-one" in snapshot.skills)


def test_served_copies_that_lie_among_the_skills_are_no_skills(tmp_path, write_skill):
    skills = tmp_path / "skills"
    write_skill(skills / "bare-one", skill_md=None, skill_yaml=None)
    for _ in range(2):
        with Registry([skills], SkillStore(skills)) as registry:
            assert list(registry.snapshot.skills) == ["bare-one"]
            assert not registry.snapshot.rejected


def test_truncated_weights_are_set_aside_and_the_others_go_on(skills, open_registry, write_skill):
    write_skill(skills / "good-one")
    folder = write_skill(skills / "cut-off")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    snapshot = open_registry(skills).snapshot
    assert list(snapshot.skills) == ["good-one"]
    assert "truncated" in snapshot.rejected[folder]


def test_a_skill_that_turns_bad_goes_on_as_it_was(skills, open_registry, write_skill):
    folder = write_skill(skills / "clause-finder")
    registry = open_registry(skills)
    before = registry.snapshot.skills["clause-finder"]
    content = before.adapter_weights.read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    snapshot = registry.reload()
    assert snapshot.skills["clause-finder"] == before
    assert before.adapter_weights.read_bytes() == content
    assert "truncated" in snapshot.rejected[folder]
    assert any("goes on" in note for note in snapshot.notes)

    write_skill(folder, seed=7)
    snapshot = registry.reload()
    assert snapshot.skills["clause-finder"].digest != before.digest
    assert not snapshot.rejected
    assert not snapshot.notes
    assert before.adapter_weights.read_bytes() == content


def test_a_removed_folder_is_no_longer_listed_but_its_copy_stays(
    skills, open_registry, write_skill, tmp_path
):
    folder = write_skill(skills / "clause-finder")
    registry = open_registry(skills)
    skill = registry.snapshot.skills["clause-finder"]
    shutil.rmtree(folder)
    assert not registry.reload().skills
    assert SkillStore(tmp_path / "store").get(skill.digest, "clause-finder") == skill


def test_the_later_folder_wins_and_a_bad_one_does_not(open_registry, write_skill, tmp_path):
    one = write_skill(tmp_path / "one" / "clause-finder", seed=1)
    two = write_skill(tmp_path / "two" / "clause-finder", seed=2)
    registry = open_registry(one.parent, two.parent)
    snapshot = registry.snapshot
    assert snapshot.skills["clause-finder"].adapter_weights.read_bytes() == (
        (two / "adapter_model.safetensors").read_bytes()
    )
    assert any(f"{two} is used instead of {one}" in note for note in snapshot.notes)
    (two / "skill.yaml").write_text("[")
    fresh = open_registry(one.parent, two.parent).snapshot
    assert fresh.skills["clause-finder"].digest != snapshot.skills["clause-finder"].digest
    assert any(f"{one} is used instead" in note for note in fresh.notes)


def test_a_failed_reload_leaves_the_old_snapshot(skills, open_registry, write_skill):
    write_skill(skills / "clause-finder")
    registry = open_registry(skills)
    before = registry.snapshot
    shutil.rmtree(skills)
    with pytest.raises(SkillError, match="cannot be read"):
        registry.reload()
    assert registry.snapshot is before


def test_a_snapshot_cannot_be_changed_and_stays_as_it_was(skills, open_registry, write_skill):
    write_skill(skills / "clause-finder")
    registry = open_registry(skills)
    before = registry.snapshot
    with pytest.raises(TypeError):
        before.skills["x"] = before.skills["clause-finder"]
    write_skill(skills / "other-one")
    registry.reload()
    assert list(before.skills) == ["clause-finder"]


def test_an_unchanged_folder_is_not_read_again(skills, open_registry, write_skill, opened_files):
    folder = write_skill(skills / "clause-finder")
    registry = open_registry(skills)
    # What changed a moment ago is read again, because the file system's clock is coarse.
    for _ in range(10_000):
        opened_files.clear()
        registry.reload()
        if not any(str(path).startswith(str(folder)) for path in opened_files):
            return
    pytest.fail("the folder was read at every reload")


def test_subscribers_hear_of_changes_only(skills, open_registry, write_skill):
    registry = open_registry(skills)
    heard = []
    unsubscribe = registry.subscribe(heard.append)
    folder = write_skill(skills / "clause-finder")
    registry.reload()
    for file in folder.iterdir():
        file.touch()
    registry.reload()
    assert [list(snapshot.skills) for snapshot in heard] == [["clause-finder"]]
    unsubscribe()
    shutil.rmtree(folder)
    registry.reload()
    assert len(heard) == 1


def test_a_link_out_of_the_folder_of_skills_is_set_aside(
    skills, open_registry, write_skill, tmp_path
):
    outside = write_skill(tmp_path / "elsewhere" / "clause-finder")
    (skills / "clause-finder").symlink_to(outside)
    snapshot = open_registry(skills).snapshot
    assert not snapshot.skills
    assert "a link that leaves" in snapshot.rejected[skills / "clause-finder"]


def test_a_skill_folder_itself_can_be_given(skills, open_registry, write_skill):
    folder = write_skill(skills / "clause-finder")
    write_skill(skills / "other-one")
    assert list(open_registry(folder).snapshot.skills) == ["clause-finder"]


# ---------------------------------------------------------------- watching


def test_a_running_process_takes_up_new_changed_and_removed_folders(skills, watched, write_skill):
    _, wait = watched
    folder = write_skill(skills / "clause-finder", seed=1)
    first = wait(lambda snapshot: "clause-finder" in snapshot.skills).skills["clause-finder"]
    write_skill(folder, seed=2)
    wait(lambda snapshot: snapshot.skills["clause-finder"].digest != first.digest)
    shutil.rmtree(folder)
    wait(lambda snapshot: not snapshot.skills)


def test_a_folder_written_piece_by_piece_is_listed_once_it_is_complete(
    skills, watched, write_skill, tmp_path
):
    _, wait = watched
    source = write_skill(tmp_path / "elsewhere" / "clause-finder")
    target = skills / "clause-finder"
    target.mkdir()
    for file in ("SKILL.md", "skill.yaml", "adapter_config.json"):
        shutil.copy(source / file, target)
    snapshot = wait(lambda snapshot: target in snapshot.rejected)
    assert "adapter_model.safetensors missing" in snapshot.rejected[target]
    content = (source / "adapter_model.safetensors").read_bytes()
    with (target / "adapter_model.safetensors").open("wb") as stream:
        stream.write(content[:50])
        stream.flush()
        wait(lambda snapshot: "truncated" in snapshot.rejected.get(target, ""))
        stream.write(content[50:])
    snapshot = wait(lambda snapshot: "clause-finder" in snapshot.skills)
    assert not snapshot.rejected


def test_a_folder_of_skills_that_vanishes_and_returns_is_followed(skills, watched, write_skill):
    registry, wait = watched
    write_skill(skills / "clause-finder")
    wait(lambda snapshot: "clause-finder" in snapshot.skills)
    aside = skills.with_name("aside")
    skills.rename(aside)
    write_skill(skills / "other-one")
    wait(lambda snapshot: list(snapshot.skills) == ["other-one"])
    registry.close()
    registry.close()


# ---------------------------------------------------------------- default folders


def test_default_folders_end_with_the_given_ones(tmp_path, monkeypatch):
    (tmp_path / "skills").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    folders = default_folders([Path("mine")])
    assert folders[-2:] == (tmp_path / "skills", tmp_path / "mine")
    assert default_folders([Path("skills")])[-1] == tmp_path / "skills"
    assert len(default_folders([Path("skills")])) == len(folders) - 1
    with pytest.raises(SkillError, match="no such folder"):
        default_folders([Path("missing")])


def test_the_shipped_folder_is_not_given_twice(monkeypatch):
    shipped = shipped_folder()
    assert shipped is not None
    monkeypatch.chdir(shipped.parent)
    assert default_folders().count(shipped) == 1
