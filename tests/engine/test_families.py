"""Every family with every kind of adapter that PEFT has gives PEFT's own logits."""

import random
from pathlib import Path

import pytest
import torch
from engine_material import Prompts
from family_material import (
    FAMILIES,
    IDS,
    greedy,
    make_backbone,
    our_logits,
    peft_configs,
    peft_folder,
    peft_logits,
)
from peft import PeftModel
from transformers import AutoModelForCausalLM

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import load_backbone
from agentkit.engine.engine import Engine
from agentkit.engine.install import Gate, prepare
from agentkit.prompt import frame_of
from agentkit.settings import Settings
from agentkit.skill.folder import load_skill
from agentkit.types import Completion, Generation, Request

KINDS = tuple(peft_configs("llama"))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_pefts_for_every_kind_also_after_10_000_random_activations(
    family: str, tmp_path: Path
) -> None:
    base = make_backbone(family, tmp_path / family)
    backbone = load_backbone(base)
    configs = peft_configs(family)
    invocation = configs["activated"].alora_invocation_tokens
    ids = torch.cat([IDS, torch.tensor([*invocation, 9, 80, 81])])
    slots = Slots(backbone.modules)
    bare = our_logits(backbone, slots, None, ids)
    with torch.inference_mode():
        torch.testing.assert_close(bare, backbone.model(ids[None]).logits[0], atol=1e-4, rtol=0)
    gate = Gate(backbone, slots)
    theirs, kinds = {}, {}
    for kind in KINDS:
        folder = peft_folder(base, tmp_path / f"{family}-{kind}", configs[kind])
        theirs[kind] = peft_logits(base, folder, ids)
        prepared = prepare(load_skill(folder), backbone)
        kinds[kind] = (prepared, gate.install(prepared))

    def ours(kind: str) -> torch.Tensor:
        prepared, loaded = kinds[kind]
        starts = len(IDS) if loaded.starts_at_invocation else None
        return our_logits(backbone, slots, loaded.slot, ids, prepared, starts)

    for kind in KINDS:
        torch.testing.assert_close(ours(kind), theirs[kind], atol=1e-4, rtol=0, msg=kind)
        assert (theirs[kind] - bare).abs().max() > 0.05, kind
    order = random.Random(0)
    choices = [None, *(loaded.slot for _, loaded in kinds.values())]
    for step in range(10_000):
        slots.activate(order.choice(choices))
        if step % 2_500 == 0:
            with torch.inference_mode():
                backbone.model(ids[None])
    slots.activate(None)
    assert torch.equal(our_logits(backbone, slots, None, ids), bare)
    for kind in KINDS:
        torch.testing.assert_close(ours(kind), theirs[kind], atol=1e-4, rtol=0, msg=kind)
    for _, loaded in kinds.values():
        slots.empty(loaded.slot)
    assert torch.equal(our_logits(backbone, slots, None, ids), bare)
    assert not any("forward" in vars(module) for module in backbone.model.modules())


@pytest.mark.parametrize("family", ["mistral", "gemma3", "phi3", "gpt2"])
def test_an_engine_writes_pefts_tokens_for_every_kind_in_one_batch(
    family: str, tmp_path: Path
) -> None:
    context = "n_positions" if family == "gpt2" else "max_position_embeddings"
    base = make_backbone(family, tmp_path / family, **{context: 1024})
    backbone = load_backbone(base)
    configs = peft_configs(family)
    invocation = frame_of(backbone.tokenizer).invocation
    ids = backbone.tokenizer(invocation, add_special_tokens=False)["input_ids"]
    configs["activated"].alora_invocation_tokens = list(ids)
    prompt = Prompts(backbone)()
    requests, wanted = [], []
    with Engine(backbone, settings=Settings(max_batch=8)) as engine:
        for kind in ("lora", "dora", "activated", "prefix"):
            folder = peft_folder(base, tmp_path / f"p-{kind}", configs[kind])
            skill = load_skill(folder)
            engine.load(skill)
            requests.append(
                Request(prompt, adapter=skill.digest, generation=Generation(max_tokens=4))
            )
            model = AutoModelForCausalLM.from_pretrained(base)
            theirs = PeftModel.from_pretrained(model, folder).eval()
            text = engine.tokenizer.decode(greedy(theirs, prompt.ids, backbone.eos_ids, 4))
            wanted.append(text.rstrip("\ufffd"))  # half a character is kept back
        answers = engine.run(requests)
    assert [a.text if isinstance(a, Completion) else a for a in answers] == wanted
