"""Utterances appended to a skill's own file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentkit.errors import SkillError
from agentkit.skill.manifest_files import read_manifest
from agentkit.skill.utterances import append_utterances, source_folder

MANUAL = "---\nname: poet\ndescription: Writes poems.\n---\nWrite well.\n"
YAML = """\
# how it is asked
version: "1"   # quoted on purpose

input: {type: object, properties: {text: {type: string}}}

utterances:
  - write a poem  # the usual one
  - 'a haiku: on snow'

generation:
  max_tokens: 96
"""


@pytest.fixture
def poet(tmp_path: Path) -> Path:
    folder = tmp_path / "skills" / "poet"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(MANUAL, encoding="utf-8")
    (folder / "skill.yaml").write_text(YAML, encoding="utf-8")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    return folder


def test_utterances_are_appended_and_everything_else_stays_as_it_is(poet: Path) -> None:
    path = append_utterances(poet, ["compose: an ode", "write a poem", "compose: an ode", "- x"])
    added = "  - 'compose: an ode'\n  - '- x'\n"
    before = "  - 'a haiku: on snow'\n"
    assert path.read_text(encoding="utf-8") == YAML.replace(before, before + added)
    manifest, _ = read_manifest(poet)
    assert manifest.utterances == ("write a poem", "a haiku: on snow", "compose: an ode", "- x")
    assert [file.name for file in poet.iterdir() if file.name.startswith(".")] == []


def test_comments_beside_and_after_the_last_utterance_keep_their_place(poet: Path) -> None:
    text = "utterances:\n  - one  # first\n\n# limits\ngeneration: {max_tokens: 9}  # few\n"
    (poet / "skill.yaml").write_text(text, encoding="utf-8")
    append_utterances(poet, ["two"])
    append_utterances(poet, ["three"])
    assert (poet / "skill.yaml").read_text(encoding="utf-8") == text.replace(
        "# first\n", "# first\n  - two\n  - three\n"
    )


@pytest.mark.parametrize("content", [None, "", "version: '2'\n"])
def test_a_skill_without_utterances_gets_its_first(poet: Path, content: str | None) -> None:
    (poet / "skill.yaml").unlink()
    if content is not None:
        (poet / "skill.yaml").write_text(content, encoding="utf-8")
    append_utterances(poet, ["compose an ode"])
    assert read_manifest(poet)[0].utterances == ("compose an ode",)


@pytest.mark.parametrize(
    ("content", "texts"),
    [("utterances: 3\n", ["x"]), ("a: !!python/name:os.system x\n", ["x"]), (YAML, [" "])],
)
def test_a_file_that_would_not_be_sound_is_left_as_it_is(
    poet: Path, content: str, texts: list[str]
) -> None:
    (poet / "skill.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(SkillError):
        append_utterances(poet, texts)
    assert (poet / "skill.yaml").read_text(encoding="utf-8") == content


def test_the_folder_of_a_skill_is_the_last_that_holds_it(poet: Path, tmp_path: Path) -> None:
    assert source_folder([tmp_path / "skills"], "poet") == poet
    assert source_folder([poet], "poet") == poet
    assert source_folder([poet, tmp_path / "elsewhere"], "poet") == poet
    with pytest.raises(SkillError, match="no folder of the skill 'cook'"):
        source_folder([tmp_path / "skills", poet], "cook")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(poet: Path) -> None:
    poet.chmod(0o555)
    try:
        with pytest.raises(SkillError, match="may not be written to"):
            source_folder([poet], "poet")
    finally:
        poet.chmod(0o755)


def test_a_skill_inside_the_package_is_never_written_to(
    poet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentkit.skill.utterances._PACKAGE", tmp_path)
    with pytest.raises(SkillError, match="may not be written to"):
        source_folder([tmp_path / "skills"], "poet")
