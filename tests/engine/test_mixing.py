"""Several skills in one forward: every token gets what its own skill gives it alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from engine_material import QUESTIONS, Prompts, done, plain_prompt, read_whole
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from agentkit.adapters.lora import lora_deltas
from agentkit.adapters.weights import LoraPair, load_adapter
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.engine import Engine
from agentkit.engine.mixing import SETTLED, SHORT, MixedPlan, Segment, merged
from agentkit.engine.prefix import PrefixCache
from agentkit.engine.reading import Reader
from agentkit.skill.folder import Skill
from agentkit.testing import TinyBackbone
from agentkit.types import Completion, Generation, Request

SEGMENTS = st.lists(
    st.tuples(st.sampled_from([None, *range(1, 14)]), st.integers(0, 2 * SHORT)), max_size=30
)


def laid_out(parts: list[tuple[int | None, int]]) -> list[Segment]:
    segments, at = [], 0
    for slot, length in parts:
        segments.append(Segment(slot, at, at + length))
        at += length
    return segments


def owners(segments: list[Segment]) -> dict[int, int | None]:
    return {at: s.slot for s in segments for at in range(s.start, s.stop)}


@dataclass
class Bottleneck:
    """An adapter that is no LoRA: not linear, and not in place."""

    down: torch.Tensor

    def __call__(self, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return outputs + torch.tanh(outputs @ self.down) @ self.down.T


@cache
def small_adapters() -> dict[str, dict[int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]]:
    """By module and slot: LoRA of three ranks on one module or on both, and one of another kind."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, dict] = {"a.q_proj": {}, "a.k_proj": {}}
    for slot in range(1, 13):
        pairs = {
            module: LoraPair(
                torch.randn(1 + slot % 3, 6, generator=generator),
                torch.randn(width, 1 + slot % 3, generator=generator),
                0.5,
            )
            for module, width in (("a.q_proj", 5), ("a.k_proj", 4))
            if slot % 4 or module == "a.k_proj"
        }
        deltas = lora_deltas(pairs, torch.float32, torch.device("cpu"))
        for module, delta in deltas.items():
            found[module][slot] = delta
    found["a.q_proj"][13] = Bottleneck(torch.randn(5, 2, generator=generator))
    return found


@given(SEGMENTS, st.randoms(use_true_random=False))
def test_every_token_gets_what_its_own_skill_gives_it_in_a_new_batch_and_in_one_that_stays(
    parts: list[tuple[int | None, int]], order: random.Random
) -> None:
    segments = merged(laid_out(parts))
    adapters = small_adapters()
    total = sum(length for _, length in parts)
    plan = MixedPlan(segments)
    for forward in range(SETTLED + 3):
        torch.manual_seed(forward)
        inputs = torch.randn(1, total, 6)
        plan.begin()
        for module in order.sample(list(adapters), 2):
            deltas = adapters[module]
            bare = torch.randn(1, total, 5 if module == "a.q_proj" else 4)
            expected = bare.clone()
            for segment in segments:
                if segment.slot in deltas:
                    own = slice(segment.start, segment.stop)
                    before = bare[:, own].clone()
                    expected[:, own] = deltas[segment.slot](inputs[:, own].clone(), before)
            found = plan.apply(module, deltas, inputs, bare.clone())
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def filled(backbone: Backbone, skills: dict[str, Skill]) -> tuple[Slots, list[int | None]]:
    slots = Slots(backbone.modules)
    numbers: list[int | None] = [None]
    for skill in skills.values():
        pairs = load_adapter(skill).pairs
        numbers.append(slots.fill(lora_deltas(pairs, backbone.dtype, backbone.device)))
    wide = torch.randn(48, 5, generator=torch.Generator().manual_seed(0)) * 0.3
    numbers.append(slots.fill({"model.layers.1.mlp.down_proj": Bottleneck(wide)}))
    return slots, numbers


@pytest.mark.parametrize("lengths", [[1] * 12, [1, 3, 1, 40, 2, 1, 20, 5]])
def test_each_token_gets_its_own_skills_adapter(
    backbone: Backbone, skills: dict[str, Skill], lengths: list[int]
) -> None:
    """Tokens that see only themselves: what each gives alone is what it gives in a batch."""
    slots, numbers = filled(backbone, skills)
    order = random.Random(0)
    segments = laid_out([(order.choice(numbers), length) for length in lengths])
    total = sum(lengths)
    ids = torch.arange(5, 5 + total)
    at = torch.zeros(total, dtype=torch.long)
    mask = backbone.attention_mask(torch.eye(total, dtype=torch.bool), at, at)

    def states() -> torch.Tensor:
        return backbone.hidden_states(ids, positions=at, mask=mask)

    with torch.inference_mode():
        bare = states()
        for _ in range(SETTLED + 2):
            with slots.mixed(segments):
                found = states()
        for slot in numbers:
            with slots.activated(slot):
                alone = states()
            own = [index for index, owner in owners(segments).items() if owner == slot]
            torch.testing.assert_close(found[own], alone[own], atol=1e-4, rtol=0)
        assert torch.equal(states(), bare)


def test_ten_thousand_random_activations_leave_everything_as_it_was(
    backbone: Backbone, skills: dict[str, Skill]
) -> None:
    slots, numbers = filled(backbone, skills)
    ids, order = torch.arange(5, 13), random.Random(0)
    at = torch.arange(8)

    def states() -> torch.Tensor:
        with torch.inference_mode():
            return backbone.hidden_states(ids, positions=at)

    first = {}
    for slot in numbers:
        with slots.activated(slot):
            first[slot] = states()
    for step in range(10_000):
        slots.activate(order.choice(numbers))
        if step % 400 == 0:
            with slots.mixed(laid_out([(order.choice(numbers), 1) for _ in range(8)])):
                states()
    for slot in numbers:
        with slots.activated(slot):
            assert torch.equal(states(), first[slot])


# ---------------------------------------------------------------- through the engine


def test_rows_of_different_skills_are_written_together_as_alone(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = []
    for adapter in (None, *(skill.digest for skill in skills.values())):
        for question in QUESTIONS[:2]:
            ask.append(Request(prompts(question), adapter=adapter, generation=Generation(12)))
        ask.append(Request(plain_prompt((5, 6, 7)), adapter=adapter, generation=Generation(12)))
        ask.append(Request(plain_prompt((9,) * 300), adapter=adapter, choices=("yes", "not at")))
    alone = [done(engine, request) for request in ask]
    most = 0
    apply = Slots.mixed

    def counted(self: Slots, segments: list[Segment]) -> object:
        nonlocal most
        most = max(most, len({s.slot for s in segments}))
        return apply(self, segments)

    monkeypatch.setattr(Slots, "mixed", counted)
    for one, other in zip(engine.run(ask), alone, strict=True):
        assert isinstance(one, Completion)
        assert one.text == other.text
        if other.choices is not None:
            assert one.choices == pytest.approx(other.choices, abs=1e-4)
    assert most >= 3


def test_a_short_request_joins_while_a_long_one_is_written(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    order: list[str] = []
    short = Request(plain_prompt((5, 6)), adapter=skills["upper"].digest, generation=Generation(3))
    futures = []

    def began(_: str) -> None:
        if not futures:
            futures.append(engine.submit(short, timeout=0))
            futures[0].add_done_callback(lambda _: order.append("short"))

    long = Request(
        prompts(),
        schema={"type": "string", "minLength": 200},
        generation=Generation(max_tokens=300),
        on_text=began,
    )
    future = engine.submit(long)
    future.add_done_callback(lambda _: order.append("long"))
    future.result(timeout=60)
    assert order == ["short", "long"]
    assert futures[0].result().text == done(engine, short).text


# ---------------------------------------------------------------- one reading for all


def test_lower_layers_are_read_once_and_give_the_very_states_of_a_whole_reading(
    backbone: Backbone, skills: dict[str, Skill], engine: Engine
) -> None:
    ids = [
        int(x) for x in torch.randint(5, 300, (900,), generator=torch.Generator().manual_seed(0))
    ]
    cache = PrefixCache(10**9)
    reader = Reader(engine.backbone, engine._slots, cache)
    upper = engine.loaded[skills["upper"].digest]
    assert upper.lowest_layer == 2
    other = replace(upper, digest="another", lowest_layer=1)  # allowed to be careful
    divided = [read_whole(reader.read(skill, ids)) for skill in (upper, other)]
    bare = replace(upper, digest="bare", slot=0)
    divided.append(read_whole(reader.read(bare, ids)))
    assert cache.statistics().lower_hits == 1
    for states, slot in zip(divided, (upper.slot, upper.slot, None), strict=True):
        whole = Reader(engine.backbone, engine._slots, PrefixCache(0))
        expected = read_whole(whole.read(replace(upper, slot=slot or 0, lowest_layer=0), ids))
        torch.testing.assert_close(states.hidden, expected.hidden, atol=1e-4, rtol=0)
        pairs = zip(states.keys_values, expected.keys_values, strict=True)
        for (keys, values), (other_keys, other_values) in pairs:
            torch.testing.assert_close(keys, other_keys, atol=1e-4, rtol=0)
            torch.testing.assert_close(values, other_values, atol=1e-4, rtol=0)
    shared = {id(t) for t in divided[0].tensors()} & {id(t) for t in divided[2].tensors()}
    assert len(shared) == 4  # keys and values of two layers


def test_a_bare_reading_keeps_the_lower_layers_for_the_skills_in_memory(
    skills: dict[str, Skill], engine: Engine
) -> None:
    ids = [
        int(x) for x in torch.randint(5, 300, (900,), generator=torch.Generator().manual_seed(1))
    ]
    upper = engine.loaded[skills["upper"].digest]
    other = replace(upper, digest="another", lowest_layer=1)
    cache = PrefixCache(10**9)
    reader = Reader(engine.backbone, engine._slots, cache, lambda: (2, 1, 0, 4))
    bare = read_whole(reader.read(None, ids))
    before = cache.statistics()
    assert before.entries == 3  # whole, and below one layer and two
    found = [read_whole(reader.read(skill, ids)) for skill in (upper, other)]
    assert cache.statistics().lower_hits == before.lower_hits + 2
    assert cache.statistics().entries == 5
    for states, slot in zip((bare, *found), (None, upper.slot, upper.slot), strict=True):
        whole = Reader(engine.backbone, engine._slots, PrefixCache(0))
        expected = read_whole(whole.read(replace(upper, slot=slot or 0, lowest_layer=0), ids))
        torch.testing.assert_close(states.hidden, expected.hidden, atol=1e-4, rtol=0)


def served_as(engine: Engine, skill: Skill, **changes: object) -> None:
    """Serve a loaded skill as another kind, by what the engine knows of it."""
    loaded = engine._residents._loaded
    loaded[skill.digest] = replace(loaded[skill.digest], **changes)


def test_an_activated_skill_acts_from_its_invocation_on_and_shares_the_bare_reading(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts, tiny: TinyBackbone
) -> None:
    for name in ("plain", "chooser"):
        served_as(engine, skills[name], starts_at_invocation=True)
    ask = [
        Request(
            prompts(question, instructions=f"You are {name}."),
            adapter=skills[name].digest,
            choices=("yes", "not at all"),
        )
        for name in ("plain", "chooser")
        for question in QUESTIONS
    ]
    bare = Request(prompts(), choices=("yes", "no"))
    found = engine.run([bare, *ask])
    assert all(answer.usage.cached_tokens >= ask[0].prompt.document_end for answer in found[1:])
    slots = engine._slots
    for request, answer in zip(ask, found[1:], strict=True):
        slot = engine.loaded[request.adapter].slot
        start = request.prompt.invocation_start
        scores = []
        for choice in request.choices:
            ids = [*request.prompt.ids, *engine.tokenizer.plain(choice)]
            at = torch.arange(len(request.prompt.ids) - 1, len(ids) - 1)
            segments = [Segment(None, 0, start), Segment(slot, start, len(ids))]
            with torch.inference_mode(), slots.mixed(segments):
                logits = engine.backbone.logits(
                    torch.tensor(ids), positions=torch.arange(len(ids)), at=at
                )
            likely = logits.log_softmax(-1)[range(len(at)), ids[-len(at) :]]
            scores.append(likely.sum().item())
        expected = torch.tensor(scores).softmax(-1).tolist()
        assert list(answer.choices.values()) == pytest.approx(expected, abs=1e-4)


def test_prefix_tuning_conditions_what_follows_and_shares_nothing(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    generator = torch.Generator().manual_seed(3)
    states = tuple(
        (
            torch.randn(1, 2, 5, 12, generator=generator),
            torch.randn(1, 2, 5, 12, generator=generator),
        )
        for _ in range(4)
    )
    digest = skills["plain"].digest
    before = done(engine, Request(prompts(), choices=("yes", "no"))).choices
    served_as(engine, skills["plain"], prefix_states=states, lowest_layer=0)
    slot = engine.loaded[digest].slot
    for prompt in (prompts(), plain_prompt((5, 6, 7))):
        found = done(engine, Request(prompt, adapter=digest, choices=("yes", "no"))).choices
        scores = []
        for choice in ("yes", "no"):
            ids = [*prompt.ids, *engine.tokenizer.plain(choice)]
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(states):
                cache.update(keys, values, layer)
            positions = torch.arange(5, 5 + len(ids))
            visible = torch.arange(5 + len(ids))[None] <= positions[:, None]
            mask = engine.backbone.attention_mask(visible, positions, torch.arange(5 + len(ids)))
            at = torch.arange(len(prompt.ids) - 1, len(ids) - 1)
            with torch.inference_mode(), engine._slots.activated(slot):
                logits = engine.backbone.logits(
                    torch.tensor(ids), positions=positions, at=at, cache=cache, mask=mask
                )
            scores.append(logits.log_softmax(-1)[range(len(at)), ids[-len(at) :]].sum().item())
        expected = torch.tensor(scores).softmax(-1).tolist()
        assert list(found.values()) == pytest.approx(expected, abs=1e-4)
    assert done(engine, Request(prompts(), choices=("yes", "no"))).choices == before
