"""Kinds on the embedded backbone: PEFT's logits in float32, and a merged model that is the same."""

from pathlib import Path

import pytest
import torch
from family_material import our_logits, peft_configs, peft_folder, peft_logits

from agentkit import models
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import load_backbone
from agentkit.engine.install import Gate, prepare
from agentkit.prompt import frame_of
from agentkit.settings import Settings
from agentkit.skill.folder import load_skill

pytestmark = [
    pytest.mark.weights,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def base() -> Path:
    return models.resolve("smollm2-135m-instruct", Settings(), "backbone")


def test_every_kind_gives_pefts_logits_on_the_embedded_backbone(base: Path, tmp_path: Path) -> None:
    backbone = load_backbone(base)
    slots = Slots(backbone.modules)
    gate = Gate(backbone, slots)
    tokenizer = backbone.tokenizer
    text = tokenizer("Each party shall keep it secret.", add_special_tokens=False)["input_ids"]
    invocation = tokenizer(frame_of(tokenizer).invocation, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([*text, *invocation])
    bare = our_logits(backbone, slots, None, ids)
    configs = peft_configs("llama")
    configs["activated"].alora_invocation_tokens = list(invocation)
    for kind in ("lora-patterns", "dora", "activated", "prefix"):
        folder = peft_folder(base, tmp_path / f"p-{kind}", configs[kind], strength=0.03)
        prepared = prepare(load_skill(folder), backbone)
        loaded = gate.install(prepared)
        starts = len(text) if loaded.starts_at_invocation else None
        ours = our_logits(backbone, slots, loaded.slot, ids, prepared, starts)
        theirs = peft_logits(base, folder, ids)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0, msg=kind)
        assert (theirs - bare).abs().max() > 0.1, kind
        assert torch.equal(our_logits(backbone, slots, None, ids), bare)
