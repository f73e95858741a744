"""Everything put together on tiny models: parts are made when needed, and shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentkit.errors import DocumentError, InputError, ModelError, SkillError
from agentkit.kit import Kit
from agentkit.settings import Settings
from agentkit.skill.folder import load_skill
from agentkit.testing import FakeEncoder, TinyBackbone, tiny_adapter
from agentkit.types import StepCall, StepResult
from agentkit.workflow import Workflow


class TinyKit(Kit):
    """A kit whose encoder has no weights."""

    encoder = FakeEncoder()


@pytest.fixture
def skills_folder(tmp_path: Path, tiny_backbone: TinyBackbone) -> Path:
    folder = tmp_path / "skills-of-mine"
    tiny_adapter(folder / "word-giver", tiny_backbone, layers=[3])
    return folder


@pytest.fixture
def settings(tmp_path: Path, tiny_backbone: TinyBackbone) -> Settings:
    return Settings(
        home=tmp_path / "home", backbone=str(tiny_backbone.path), dtype="float32", threads=1
    )


@pytest.fixture
def kit(settings: Settings, skills_folder: Path) -> Iterator[Kit]:
    with TinyKit(settings, skills=[skills_folder]) as kit:
        yield kit


def words(text: str = "Hm.") -> StepCall:
    return StepCall(step="one", instruction="", input={"text": text}, skill="word-giver")


def test_a_skill_of_a_given_folder_answers(kit: Kit) -> None:
    (result,) = kit.runner().run([words()])
    assert isinstance(result, StepResult)
    assert result.skill == "word-giver"
    assert isinstance(result.output, str)


def test_what_is_served_is_a_copy_under_home(kit: Kit, settings: Settings) -> None:
    skill = kit.skills["word-giver"]
    assert settings.store_dir in skill.path.parents


def test_nothing_heavy_is_made_before_it_is_needed(settings: Settings, skills_folder: Path) -> None:
    with TinyKit(settings, skills=[skills_folder]) as kit:
        assert "word-giver" in kit.skills
        assert "engine" not in vars(kit)
        assert "runs" not in vars(kit)
        assert not settings.runs_db.exists()


def test_the_parts_are_made_once(kit: Kit) -> None:
    assert kit.engine is kit.engine
    assert kit.registry is kit.registry
    assert kit.retriever is kit.retriever


def test_closing_twice_does_no_harm(kit: Kit) -> None:
    kit.runner()
    kit.close()
    kit.close()
    assert "engine" not in vars(kit)


def test_a_runner_can_be_made_with_the_skills_of_an_earlier_run(
    kit: Kit, skills_folder: Path, tiny_backbone: TinyBackbone
) -> None:
    before = kit.skills["word-giver"].digest
    (first,) = kit.runner().run([words()])
    tiny_adapter(skills_folder / "word-giver", tiny_backbone, layers=[3], seed=5)
    kit.registry.reload()
    after = kit.skills["word-giver"].digest
    assert after == load_skill(skills_folder / "word-giver").digest != before
    runner = kit.runner({"word-giver": before})
    assert set(runner.skills) == {"word-giver"}
    (again,) = runner.run([words()])
    assert isinstance(first, StepResult)
    assert isinstance(again, StepResult)
    assert (again.digest, again.output) == (before, first.output)


def test_a_run_that_is_kept_says_what_it_is_resumed_with(kit: Kit) -> None:
    spec = (
        Workflow("one")
        .step("say", skill="word-giver", input={"text": "Hm."})
        .output("said", "{{ steps.say.output }}")
        .spec()
    )
    outcome = kit.compile(spec).run({}, store=kit.runs)
    record = kit.runs.show(outcome.id)
    assert record.skills == {name: skill.digest for name, skill in kit.skills.items()}
    assert "word-giver" in record.skills
    assert record.backbone == kit.engine.fingerprint
    again = kit.compile(spec, digests=record.skills, as_of=record.started)
    assert again.run({}).outputs == outcome.outputs


def test_a_copy_that_is_gone_is_an_input_error(kit: Kit) -> None:
    with pytest.raises(InputError):
        kit.runner({"word-giver": "0" * 64})


def test_a_document_that_is_read_is_kept(kit: Kit, tmp_path: Path, agreement_text: str) -> None:
    path = tmp_path / "agreement.txt"
    path.write_text(agreement_text, encoding="utf-8")
    document = kit.read(path)
    assert kit.documents.get(document.digest) == document
    with pytest.raises(DocumentError):
        kit.read(tmp_path / "nowhere.txt")


def test_a_folder_of_skills_that_is_not_there_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(SkillError, match="no such folder"):
        Kit(settings, skills=[tmp_path / "nowhere"])


def test_a_backbone_that_is_not_there_is_refused(settings: Settings, skills_folder: Path) -> None:
    elsewhere = settings.model_copy(update={"backbone": "./nowhere"})
    with TinyKit(elsewhere, skills=[skills_folder]) as kit, pytest.raises(ModelError):
        _ = kit.engine


def test_a_broken_folder_is_set_aside_with_its_reason(
    settings: Settings, skills_folder: Path
) -> None:
    broken = skills_folder / "broken-one"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{}")
    (broken / "adapter_model.bin").write_bytes(b"pickle")
    with TinyKit(settings, skills=[skills_folder]) as kit:
        assert "word-giver" in kit.skills
        assert "broken-one" not in kit.skills
        assert any(path.name == "broken-one" for path in kit.registry.snapshot.rejected)
