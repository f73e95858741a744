"""Skills as predictors on a tiny real backbone: both outputs at once, and the adapter off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from agentkit.adapters.heads import KIND
from agentkit.adapters.novelty import NoveltyCalibration
from agentkit.adapters.weights import BACKBONE_KEY
from agentkit.engine.engine import Engine
from agentkit.evaluation.evaluate import evaluate, text_reader
from agentkit.evaluation.scoring import Prediction
from agentkit.evaluation.serving import BareEngine, SkillPredictor
from agentkit.retrieval.store import FileDocumentStore
from agentkit.settings import Settings
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import (
    FakeEncoder,
    TinyBackbone,
    tiny_adapter,
    tiny_choice_head,
    tiny_label_head,
)
from agentkit.training.rows import Row

DOCUMENT = {"type": "object", "required": ["document"]}
MANIFESTS: dict[str, dict[str, Any]] = {
    "judge": {
        "input": {"type": "object", "required": ["document", "rule"]},
        "output": {"type": "object", "required": ["verdict", "evidence", "score"]},
        "prompt": {"question": "{{ rule }}"},
        "answer": {
            "kind": "choice",
            "choices": ["yes", "no", "silent"],
            "field": "verdict",
            "evidence_field": "evidence",
            "evidence_limit": 1,
        },
        "retrieval": {"document": "document"},
    },
    "marker": {
        "input": DOCUMENT,
        "output": {"type": "object", "required": ["marks"]},
        "prompt": {"question": ""},
        "answer": {
            "kind": "marks",
            "labels": [{"name": "place", "threshold": 0.9}, {"name": "time", "limit": 2}],
            "fields": {"marks": {"label_key": "label", "quote_key": "quote"}},
        },
        "retrieval": {"document": "document", "mode": "windows", "window": 64},
    },
    "writer": {
        "input": {"type": "object", "required": ["text"]},
        "output": {
            "type": "object",
            "properties": {"bird": {"enum": ["wren", "heron"]}},
            "required": ["bird"],
        },
        "prompt": {"question": "{{ text }}"},
        "generation": {"max_tokens": 24},
    },
}
HEADS = {"judge": lambda: tiny_choice_head(48, 3), "marker": lambda: tiny_label_head(48, 2, 0)}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: TinyBackbone) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return Settings(home=home, backbone=str(tiny_backbone.path), dtype="float32", threads=1)


@pytest.fixture(scope="module")
def skills(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: TinyBackbone
) -> dict[str, Skill]:
    folder = tmp_path_factory.mktemp("skills")
    return {
        name: load_skill(
            tiny_adapter(
                folder / name,
                tiny_backbone,
                manifest=manifest,
                head=HEADS[name]() if name in HEADS else None,
                seed=seed,
            )
        )
        for seed, (name, manifest) in enumerate(MANIFESTS.items())
    }


@pytest.fixture(scope="module")
def engines(settings: Settings) -> Iterator[dict[str, Engine]]:
    with Engine.open(settings) as engine, BareEngine.open(settings) as bare:
        yield {"skill": engine, "bare": bare}


@pytest.fixture
def predictor(settings: Settings, engines: dict[str, Engine], skills: dict[str, Skill]):
    def make(name: str, engine: str = "skill") -> Callable[..., list[Prediction]]:
        return SkillPredictor(
            skills[name],
            engine=engines[engine],
            encoder=FakeEncoder(),
            documents=FileDocumentStore(settings.documents_dir),
            settings=settings,
        )

    return make


def rows_for(name: str, text: str) -> list[Row]:
    if name == "writer":
        return [Row({"text": f"bird {n}"}, {"bird": "wren"}, str(n)) for n in range(3)]
    if name == "judge":
        return [Row({"document": text, "rule": f"rule {n}"}, None, text) for n in range(3)]
    return [Row({"document": text}, None, text)]


def test_the_scores_hold_what_the_output_holds_and_what_thresholds_left_out(
    predictor, agreement_text: str
) -> None:
    for name, field in (("judge", "evidence"), ("marker", "marks")):
        (first, *_) = predictor(name)(rows_for(name, agreement_text))
        kept, every = first.output[field], first.scores[field]
        assert len(kept) < len(every)
        assert all(one in every for one in kept)


@pytest.mark.parametrize("name", list(MANIFESTS))
def test_the_bare_engine_answers_as_the_backbone_without_the_adapter(
    predictor, skills: dict[str, Skill], engines: dict[str, Engine], agreement_text: str, name: str
) -> None:
    rows = rows_for(name, agreement_text)
    adapted, bare = predictor(name)(rows), predictor(name, "bare")(rows)
    assert all(one.error is None for one in (*adapted, *bare))
    if name != "writer":
        assert [one.scores for one in adapted] != [one.scores for one in bare]
    again = predictor(name, "bare")(rows)
    assert [one.output for one in again] == [one.output for one in bare]
    loaded = engines["bare"].loaded[skills[name].digest]
    assert (loaded.head is None) == (name == "writer")


def test_two_adapters_with_one_head_answer_alike_on_the_bare_engine(
    tmp_path: Path, tiny_backbone: TinyBackbone, settings: Settings, engines, agreement_text: str
) -> None:
    answers = []
    for seed in (11, 12):
        folder = tiny_adapter(
            tmp_path / str(seed) / "judge",
            tiny_backbone,
            manifest=MANIFESTS["judge"],
            head=tiny_choice_head(48, 3),
            seed=seed,
        )
        predict = SkillPredictor(
            load_skill(folder),
            engine=engines["bare"],
            encoder=FakeEncoder(),
            documents=FileDocumentStore(settings.documents_dir),
            settings=settings,
        )
        answers.append([one.scores for one in predict(rows_for("judge", agreement_text))])
    assert answers[0] == answers[1]


def test_the_bare_engine_leaves_out_a_calibration_of_the_adapters_states(
    tmp_path: Path, tiny_backbone: TinyBackbone, settings: Settings, engines, agreement_text: str
) -> None:
    answers = []
    for name in ("plain", "calibrated"):
        head = tiny_choice_head(48, 3)
        if name == "calibrated":
            head.calibration = NoveltyCalibration.of(torch.randn(8, 96), 3, [2])
            head.calibration.curve.fill_(0.7)
        folder = tiny_adapter(
            tmp_path / name / "judge", tiny_backbone, manifest=MANIFESTS["judge"], head=head
        )
        for engine in ("skill", "bare"):
            predict = SkillPredictor(
                load_skill(folder),
                engine=engines[engine],
                encoder=FakeEncoder(),
                documents=FileDocumentStore(settings.documents_dir),
                settings=settings,
            )
            found = predict(rows_for("judge", agreement_text))
            answers.append([one.output["score"] for one in found])
    assert answers[0] != answers[2]
    assert answers[1] == answers[3]


def test_a_head_alone_answers_alike_with_and_without_adapters_around(
    tmp_path: Path, tiny_backbone: TinyBackbone, settings: Settings, engines, agreement_text: str
) -> None:
    head = tiny_choice_head(48, 3)
    folder = tiny_adapter(tmp_path / "judge", tiny_backbone, manifest=MANIFESTS["judge"], head=head)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).unlink()
    metadata = {KIND: head.kind, BACKBONE_KEY: tiny_backbone.fingerprint}
    save_file(head.state_dict(), folder / "head.safetensors", metadata=metadata)
    answers = [
        SkillPredictor(
            load_skill(folder),
            engine=engine,
            encoder=FakeEncoder(),
            documents=FileDocumentStore(settings.documents_dir),
            settings=settings,
        )(rows_for("judge", agreement_text))
        for engine in engines.values()
    ]
    assert all(one.error is None for one in answers[0])
    for one, other in zip(*answers, strict=True):
        assert one.output["verdict"] == other.output["verdict"]
        assert one.output["score"] == pytest.approx(other.output["score"], abs=1e-4)


def test_a_row_that_does_not_fit_fails_alone(predictor, agreement_text: str) -> None:
    rows = rows_for("judge", agreement_text)
    rows[1] = Row({"document": agreement_text}, None, "x")
    found = predictor("judge")(rows)
    assert [one.error is None for one in found] == [True, False, True]
    assert "does not fit" in found[1].error
    assert found[1].output is None


def test_a_documents_rows_are_read_once_wherever_they_stand(
    predictor, skills: dict[str, Skill], engines: dict[str, Engine], agreement_text: str
) -> None:
    other = agreement_text.replace("Norway", "Sweden")
    rows = [
        Row({"document": text, "rule": f"rule {n}"}, {"verdict": "yes"}, text)
        for n in range(4)
        for text in (agreement_text + "Once more.", other + "Once more.")
    ]
    before = engines["skill"].prefix_statistics
    manifest = skills["judge"].manifest
    found = evaluate(
        manifest, rows, {"judge": predictor("judge")}, text_of=text_reader(manifest, str)
    )
    after = engines["skill"].prefix_statistics
    assert found is not None
    assert (found.rows, found.documents, found.skill.failed) == (8, 2, 0)
    # Each document once, and after it the instructions once.
    assert after.misses - before.misses == 4
