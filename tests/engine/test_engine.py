"""The engine: every caller gets the adapter it asked for, within limits, whatever others do."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_material import QUESTIONS, SCHEMA, SENTENCES, Prompts, done, plain_prompt

from agentkit.adapters.heads import question_features, span_features
from agentkit.engine.backbone import load_backbone
from agentkit.engine.engine import Engine
from agentkit.errors import EngineError
from agentkit.settings import Settings
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import TinyBackbone, tiny_adapter
from agentkit.types import Completion, Generation, Request

# ---------------------------------------------------------------- the right adapter, always


def test_greedy_text_equals_that_of_the_models_own_generate(
    engine: Engine, prompts: Prompts, tiny: TinyBackbone
) -> None:
    prompt = prompts()
    model = load_backbone(tiny.path).model
    expected = model.generate(
        torch.tensor([prompt.ids]),
        max_new_tokens=20,
        do_sample=False,
        suppress_tokens=list(range(len(engine.tokenizer), engine.backbone.vocabulary)),
    )[0, len(prompt.ids) :]
    ours = done(engine, Request(prompt, generation=Generation(max_tokens=20)))
    text = engine.tokenizer.decode(expected.tolist())
    assert ours.text == text.rstrip("\ufffd")
    assert ours.usage.completion_tokens <= 20


def test_many_threads_asking_for_different_skills_get_their_solo_answers(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    ask = []
    for adapter in (None, *(skill.digest for skill in skills.values())):
        for question in QUESTIONS:
            request = Request(
                prompts(question), adapter=adapter, generation=Generation(max_tokens=8)
            )
            ask.append(request)
            ask.append(replace(request, schema=SCHEMA, generation=Generation(max_tokens=40)))
            ask.append(replace(request, choices=("yes", "no", "perhaps")))
    for question in QUESTIONS:
        ask.append(Request(prompts(question), adapter=skills["chooser"].digest, read=True))
        ask.append(Request(prompts(question), adapter=skills["labeller"].digest, read=True))
    solo = [done(engine, request) for request in ask]
    order = list(range(len(ask))) * 2
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda index: (index, done(engine, ask[index])), order))
    for index, completion in found:
        assert_same(completion, solo[index])
    texts = [
        answer.text
        for request, answer in zip(ask, solo, strict=True)
        if request.prompt.ids == ask[0].prompt.ids and request.schema is None and answer.text
    ]
    assert len(set(texts)) == len(texts) == 5  # the skills do answer differently


def assert_same(one: Completion, other: Completion) -> None:
    assert one.text == other.text
    assert one.finish == other.finish
    if one.choices is not None and other.choices is not None:
        assert one.choices == pytest.approx(other.choices, abs=1e-4)
    if one.reading is not None and other.reading is not None:
        for part in ("span_labels", "token_labels", "choices", "evidence"):
            left, right = getattr(one.reading, part), getattr(other.reading, part)
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_allclose(left, right, atol=1e-4)


def test_a_batch_equals_its_requests_one_by_one(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    ask = [
        Request(
            prompts(question),
            adapter=skills["plain"].digest,
            generation=Generation(max_tokens=3 + 5 * index, temperature=0.7 * index, seed=index),
        )
        for index, question in enumerate(QUESTIONS)
    ]
    for together, alone in zip(engine.run(ask), [done(engine, r) for r in ask], strict=True):
        assert isinstance(together, Completion)
        assert together.text == alone.text


def test_short_prompts_without_a_shared_prefix_are_batched_rightly(
    engine: Engine, skills: dict[str, Skill]
) -> None:
    ask = [
        Request(plain_prompt(ids), adapter=skills["upper"].digest, generation=Generation(12))
        for ids in ((5, 6, 7), (100,), (9, 8, 7, 6, 5, 4))
    ]
    for together, alone in zip(engine.run(ask), [done(engine, r) for r in ask], strict=True):
        assert isinstance(together, Completion)
        assert together.text == alone.text


# ---------------------------------------------------------------- prefixes


def test_the_document_is_read_once_for_all_questions(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    ask = [Request(prompts(q), adapter=skills["chooser"].digest, read=True) for q in QUESTIONS]
    assert len({request.prompt.ids[: request.prompt.question_start] for request in ask}) == 1
    before = engine.prefix_statistics
    first, *others = engine.run(ask)
    # The document, and after it the skill's own instructions.
    assert engine.prefix_statistics.misses == before.misses + 2
    assert first.usage.cached_tokens == 0
    assert all(o.usage.cached_tokens == ask[0].prompt.question_start for o in others)
    again = engine.run(ask)
    assert engine.prefix_statistics.misses == before.misses + 2
    for one, other in zip(again, [first, *others], strict=True):
        assert_same(one, other)


def test_a_question_finds_the_document_that_the_last_one_left_and_nothing_else(
    tiny: TinyBackbone, engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    ask = [
        Request(prompts(q), adapter=skills["plain"].digest, choices=("yes", "no"))
        for q in QUESTIONS
    ]
    first = [done(engine, request) for request in ask]
    with Engine(load_backbone(tiny.path), settings=Settings(prefix_cache_bytes=0)) as forgetful:
        forgetful.load(skills["plain"])
        for request, before in zip(ask, first, strict=True):
            again, anew = done(engine, request), done(forgetful, request)
            assert again.choices == before.choices  # to the last bit
            assert_same(again, anew)
            assert again.usage.cached_tokens >= request.prompt.document_end
            assert anew.usage.cached_tokens == 0


def test_cached_equals_uncached(
    tiny: TinyBackbone, engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    settings = Settings(prefix_cache_bytes=0)
    with Engine(load_backbone(tiny.path), settings=settings) as uncached:
        for skill in skills.values():
            uncached.load(skill)
        for name, options in (
            ("chooser", {"read": True}),
            ("labeller", {"read": True}),
            ("plain", {"choices": ("yes", "no")}),
            ("plain", {"generation": Generation(max_tokens=8)}),
        ):
            for question in QUESTIONS:
                request = Request(prompts(question), adapter=skills[name].digest, **options)
                done(engine, request)
                assert_same(done(engine, request), done(uncached, request))
        assert uncached.prefix_statistics.entries == 0


def test_one_adapters_prefix_never_serves_another(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    prompt = prompts()
    answers = {}
    for _ in range(2):
        for adapter in (None, *(skill.digest for skill in skills.values())):
            text = done(engine, Request(prompt, adapter=adapter, generation=Generation(8))).text
            assert answers.setdefault(adapter, text) == text
    assert len(set(answers.values())) == len(answers)


def test_a_replaced_skill_is_another_digest_with_states_of_its_own(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    digest = skills["plain"].digest
    request = Request(prompts(), adapter=digest, generation=Generation(6))
    before = done(engine, request)
    entries = engine.prefix_statistics.entries
    engine.unload(digest)
    assert engine.prefix_statistics.entries < entries
    with pytest.raises(EngineError, match="no skill with digest"):
        done(engine, request)
    engine.load(skills["plain"])
    assert done(engine, request).text == before.text


def test_two_versions_of_a_skill_serve_side_by_side(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts, tiny: TinyBackbone, tmp_path: Path
) -> None:
    """A run keeps the digest that it started with."""
    new = load_skill(tiny_adapter(tmp_path / "plain", tiny, seed=77))
    old = Request(prompts(), adapter=skills["plain"].digest, generation=Generation(8))
    before = done(engine, old).text
    engine.load(new)
    after = done(engine, replace(old, adapter=new.digest)).text
    assert new.name == skills["plain"].name
    assert done(engine, old).text == before != after


# ---------------------------------------------------------------- readings and choices


def test_a_choice_head_reads_the_states_of_the_separate_prompt(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    skill = engine.loaded[skills["chooser"].digest]
    prompt = prompts(QUESTIONS[1])
    reading = done(engine, Request(prompt, adapter=skill.digest, read=True)).reading
    engine._slots.activate(skill.slot)
    with torch.inference_mode():
        hidden = engine.backbone.hidden_states(
            torch.tensor(prompt.ids), positions=torch.arange(len(prompt.ids))
        )
        question = question_features(hidden[prompt.question_start :])[None]
        tokens = [at for at, _, _ in prompt.token_offsets]
        spans = span_features(hidden, prompt.span_ends, tokens)
        choice, evidence = skill.head(question, spans)
    engine._slots.activate(None)
    np.testing.assert_allclose(reading.choices, choice[0].softmax(-1), atol=1e-4)
    np.testing.assert_allclose(reading.evidence, evidence[0].sigmoid(), atol=1e-4)
    assert reading.evidence.shape == (len(SENTENCES),)
    assert reading.choices.sum() == pytest.approx(1, abs=1e-5)


def test_a_label_head_reads_every_span_and_document_token(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    prompt = prompts("")
    completion = done(engine, Request(prompt, adapter=skills["labeller"].digest, read=True))
    assert completion.reading.span_labels.shape == (len(SENTENCES), 2)
    assert completion.reading.token_labels.shape == (len(prompt.token_offsets), 1)
    assert completion.finish == "head"
    assert completion.usage.prompt_tokens == prompt.document_end


def test_choices_are_scored_by_the_likelihood_of_their_tokens(
    engine: Engine, prompts: Prompts, tiny: TinyBackbone
) -> None:
    prompt, choices = prompts(), ("yes", "not at all", "it depends")
    scores = []
    model = load_backbone(tiny.path).model
    for choice in choices:
        ids = engine.tokenizer.plain(choice)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.ids, *ids]])).logits[0].clone()
        logits[:, len(engine.tokenizer) :] = -torch.inf
        at = torch.arange(len(prompt.ids) - 1, len(prompt.ids) + len(ids) - 1)
        scores.append(logits[at].log_softmax(-1)[range(len(ids)), ids].sum().item())
    expected = torch.tensor(scores).softmax(-1).tolist()
    found = done(engine, Request(prompt, choices=choices)).choices
    assert list(found) == list(choices)
    assert list(found.values()) == pytest.approx(expected, abs=1e-4)


def test_a_choice_that_begins_another_is_not_favoured_for_it(
    engine: Engine, prompts: Prompts
) -> None:
    found = done(engine, Request(prompts(), choices=("not", "not at all"))).choices
    assert 0 < found["not"] < 1


def test_a_prompt_without_a_document_reads_as_no_spans(
    engine: Engine, skills: dict[str, Skill]
) -> None:
    for name in ("labeller", "chooser"):
        request = Request(plain_prompt((5, 6)), adapter=skills[name].digest, read=True)
        reading = done(engine, request).reading
        spans = reading.span_labels if name == "labeller" else reading.evidence
        assert len(spans) == 0


# ---------------------------------------------------------------- generation


def test_streamed_pieces_join_to_the_unstreamed_text(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    for schema in (None, SCHEMA):
        request = Request(
            prompts(),
            adapter=skills["plain"].digest,
            generation=Generation(max_tokens=40, temperature=0.8, seed=4),
            schema=schema,
        )
        stream = engine.stream(request)
        pieces = list(stream)
        assert "".join(pieces) == done(engine, request).text == stream.completion().text
        assert len(pieces) > 3


def test_a_stop_string_ends_the_text_before_it(engine: Engine, prompts: Prompts) -> None:
    request = Request(prompts(), generation=Generation(max_tokens=30))
    text = done(engine, request).text
    stop = text[len(text) // 2 :][:3]
    cut = done(engine, replace(request, generation=Generation(max_tokens=30, stop=(stop,))))
    assert cut.text == text[: text.index(stop)]
    assert cut.finish == "stop"
    assert cut.usage.completion_tokens < 30


def test_constrained_answers_parse_alone_and_in_a_batch(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    ask = [
        Request(
            prompts(question),
            adapter=skills["plain"].digest,
            generation=Generation(max_tokens=limit, temperature=1.0, seed=limit),
            schema=schema,
        )
        for question in QUESTIONS
        for limit, schema in ((25, SCHEMA), (60, SCHEMA), (9, None))
    ]
    for request, completion in zip(ask, engine.run(ask), strict=True):
        assert isinstance(completion, Completion)
        assert completion.usage.completion_tokens <= request.generation.max_tokens
        if request.schema:
            assert completion.finish == "schema"
            assert completion.text.startswith('{"answer":"')
            assert completion.text.endswith("]}")


def test_an_answer_without_any_choice_is_given_without_a_token_computed(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    pieces: list[str] = []
    only = Request(
        prompts(),
        adapter=skills["plain"].digest,
        generation=Generation(max_tokens=20),
        schema={"const": "yes"},
        on_text=pieces.append,
    )
    free = Request(prompts(), adapter=skills["plain"].digest, generation=Generation(max_tokens=6))
    first, second = engine.run([only, free])
    assert first.text == '"yes"' == "".join(pieces)
    assert first.finish == "schema"
    assert second.text == done(engine, free).text
