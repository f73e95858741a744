"""Versions of a skill side by side: which of them serves which run."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import InputError, SkillError
from agentkit.skill.folder import load_skill
from agentkit.skill.names import split_version, version_key
from agentkit.skill.registry import Registry
from agentkit.skill.release import Release, ReleaseFile, find, input_key, served
from agentkit.skill.store import SkillStore

SKILL_MD = """---
name: clause-finder
description: Finds clauses in contracts.
---
Mark the clauses.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "skills"


@pytest.fixture
def registry(tmp_path: Path, folder: Path, write_skill):
    write_skill(folder / "clause-finder", seed=1)
    write_skill(folder / "clause-finder@2", seed=2, skill_md=SKILL_MD)
    with Registry([folder], SkillStore(tmp_path / "store")) as registry:
        yield registry


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("name", ["x@", "x@two", "x@02", "x@0", "x@1.", "x@1..2", "x@2@3", "x@-1"])
def test_a_malformed_version_is_refused_with_a_hint(name):
    with pytest.raises(SkillError, match=r"is not a version of a skill .*x@2"):
        split_version(name, "here")


def test_a_version_is_told_from_the_name_of_its_folder():
    assert split_version("clause-finder", "here") == ("clause-finder", None)
    assert split_version("clause-finder@2.10", "here") == ("clause-finder", "2.10")
    assert sorted(["2.10", "2.9", "10"], key=version_key) == ["2.9", "2.10", "10"]


def test_a_version_keeps_the_name_of_its_skill(tmp_path, write_skill):
    path = write_skill(tmp_path / "clause-finder@2", skill_md=SKILL_MD)
    assert load_skill(path).name == "clause-finder"


def test_a_version_does_not_belong_into_the_front_matter(tmp_path, write_skill):
    path = write_skill(tmp_path / "clause-finder@2")
    with pytest.raises(SkillError, match="NAME@2"):
        load_skill(path)


def test_a_version_is_known_and_not_served(registry):
    snapshot = registry.snapshot
    assert set(snapshot.skills) == {"clause-finder"}
    assert set(snapshot.versions["clause-finder"]) == {"2"}
    assert served(snapshot, {}).skills == dict(snapshot.skills)


def test_a_malformed_version_is_set_aside_and_the_others_go_on(registry, folder, write_skill):
    write_skill(folder / "clause-finder@two", skill_md=SKILL_MD)
    snapshot = registry.reload()
    assert "is not a version" in snapshot.rejected[folder / "clause-finder@two"]
    assert set(snapshot.skills) == {"clause-finder"}


def test_a_watching_registry_takes_up_a_version_without_serving_it(registry, folder, write_skill):
    seen = threading.Event()

    def look(snapshot):
        if "3" in snapshot.versions.get("clause-finder", {}):
            seen.set()

    registry.subscribe(look)
    before = registry.snapshot.skills
    registry.watch()
    write_skill(folder / "clause-finder@3", seed=3, skill_md=SKILL_MD)
    assert seen.wait(30)
    assert registry.snapshot.skills == before
    released = {"clause-finder": Release(shares=(("3", 1.0),))}
    now = served(registry.snapshot, released, run="any")
    assert now.versions == {"clause-finder": "3"}


def test_of_two_folders_of_one_version_the_later_is_used(tmp_path, registry, folder, write_skill):
    other = tmp_path / "others"
    write_skill(other / "clause-finder@2", seed=9, skill_md=SKILL_MD)
    with Registry([folder, other], registry.store) as both:
        snapshot = both.snapshot
    used = snapshot.versions["clause-finder"]["2"]
    assert used.digest == load_skill(other / "clause-finder@2").digest
    assert any("clause-finder@2" in note and "instead of" in note for note in snapshot.notes)


def test_a_version_without_its_skill_serves_once_it_is_promoted(tmp_path, write_skill):
    write_skill(tmp_path / "skills" / "clause-finder@2", skill_md=SKILL_MD)
    with Registry([tmp_path / "skills"], SkillStore(tmp_path / "store")) as registry:
        snapshot = registry.snapshot
    assert "clause-finder" not in snapshot.skills
    assert any("until one of them is promoted" in note for note in snapshot.notes)
    assert not served(snapshot, {}).skills
    assert set(served(snapshot, {"clause-finder": Release("2")}).skills) == {"clause-finder"}


def test_a_folder_is_found_by_name_and_version(registry):
    snapshot = registry.snapshot
    assert find(snapshot, "clause-finder@2").digest != find(snapshot, "clause-finder").digest
    with pytest.raises(InputError, match="clause-finder, clause-finder@2"):
        find(snapshot, "clause-finder@7")


# ---------------------------------------------------------------- shares

shares = st.floats(0.001, 1.0)
keys = st.text(max_size=20)


@given(keys, shares, shares)
def test_a_growing_share_keeps_every_key_that_it_had(key, one, other):
    small, large = sorted((one, other))
    if Release(shares=(("2", small),)).version_of("x", key) == "2":
        assert Release(shares=(("2", large),)).version_of("x", key) == "2"


@given(keys)
def test_a_whole_share_takes_every_key_and_no_share_none(key):
    assert Release(shares=(("2", 1.0),)).version_of("x", key) == "2"
    assert Release("3").version_of("x", key) == "3"
    assert Release().version_of("x", key) is None


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_is_met_by_about_so_many_keys(share):
    release = Release(shares=(("2", share), ("3", 0.2)))
    met = [release.version_of("x", str(n)) for n in range(5000)]
    assert abs(met.count("2") / 5000 - share) < 0.03
    assert abs(met.count("3") / 5000 - 0.2) < 0.03


def test_two_skills_do_not_share_their_places():
    release = Release(shares=(("2", 0.5),))
    one, other = ([release.version_of(x, str(n)) for n in range(200)] for x in ("x", "y"))
    assert one != other


@given(st.dictionaries(st.sampled_from("abc"), st.text(max_size=5)), st.text(max_size=9))
def test_a_document_is_the_same_input_whatever_it_is_called(rest, source):
    document = {"$document": "d" * 64, "source": source}
    assert input_key({**rest, "document": document}) == input_key(
        {"other": {**document, "source": "x.pdf"}}
    )


def test_inputs_without_a_document_are_told_apart():
    assert input_key({"text": "a"}) != input_key({"text": "b"})


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(InputError, match="within 0 and 1"):
        Release().with_share("2", share)


def test_shares_that_add_up_to_more_than_all_runs_are_refused():
    with pytest.raises(InputError, match=r"add up to 1\.1: 0\.6 for 2 and 0\.5 for 3"):
        Release().with_share("2", 0.6).with_share("3", 0.5)


def test_the_stable_version_gets_no_share():
    with pytest.raises(InputError, match="serves the other runs already"):
        Release("2").with_share("2", 0.5)


def test_rollback_ends_shares_first_and_then_undoes_promotions():
    release = Release().promoted("2").with_share("3", 0.5).promoted("3").with_share("4", 0.1)
    release = release.rolled_back()
    assert (release.stable, release.shares) == ("3", ())
    release = release.rolled_back()
    assert release.stable == "2"
    release = release.rolled_back()
    assert release == Release()
    with pytest.raises(InputError, match="nothing to take back"):
        release.rolled_back()


def test_promoting_what_is_stable_is_refused():
    with pytest.raises(InputError, match="serves every run already"):
        Release("2").promoted("2")


# ---------------------------------------------------------------- what serves


def test_a_version_whose_folder_is_gone_hands_its_share_to_the_stable_one(registry):
    snapshot = registry.snapshot
    found = served(snapshot, {"clause-finder": Release("2", (("9", 1.0),))}, run="r")
    assert found.versions == {"clause-finder": "2"}
    assert found.notes == (
        "clause-finder@9 is released and its folder is not there (or set aside): "
        "clause-finder@2 serves instead",
    )
    found = served(snapshot, {"clause-finder": Release("9")}, run="r")
    assert not found.versions
    assert found.digests == {"clause-finder": snapshot.skills["clause-finder"].digest}
    assert found.notes


def test_a_share_of_a_missing_folder_is_said_before_any_run_meets_it(registry):
    releases = {"clause-finder": Release(shares=(("9", 0.001),))}
    assert served(registry.snapshot, releases).notes


def test_by_input_the_run_does_not_matter(registry):
    releases = {"clause-finder": Release(shares=(("2", 0.5),), by="input")}
    for text in "abcdefgh":
        versions = [
            served(registry.snapshot, releases, run=str(n), inputs={"text": text}).versions
            for n in range(5)
        ]
        assert all(one == versions[0] for one in versions)


def test_a_release_of_a_skill_that_is_gone_serves_nothing(registry):
    found = served(registry.snapshot, {"nobody": Release("2")}, run="r")
    assert "nobody" not in found.skills


# ---------------------------------------------------------------- the file


def test_a_release_is_read_back_as_it_was_written(tmp_path):
    file = ReleaseFile(tmp_path / "releases.json")
    assert file.read() == {}
    file.change("a", lambda one: one.with_share("2", 0.25, "input"))
    file.change("b", lambda one: one.promoted("2.1"))
    assert ReleaseFile(file.path).read() == {
        "a": Release(shares=(("2", 0.25),), by="input"),
        "b": Release("2.1", before=(None,)),
    }


def test_a_refused_change_leaves_the_file(tmp_path):
    file = ReleaseFile(tmp_path / "releases.json")
    file.change("a", lambda one: one.with_share("2", 0.25))
    before = file.path.read_bytes()
    with pytest.raises(InputError, match="skill a: the shares add up"):
        file.change("a", lambda one: one.with_share("3", 0.9))
    assert file.path.read_bytes() == before


def test_changes_of_many_threads_are_all_kept(tmp_path):
    path = tmp_path / "releases.json"

    def change(number):
        ReleaseFile(path).change(f"skill-{number}", lambda one: one.promoted("2"))

    threads = [threading.Thread(target=change, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ReleaseFile(path).read()) == 16


def test_a_withdrawn_release_leaves_no_trace(tmp_path):
    file = ReleaseFile(tmp_path / "releases.json")
    file.change("a", lambda one: one.with_share("2", 0.25))
    file.change("a", lambda one: one.with_share("2", 0.0))
    assert file.read() == {}


GOOD = {"stable": None, "shares": [["2", 0.5]], "by": "run", "before": []}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"version": 9, "skills": {}}',
        *(
            json.dumps({"version": 1, "skills": {"a": {**GOOD, **change}}})
            for change in (
                {"shares": [["2", 0.7], ["3", 0.7]]},
                {"shares": [["two", 0.7]]},
                {"shares": [["2", "much"]]},
                {"shares": 7},
                {"stable": 2},
                {"before": ["x"]},
            )
        ),
        json.dumps({"version": 1, "skills": {"../x": GOOD}}),
    ],
)
def test_a_damaged_file_is_an_input_error_that_says_what_to_do(tmp_path, content):
    path = tmp_path / "releases.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"releases\.json: the releases cannot be read.*mend"):
        ReleaseFile(path).read()
