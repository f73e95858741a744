"""A written answer whose field a task head chooses: the head's choice, the text that fits it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_material import QUESTIONS, Prompts, done
from transformers import AutoModelForCausalLM

from agentkit.engine.engine import Engine
from agentkit.errors import AdapterError, SkillError
from agentkit.prompt import frame_of
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import TinyBackbone, tiny_adapter, tiny_choice_head, tiny_probe
from agentkit.types import Generation, Request

TONES = ("calm", "stern", "rude")
SCHEMA = {
    "type": "object",
    "properties": {
        "tone": {"enum": list(TONES)},
        "said": {"type": "string", "maxLength": 30},
    },
    "required": ["tone", "said"],
}
MANIFEST = {"output": SCHEMA, "answer": {"kind": "generate", "choice_field": "tone"}}


PROBED = MANIFEST | {"answer": {**MANIFEST["answer"], "choice_by": "probe"}}


@pytest.fixture(params=["head", "probe"])
def judge(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path, request: pytest.FixtureRequest
) -> Skill:
    head: Any = tiny_choice_head(48, 3) if request.param == "head" else tiny_probe(48, 3, 2)
    manifest = MANIFEST if request.param == "head" else PROBED
    folder = tiny_adapter(
        tmp_path / "judge", tiny, seed=5, layers=[2, 3], head=head, manifest=manifest
    )
    skill = load_skill(folder)
    engine.load(skill)
    return skill


@pytest.mark.parametrize(("beams", "if_stuck"), [(1, 1), (4, 1), (1, 4)])
@pytest.mark.parametrize("required", [["tone", "said"], ["said"]])
def test_the_head_chooses_and_the_rest_is_written_to_fit(
    engine: Engine,
    judge: Skill,
    prompts: Prompts,
    beams: int,
    if_stuck: int,
    required: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentkit.engine.decoding._STUCK", 1.0)
    schema = {**SCHEMA, "required": required}  # what was chosen is said, required or not
    for question in QUESTIONS:
        request = Request(
            prompts(question),
            adapter=judge.digest,
            generation=Generation(max_tokens=40, beams=beams, beams_if_stuck=if_stuck),
            schema=schema,
            choice_field="tone",
        )
        found = done(engine, request)
        reading = done(engine, Request(request.prompt, adapter=judge.digest, read=True)).reading
        assert found.reading.choices == pytest.approx(reading.choices, abs=1e-4)
        chosen = TONES[int(reading.choices.argmax())]
        fixed = {**SCHEMA["properties"], "tone": {"const": chosen}}
        known = replace(request, schema={**SCHEMA, "properties": fixed}, choice_field=None)
        assert found.text == done(engine, known).text
        assert found.text.startswith(f'{{"tone":"{chosen}","said":"')
        assert found.finish == "schema"


def test_chosen_answers_do_not_depend_on_their_company(
    engine: Engine, judge: Skill, skills: dict[str, Skill], prompts: Prompts
) -> None:
    ask = []
    for question in QUESTIONS:
        for adapter in (judge.digest, skills["plain"].digest, None):
            request = Request(
                prompts(question),
                adapter=adapter,
                generation=Generation(max_tokens=40),
                schema=SCHEMA,
                choice_field="tone",
            )
            ask += [request, replace(request, choice_field=None)]
        ask.append(Request(prompts(question), adapter=judge.digest, read=True))
    alone = [done(engine, request) for request in ask]
    for request, one, other in zip(ask, alone, engine.run(ask), strict=True):
        assert one.text == other.text
        assert (other.reading is not None) == (
            request.read or (request.adapter == judge.digest and request.choice_field is not None)
        )
    # Without a head the field is written like the rest.
    assert alone[2].text == alone[3].text
    assert alone[4].text == alone[5].text


@pytest.mark.parametrize("terms", [0, 5])
def test_a_probe_reads_the_mean_of_what_goes_into_its_layer_and_the_words(
    engine: Engine, tiny: TinyBackbone, prompts: Prompts, tmp_path: Path, terms: int
) -> None:
    vocabulary = len(engine.tokenizer) if terms else 0
    probe = tiny_probe(48, 3, 2, terms=terms, vocabulary=vocabulary)
    folder = tiny_adapter(
        tmp_path / "probed", tiny, seed=5, layers=[2, 3], head=probe, manifest=PROBED
    )
    skill = load_skill(folder)
    engine.load(skill)
    encoded = [prompts(question) for question in QUESTIONS]
    found = engine.run([Request(one, adapter=skill.digest, read=True) for one in encoded])
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny.path).eval()
    for prompt, completion in zip(encoded, found, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([prompt.ids])
            states = plain.model(ids, output_hidden_states=True).hidden_states[2][0]
            asked = prompt.ids[prompt.question_start :]
            wanted = probe(probe.features(states[-len(asked) :], asked)[None])[0].softmax(-1)
        assert completion.reading.choices == pytest.approx(wanted.numpy(), abs=1e-4)


def test_probes_of_several_layers_are_read_side_by_side(
    engine: Engine, tiny: TinyBackbone, prompts: Prompts, tmp_path: Path
) -> None:
    ask = []
    for layer, activated in ((1, False), (3, False), (2, True)):
        folder = tiny_adapter(
            tmp_path / f"from-{layer}",
            tiny,
            seed=layer,
            layers=range(layer, 4),
            head=tiny_probe(48, 3, layer, seed=layer),
            manifest=PROBED,
        )
        if activated:
            config = json.loads((folder / "adapter_config.json").read_text())
            text = frame_of(engine.tokenizer).invocation
            ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
            config["alora_invocation_tokens"] = list(ids)
            (folder / "adapter_config.json").write_text(json.dumps(config))
        skill = load_skill(folder)
        engine.load(skill)
        ask += [Request(prompts(q), adapter=skill.digest, read=True) for q in QUESTIONS]
    alone = [done(engine, request).reading.choices for request in ask]
    for one, other in zip(alone, engine.run(ask), strict=True):
        assert other.reading.choices == pytest.approx(one, abs=1e-4)
    assert max(abs(alone[0] - alone[3])) > 1e-3


def test_a_probe_of_a_layer_that_is_not_there_is_refused(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path
) -> None:
    folder = tiny_adapter(tmp_path / "deep", tiny, head=tiny_probe(48, 3, 5), manifest=PROBED)
    with pytest.raises(AdapterError, match="layer 5"):
        engine.load(load_skill(folder))


def test_a_probe_of_another_vocabulary_is_refused(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path
) -> None:
    head = tiny_probe(48, 3, 2, terms=4, vocabulary=7)
    folder = tiny_adapter(tmp_path / "few", tiny, layers=[2, 3], head=head, manifest=PROBED)
    with pytest.raises(AdapterError, match=r"knows 7 tokens.*train the skill"):
        engine.load(load_skill(folder))


def test_a_probe_above_the_first_adapted_layer_is_refused(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path
) -> None:
    head = tiny_probe(48, 3, 2)
    folder = tiny_adapter(tmp_path / "low", tiny, layers=[1, 3], head=head, manifest=PROBED)
    with pytest.raises(AdapterError, match="acts from layer 1 on"):
        engine.load(load_skill(folder))


@pytest.mark.parametrize(
    ("manifest", "head"), [(MANIFEST, tiny_probe(48, 3, 2)), (PROBED, tiny_choice_head(48, 3))]
)
def test_what_chooses_has_to_be_of_the_kind_that_the_skill_names(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path, manifest: Any, head: Any
) -> None:
    folder = tiny_adapter(tmp_path / "other", tiny, head=head, manifest=manifest)
    with pytest.raises(AdapterError, match="choice_by"):
        engine.load(load_skill(folder))


def test_an_answer_that_does_not_fit_fails_alone(
    engine: Engine, judge: Skill, prompts: Prompts
) -> None:
    request = Request(
        prompts(),
        adapter=judge.digest,
        generation=Generation(max_tokens=40),
        schema=SCHEMA,
        choice_field="tone",
    )
    short = replace(request, generation=Generation(max_tokens=3))
    failed, fine = engine.run([short, request])
    assert isinstance(failed, Exception)
    assert "3 tokens" in str(failed)
    assert fine.text == done(engine, request).text


def test_a_field_to_choose_needs_a_head_of_as_many_choices(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path
) -> None:
    with pytest.raises(SkillError, match="head"):
        load_skill(tiny_adapter(tmp_path / "bare", tiny, manifest=MANIFEST))
    two = tiny_adapter(tmp_path / "two", tiny, head=tiny_choice_head(48, 2), manifest=MANIFEST)
    with pytest.raises(AdapterError, match="wants"):
        engine.load(load_skill(two))
    for field in ("said", "other"):
        answer = {"answer": {"kind": "generate", "choice_field": field}}
        folder = tiny_adapter(
            tmp_path / field, tiny, head=tiny_choice_head(48, 3), manifest=MANIFEST | answer
        )
        with pytest.raises(SkillError, match="choice_field"):
            load_skill(folder)
