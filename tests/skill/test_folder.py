import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit.errors import AdapterError, SkillError
from agentkit.skill.folder import MAX_TEXT_BYTES, check_name, load_skill
from agentkit.skill.manifest import NAME
from agentkit.skill.manifest_files import first_paragraph, read_manifest


def test_a_whole_folder_becomes_a_skill(tmp_path, write_skill):
    skill = load_skill(write_skill(tmp_path / "clause-finder"))
    assert skill.name == "clause-finder"
    assert skill.manifest.description == "Finds clauses in contracts."
    assert skill.manifest.instructions == "Mark the clauses."
    assert skill.manifest.utterances == ("find the clauses",)
    assert skill.warnings == ()
    assert not skill.head
    assert skill.head_weights is None
    assert skill.files == (
        "SKILL.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "skill.yaml",
    )


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../x", "lowercase"),
        ("a.b", "lowercase"),
        ("A", "lowercase"),
        ("a--b", "lowercase"),
        ("-a", "lowercase"),
        ("a\n", "lowercase"),
        ("", "lowercase"),
        ("ünder", "lowercase"),
        ("a" * 300, "300 characters"),
        ("lora", "reserved"),
        ("auto", "reserved"),
        ("base", "reserved"),
        ("human", "reserved"),
        ("fail", "reserved"),
        ("clause-finder@2", "lowercase"),
    ],
)
def test_a_name_that_breaks_the_rule_is_refused_with_the_reason(name, reason):
    with pytest.raises(SkillError, match=reason):
        check_name(name, "here")


@given(st.text(max_size=80))
def test_every_accepted_name_is_one_path_component_of_the_rule(name):
    try:
        check_name(name, "here")
    except SkillError:
        return
    assert NAME.fullmatch(name)
    assert Path(name).name == name
    assert len(name) <= 64


def test_the_name_in_the_front_matter_must_be_the_folders(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    folder.rename(tmp_path / "other")
    with pytest.raises(SkillError, match=r"SKILL\.md:2:1: the name is 'clause-finder'"):
        load_skill(tmp_path / "other")


# ---------------------------------------------------------------- front matter


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no front matter", r"SKILL\.md:1:1: no front matter"),
        ("---\nname: a\n", r"SKILL\.md:1:1: no front matter"),
        ("---\n- a\n---\n", r"must be a mapping"),
        ("---\nname: clause-finder\n---\n", r"description must be"),
        ("---\nname: clause-finder\ndescription: ' '\n---\n", r"SKILL\.md:3:1: description must"),
        ("---\nname: 3\ndescription: x\n---\n", r"SKILL\.md:2:1: name must be a text"),
        (
            "---\nname: clause-finder\ndescription: " + "x" * 1025 + "\n---\n",
            r"SKILL\.md:3:1: description has 1,025 characters",
        ),
        ("---\nname: [\n---\n", r"SKILL\.md:\d+:\d+: not valid YAML"),
        ("---\nname: clause-finder\nname: b\n---\n", r"SKILL\.md:3:1: the key 'name' occurs twice"),
    ],
)
def test_bad_front_matter_is_refused_at_its_place(tmp_path, write_skill, text, reason):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "SKILL.md").write_text(text)
    with pytest.raises(SkillError, match=reason):
        load_skill(folder)


def test_an_unknown_front_matter_key_is_a_warning(tmp_path, write_skill):
    text = (
        "---\r\nname: {name}\r\ndescription: >\r\n  Two\r\n  lines.\r\nlicence: MIT\r\n---\r\nBody"
    )
    skill = load_skill(write_skill(tmp_path / "clause-finder", skill_md=text))
    assert skill.manifest.description == "Two lines."
    assert skill.manifest.instructions == "Body"
    assert any("'licence'" in warning and "'license'" in warning for warning in skill.warnings)


# ---------------------------------------------------------------- skill.yaml


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("uterances: [a]\n", r"skill\.yaml:1:1: unknown key 'uterances' \(did you mean 'utter"),
        ("version: '1'\nretrieval:\n  top_k: 0\n", r"skill\.yaml:3:3: retrieval\.top_k: Input"),
        ("answer:\n  kind: choice\n", r"skill\.yaml:1:1: .*choices' is missing"),
        ("answer: {kind: choise}\n", r"skill\.yaml:1:1: answer: .*choise"),
        ("generation: {beams: 3, temperature: 1}\n", r"skill\.yaml:1:1: generation: .*beams"),
        ("answer: {kind: generate, choice_field: tone}\n", r"skill\.yaml:.*choice_field"),
        ("answer: {kind: generate, choice_by: probe}\n", r"skill\.yaml:.*choice_field is missing"),
        ("answer: {kind: generate, choice_given: a}\n", r"skill\.yaml:.*choice_field is missing"),
        (
            "output: {type: object, properties: {a: {enum: [x, y]}}}\n"
            "answer:\n  kind: generate\n  choice_field: a\n  choice_given: '{{ a'\n",
            r"skill\.yaml:5:.*line 1 of the template",
        ),
        (
            "generation:\n  max_token: 3\n",
            r"skill\.yaml:2:3: unknown key 'max_token' \(did you mea",
        ),
        ("name: x\n", r"skill\.yaml:1:1: 'name' does not belong here"),
        ("- a\n", r"skill\.yaml:1:1: must be a mapping"),
        ("output: {type: strin}\n", r"skill\.yaml:1:10: unknown type 'strin' \(did you mean 'str"),
        ("output: {typ: string}\n", r"skill\.yaml:1:10: unknown schema keyword 'typ'"),
        ("prompt:\n  question: '{{ a'\n", r"skill\.yaml:2:3: line 1 of the template"),
        ("prompt: {question: '{{ " + "(" * 4000 + "'}\n", r"skill\.yaml:1:10: "),
        ("utterances: [a, ' ']\n", r"skill\.yaml:1:17: an empty utterance"),
        ("version: 1\n", r"skill\.yaml:1:1: version: Input should be a valid string"),
    ],
)
def test_a_bad_skill_yaml_is_refused_at_the_key_that_is_wrong(tmp_path, write_skill, text, reason):
    with pytest.raises(SkillError, match=reason):
        load_skill(write_skill(tmp_path / "clause-finder", skill_yaml=text))


def test_a_task_head_is_required_by_an_answer_that_needs_it(tmp_path, write_skill):
    text = "answer:\n  kind: choice\n  choices: ['yes', 'no']\n"
    folder = write_skill(tmp_path / "clause-finder", skill_yaml=text)
    with pytest.raises(SkillError, match=r"needs head\.safetensors .*likelihood"):
        load_skill(folder)
    shutil.copy(folder / "adapter_model.safetensors", folder / "head.safetensors")
    skill = load_skill(folder)
    assert skill.head
    assert "head.safetensors" in skill.files


def test_a_manifest_can_be_read_before_there_are_weights(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "adapter_model.safetensors").unlink()
    manifest, warnings = read_manifest(folder)
    assert manifest.name == "clause-finder"
    assert warnings == ()


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "skill.yaml").write_bytes(b"version: '1'\nutterances: [caf\xe9]\n")
    with pytest.raises(SkillError, match=r"skill\.yaml:2: not UTF-8"):
        load_skill(folder)


def test_a_text_file_that_is_too_large_is_refused(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "skill.yaml").write_text("#" * (MAX_TEXT_BYTES + 1))
    with pytest.raises(SkillError, match="512,000 bytes"):
        load_skill(folder)


# ---------------------------------------------------------------- adapters and other files


def test_a_pickle_alone_is_refused(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickles are never read"):
        load_skill(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_no_skill(tmp_path, write_skill, file):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / file).unlink()
    with pytest.raises(AdapterError, match=f"{file} missing"):
        load_skill(folder)


def test_an_adapter_may_be_missing_where_a_head_answers(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "head.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="not read off a task head"):
        load_skill(folder)
    (folder / "skill.yaml").write_text("answer: {kind: choice, choices: [a, b]}")
    skill = load_skill(folder)
    assert (skill.adapter, skill.head) == (False, True)


def test_skill_yaml_needs_skill_md(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder", skill_md=None)
    with pytest.raises(SkillError, match=r"skill\.yaml without SKILL\.md"):
        load_skill(folder)


def test_a_chat_template_is_ignored_and_said_so(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    plain = load_skill(folder)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ 1 / 0 }}"}')
    assert any("chat template" in warning for warning in load_skill(folder).warnings)
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    skill = load_skill(folder)
    assert any("chat template" in warning for warning in skill.warnings)
    assert skill.digest == plain.digest
    assert skill.manifest == plain.manifest


def test_code_in_a_skill_folder_is_ignored_and_never_run(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    skill = load_skill(folder)
    assert any(
        "never run" in warning and "scripts/setup.py" in warning for warning in skill.warnings
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["SKILL.md", "adapter_model.safetensors", "notes.txt"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path, write_skill, file):
    folder = write_skill(tmp_path / "clause-finder")
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to("../outside")
    with pytest.raises(SkillError, match="a link that leaves the skill folder"):
        load_skill(folder)


def test_a_folder_whose_name_begins_like_another_is_still_outside(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    write_skill(tmp_path / "clause-finder-2")
    (folder / "skill.yaml").unlink()
    (folder / "skill.yaml").symlink_to("../clause-finder-2/skill.yaml")
    with pytest.raises(SkillError, match="a link that leaves"):
        load_skill(folder)


def test_a_link_within_the_folder_is_followed(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    before = load_skill(folder)
    (folder / "blobs").mkdir()
    (folder / "skill.yaml").rename(folder / "blobs" / "1")
    (folder / "skill.yaml").symlink_to("blobs/1")
    assert load_skill(folder).digest == before.digest


def test_a_pipe_in_the_folder_is_refused_instead_of_waited_for(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "skill.yaml").unlink()
    os.mkfifo(folder / "skill.yaml")
    with pytest.raises(SkillError, match="not a regular file"):
        load_skill(folder)


def test_a_dangling_link_and_a_loop_are_refused(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    (folder / "loop").symlink_to("loop")
    with pytest.raises(SkillError, match="leads nowhere"):
        load_skill(folder)


# ---------------------------------------------------------------- bare PEFT folders


def test_a_bare_peft_folder_takes_its_description_from_the_readme(tmp_path, write_skill):
    folder = write_skill(tmp_path / "bare-one", skill_md=None, skill_yaml=None)
    assert any("controller" in warning for warning in load_skill(folder).warnings)
    (folder / "README.md").write_text(
        "---\nlibrary_name: peft\n---\n# Card\n\n<!-- note -->\n\n- a list\n\nSums up\nletters.\n"
    )
    skill = load_skill(folder)
    assert skill.manifest.description == "Sums up letters."
    assert skill.manifest.input == {"type": "string"}
    assert skill.manifest.answer.kind == "generate"
    assert skill.warnings == ()
    assert "README.md" in skill.files


def test_placeholders_of_a_model_card_are_no_description():
    card = "# Model\n\n## Details\n\nUse it [More Information Needed]\n\n```\ncode\n```\n"
    assert first_paragraph(card) == ""


# ---------------------------------------------------------------- digests


def test_touching_a_file_keeps_the_digest(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    before = load_skill(folder)
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    assert load_skill(folder).digest == before.digest


def test_readme_and_metrics_are_no_part_of_the_digest(tmp_path, write_skill):
    folder = write_skill(tmp_path / "clause-finder")
    before = load_skill(folder)
    (folder / "README.md").write_text("read me")
    (folder / "metrics.json").write_text("{}")
    assert load_skill(folder).digest == before.digest


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changing_any_served_byte_changes_the_digest(tmp_path, write_skill, data):
    from agentkit.skill.folder import folder_digest

    folder = write_skill(tmp_path / "clause-finder")
    skill = load_skill(folder)
    path = folder / data.draw(st.sampled_from(skill.files))
    content = bytearray(path.read_bytes())
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert folder_digest(folder, skill.files) != skill.digest


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ({"kind": "choice", "choices": ["a", "b"], "scoring": "likelihood"}, "'answer'"),
        (
            {
                "kind": "marks",
                "labels": [{"name": "a"}],
                "fields": {"marks": {"label_key": "label", "quote_key": "quote"}},
            },
            "'marks'",
        ),
    ],
)
def test_a_field_that_the_output_does_not_list_is_warned_of(
    tmp_path: Path, answer: dict[str, Any], name: str
) -> None:
    folder = tmp_path / "lift-log"
    folder.mkdir()
    (folder / "SKILL.md").write_text("---\nname: lift-log\ndescription: Logs lifts.\n---\nLog.\n")
    output = {"type": "object", "properties": {"other": {"type": "string"}}}
    manifest = {"output": output, "answer": answer}
    (folder / "skill.yaml").write_text(json.dumps(manifest), encoding="utf-8")
    (warning,) = read_manifest(folder)[1]
    assert f"the answer gives {name}, which output.properties does not list" in warning
    assert warning.startswith(f"{folder / 'skill.yaml'}:1:")
