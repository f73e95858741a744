"""Beam search gives the likeliest answer, whoever else is being answered."""

import math
import re
from dataclasses import replace

import pytest
import torch
from engine_material import QUESTIONS, SCHEMA, Prompts, done

from agentkit.engine.engine import Engine
from agentkit.errors import LimitError
from agentkit.skill.folder import Skill
from agentkit.types import Generation, Request

BEAMS = 16


def test_the_likeliest_of_all_texts_of_two_tokens_is_given(
    engine: Engine, prompts: Prompts
) -> None:
    for question in QUESTIONS:
        prompt = prompts(question)

        def after(ids: tuple[int, ...], prompt: tuple[int, ...] = prompt.ids) -> torch.Tensor:
            with torch.inference_mode():
                logits = engine.backbone.model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
            logits = logits.clone()
            logits[len(engine.tokenizer) :] = -torch.inf
            return logits.log_softmax(-1)

        first = after(())
        best: dict[str, float] = {}
        for token in first.topk(BEAMS).indices.tolist():
            ends = token in engine.backbone.eos_ids
            second = torch.zeros(1) if ends else after((token,))
            for value, other in zip(*(one.tolist() for one in second.topk(1)), strict=True):
                known = [] if ends else [token]
                known += [] if ends or other in engine.backbone.eos_ids else [other]
                text = engine.tokenizer.decode(known).rstrip("\ufffd")
                best[text] = max(best.get(text, -torch.inf), float(first[token]) + value)
        request = Request(prompt, generation=Generation(max_tokens=2, beams=BEAMS))
        assert done(engine, request).text == max(best, key=lambda text: best[text])


def test_beams_do_not_depend_on_their_company(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    ask = [
        Request(
            prompts(question),
            adapter=skills[name].digest,
            generation=Generation(max_tokens=limit, beams=beams),
            schema=schema,
        )
        for question in QUESTIONS
        for name in ("plain", "upper")
        for limit, beams, schema in ((40, 4, SCHEMA), (12, 3, None), (12, 1, None))
    ]
    alone = [done(engine, request) for request in ask]
    for one, other in zip(alone, engine.run(ask), strict=True):
        assert one.text == other.text
        assert one.usage.completion_tokens == other.usage.completion_tokens
    assert any(
        one.text != done(engine, replace(request, generation=Generation(max_tokens=12))).text
        for request, one in zip(ask, alone, strict=True)
        if request.generation.beams == 3
    )


def test_what_beams_write_meets_the_schema_and_the_limit(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    for limit in (25, 30, 60):
        pieces: list[str] = []
        completion = done(
            engine,
            Request(
                prompts(),
                adapter=skills["plain"].digest,
                generation=Generation(max_tokens=limit, beams=6),
                schema=SCHEMA,
                on_text=pieces.append,
            ),
        )
        assert completion.text.startswith('{"answer":"')
        assert completion.text.endswith("]}")
        assert completion.usage.completion_tokens <= limit
        assert pieces == [completion.text]
        assert completion.finish == "schema"


NAMES = {
    "type": "object",
    "properties": {"answer": {"type": "string", "pattern": "^(no )+[a-f]{3,12}$"}},
    "required": ["answer"],
}


def test_an_answer_that_is_stuck_is_written_again(
    engine: Engine, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentkit.engine.decoding._STUCK", 1.0)
    greedy = [
        Request(prompts(question), generation=Generation(max_tokens=40), schema=NAMES)
        for question in QUESTIONS
    ]
    again = [replace(r, generation=replace(r.generation, beams_if_stuck=4)) for r in greedy]
    plain = [done(engine, request) for request in greedy]
    revised = [done(engine, request) for request in again]
    for request, other in zip(greedy, revised, strict=True):
        assert other.finish == "schema"
        assert re.fullmatch('{"answer":"(no )+[a-f]{3,12}"}', other.text or "")
        assert other.usage.completion_tokens <= 40
        with monkeypatch.context() as wide:  # from the start, by beams that are never given up
            wide.setattr("agentkit.engine.generation._WIDTH", math.inf)
            beams = replace(request, generation=replace(request.generation, beams=4))
            assert done(engine, beams).text == other.text
    assert any(one.text != other.text for one, other in zip(plain, revised, strict=True))
    # Whoever else is being answered, and told as a whole.
    told: list[list[str]] = [[] for _ in again]
    heard = [replace(r, on_text=said.append) for r, said in zip(again, told, strict=True)]
    together = engine.run([*heard, *greedy])
    assert [one.text for one in together] == [one.text for one in (*revised, *plain)]
    assert told == [[one.text] for one in revised]
    # What is not stuck is left as it is.
    monkeypatch.setattr("agentkit.engine.decoding._STUCK", 1e9)
    assert [done(engine, request).text for request in again] == [one.text for one in plain]


def test_one_that_breaks_off_leaves_the_others_as_they_are(
    engine: Engine, prompts: Prompts
) -> None:
    def broken(text: str) -> None:
        raise ValueError(text)

    calm = Request(prompts(), generation=Generation(max_tokens=8, beams=4))
    failed, fine = engine.run([replace(calm, on_text=broken), calm])
    assert isinstance(failed, Exception)
    assert fine.text == done(engine, calm).text


@pytest.mark.parametrize(
    "generation",
    [
        Generation(beams=0),
        Generation(beams=2, temperature=0.5),
        Generation(beams_if_stuck=2, temperature=0.5),
    ],
)
def test_beams_that_cannot_be_are_refused(
    engine: Engine, prompts: Prompts, generation: Generation
) -> None:
    with pytest.raises(LimitError, match="beams"):
        done(engine, Request(prompts(), generation=generation))
