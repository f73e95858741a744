"""A written answer whose field a task head chooses: the head's choice, the text that fits it."""

from dataclasses import replace
from pathlib import Path

import pytest
from engine_material import QUESTIONS, Prompts, done

from agentkit.engine.engine import Engine
from agentkit.errors import AdapterError, SkillError
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import TinyBackbone, tiny_adapter, tiny_choice_head
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


@pytest.fixture
def judge(engine: Engine, tiny: TinyBackbone, tmp_path: Path) -> Skill:
    folder = tiny_adapter(
        tmp_path / "judge", tiny, seed=5, head=tiny_choice_head(48, 3), manifest=MANIFEST
    )
    skill = load_skill(folder)
    engine.load(skill)
    return skill


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("required", [["tone", "said"], ["said"]])
def test_the_head_chooses_and_the_rest_is_written_to_fit(
    engine: Engine, judge: Skill, prompts: Prompts, beams: int, required: list[str]
) -> None:
    schema = {**SCHEMA, "required": required}  # what was chosen is said, required or not
    for question in QUESTIONS:
        request = Request(
            prompts(question),
            adapter=judge.digest,
            generation=Generation(max_tokens=40, beams=beams),
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
