"""Activation changes what is computed, and nothing else, and is undone without trace."""

import random

import torch

from agentkit.adapters.lora import lora_deltas
from agentkit.adapters.weights import load_adapter
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.skill.folder import Skill

IDS = torch.tensor([[5, 17, 99, 3, 42, 250, 7, 7, 130, 64]])


def logits(backbone: Backbone) -> torch.Tensor:
    with torch.inference_mode():
        return backbone.model(IDS).logits


def fill(backbone: Backbone, slots: Slots, skill: Skill) -> int:
    pairs = load_adapter(skill).pairs
    return slots.fill(lora_deltas(pairs, backbone.dtype, backbone.device))


def test_the_bare_backbone_is_bit_identical_with_adapters_loaded_and_after_them(
    backbone: Backbone, skills: dict[str, Skill]
) -> None:
    bare = logits(backbone)
    slots = Slots(backbone.modules)
    filled = [fill(backbone, slots, skill) for skill in skills.values()]
    assert torch.equal(logits(backbone), bare)
    for slot in filled:
        slots.activate(slot)
        assert not torch.equal(logits(backbone), bare)
        slots.activate(None)
        assert torch.equal(logits(backbone), bare)


def test_a_thousand_random_activations_leave_every_adapter_as_it_was(
    backbone: Backbone, skills: dict[str, Skill]
) -> None:
    slots = Slots(backbone.modules)
    filled = [None, *(fill(backbone, slots, skill) for skill in skills.values())]
    first = {}
    for slot in filled:
        with slots.activated(slot):
            first[slot] = logits(backbone)
    order = random.Random(0)
    for step in range(1000):
        slot = order.choice(filled)
        slots.activate(slot)
        if step % 50 == 0:
            assert torch.equal(logits(backbone), first[slot])
    for slot in filled:
        slots.activate(slot)
        assert torch.equal(logits(backbone), first[slot])


def test_frozen_weights_keep_their_memory_and_their_values(
    backbone: Backbone, skills: dict[str, Skill]
) -> None:
    before = {name: (p.data_ptr(), p.clone()) for name, p in backbone.model.named_parameters()}
    slots = Slots(backbone.modules)
    slots.activate(fill(backbone, slots, skills["plain"]))
    logits(backbone)
    for name, parameter in backbone.model.named_parameters():
        pointer, value = before[name]
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)


def test_a_module_without_the_active_adapter_runs_the_backbones_own_code(
    backbone: Backbone, skills: dict[str, Skill]
) -> None:
    """Layers below an upper-layer adapter give the very same states."""

    def states() -> list[torch.Tensor]:
        with torch.inference_mode():
            return list(backbone.model(IDS, output_hidden_states=True).hidden_states)

    bare = states()
    slots = Slots(backbone.modules)
    fill(backbone, slots, skills["plain"])
    slots.activate(fill(backbone, slots, skills["upper"]))
    adapted = states()
    assert all(torch.equal(a, b) for a, b in zip(adapted[:3], bare[:3], strict=True))
    assert not torch.equal(adapted[3], bare[3])


def test_emptied_slots_leave_modules_as_they_were(
    backbone: Backbone, skills: dict[str, Skill]
) -> None:
    bare = logits(backbone)
    slots = Slots(backbone.modules)
    one, other = (fill(backbone, slots, skills[name]) for name in ("plain", "upper"))
    slots.activate(one)
    slots.empty(one)
    assert slots.active is None
    assert torch.equal(logits(backbone), bare)
    slots.empty(other)
    assert not any("forward" in vars(spec.module) for spec in backbone.modules.values())


def test_a_slot_number_is_never_given_twice(backbone: Backbone, skills: dict[str, Skill]) -> None:
    slots = Slots(backbone.modules)
    first = fill(backbone, slots, skills["plain"])
    slots.empty(first)
    assert fill(backbone, slots, skills["plain"]) != first
