"""The embedded backbone: packed equals separate in float32, bfloat16 runs, words make sense."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_material import QUESTIONS, SENTENCES, Prompts, read_prefix

from agentkit import models
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone, load_backbone
from agentkit.engine.engine import Engine
from agentkit.engine.forward import hidden_states
from agentkit.engine.packed import PackedRows
from agentkit.prompt import build_prompt
from agentkit.settings import Settings
from agentkit.types import Completion, Generation, Request

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def folder() -> Path:
    settings = Settings()
    return models.resolve("smollm2-135m-instruct", settings, "backbone")


@pytest.fixture(scope="module")
def exact(folder: Path) -> Backbone:
    return load_backbone(folder, dtype="float32")


@pytest.fixture(scope="module")
def half_engine(folder: Path) -> Iterator[Engine]:
    with Engine(load_backbone(folder, dtype="bfloat16"), settings=Settings()) as engine:
        yield engine


def test_tree_packed_states_equal_separate_ones_in_float32(exact: Backbone) -> None:
    prompts = Prompts(exact)
    encoded = [prompts(question) for question in QUESTIONS]
    start = encoded[0].question_start
    with torch.inference_mode():
        rows = PackedRows(read_prefix(exact, encoded[0].ids[:start]), room=500)
        ends = [rows.append(rows.fork(), (None, prompt.ids[start:])) for prompt in encoded]
        packed = hidden_states(exact, Slots(exact.modules), rows)
        for prompt, end in zip(encoded, ends, strict=True):
            alone = exact.hidden_states(
                torch.tensor(prompt.ids), positions=torch.arange(len(prompt.ids))
            )
            torch.testing.assert_close(packed[end], alone[-1], atol=1e-4, rtol=1e-4)


def test_greedy_text_equals_that_of_the_models_own_generate(exact: Backbone) -> None:
    with Engine(exact, settings=Settings()) as engine:
        prompt = engine.encode(
            build_prompt(engine.frame, instructions="", question="Name three colours.")
        )
        expected = exact.model.generate(
            torch.tensor([prompt.ids]), max_new_tokens=16, do_sample=False
        )[0, len(prompt.ids) :]
        ours = engine.submit(Request(prompt, generation=Generation(max_tokens=16))).result()
    assert ours.text == exact.tokenizer.decode(expected.tolist())


def test_bfloat16_answers_questions_about_a_document(half_engine: Engine) -> None:
    prompt = Prompts(half_engine.backbone)("Who are the parties?", sentences=SENTENCES)
    answers = half_engine.run(
        [
            Request(prompt, generation=Generation(max_tokens=16)),
            Request(prompt, choices=("Acme and Bolt", "Rome and Paris")),
        ]
    )
    generated, scored = answers
    assert isinstance(generated, Completion)
    assert isinstance(scored, Completion)
    assert "Acme" in generated.text
    assert scored.choices["Acme and Bolt"] > 0.9


def test_a_small_limit_closes_the_grammar_on_the_large_vocabulary(half_engine: Engine) -> None:
    prompt = Prompts(half_engine.backbone)("Describe the agreement at length.")
    schema = {
        "type": "object",
        "properties": {
            "statement": {"type": "string", "minLength": 20},
            "rating": {"enum": ["good", "neutral", "bad"]},
        },
        "required": ["statement", "rating"],
    }
    request = Request(prompt, schema=schema, generation=Generation(max_tokens=24))
    completion = half_engine.submit(request).result()
    assert completion.finish == "schema"
    assert completion.usage.completion_tokens <= 24
    assert completion.text.startswith('{"statement":"')
    assert completion.text.endswith('"}')
