"""What a pack is trained on under each method is what PEFT computes for the same tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentkit.testing import TinyBackbone
from agentkit.training.attention import use_block_attention
from agentkit.training.methods import Attached, attach
from agentkit.training.model import PackModel
from agentkit.training.packs import Pack
from agentkit.training.spec import TrainSpec

INVOCATION = [7, 8, 9]


def backbone(tiny_backbone: TinyBackbone, *, blocks: bool) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        tiny_backbone.path, dtype=torch.float32, local_files_only=True
    ).eval()
    if blocks:
        use_block_attention(model)
    return model


def pack() -> Pack:
    """A prefix and one branch with its invocation: what a plain row holds."""
    ids = torch.randint(20, 390, (300,), generator=torch.Generator().manual_seed(3)).tolist()
    ids[-6:-3] = INVOCATION
    return Pack(
        ids=ids,
        branch=[0] * 280 + [1] * 20,
        positions=list(range(300)),
        active=[at >= 294 for at in range(300)],
    )


@pytest.mark.parametrize("method", ["lora", "dora", "alora", "prefix"])
def test_states_equal_those_of_peft(tiny_backbone: TinyBackbone, method: str, tmp_path) -> None:
    spec = TrainSpec(data=({"path": "x"},), method=method, rank=4, virtual_tokens=5)
    model = backbone(tiny_backbone, blocks=True)
    torch.manual_seed(1)
    attached = attach(model, spec, range(4), INVOCATION)
    with torch.no_grad():
        for parameter in attached.peft.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.08)
    row = pack()
    ids = torch.tensor([row.ids])
    with torch.inference_mode():
        lower = model.get_input_embeddings()(ids)[0]
        ours = PackModel(model.model, model.lm_head, None, 0.0, attached).states(row, lower)
        scores = model.lm_head(ours)
    attached.peft.save_pretrained(tmp_path)

    from peft import PeftModel

    theirs = PeftModel.from_pretrained(backbone(tiny_backbone, blocks=False), tmp_path).eval()
    with torch.inference_mode():
        wanted = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        bare = backbone(tiny_backbone, blocks=False)(ids).logits[0]
    torch.testing.assert_close(scores, wanted[-300:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores, bare, atol=1e-2)
    if method == "alora":
        torch.testing.assert_close(scores[:294], bare[:294], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "alora", "bottleneck", "hybrid", "prefix"])
def test_only_the_adapter_is_trained(tiny_backbone: TinyBackbone, method: str) -> None:
    model = backbone(tiny_backbone, blocks=True)
    spec = TrainSpec(data=({"path": "x"},), method=method)
    attached = attach(model, spec, range(4), INVOCATION)
    whole = PackModel(model.model, model.lm_head, None, 0.0, attached)
    trained = {name for name, p in whole.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name or "apart" in name for name in trained)


@pytest.mark.parametrize("method", ["lora", "bottleneck", "hybrid"])
def test_a_backbone_is_as_it_was_while_disabled_and_once_detached(
    tiny_backbone: TinyBackbone, method: str
) -> None:
    model = backbone(tiny_backbone, blocks=True)
    row = pack()

    def states(attached: Any) -> torch.Tensor:
        with torch.inference_mode():
            lower = model.get_input_embeddings()(torch.tensor([row.ids]))[0]
            return PackModel(model.model, model.lm_head, None, 0.0, attached).states(row, lower)

    bare = states(Attached(None))
    attached = attach(model, TrainSpec(data=({"path": "x"},), method=method), range(2, 4), ())
    attached.load({n: torch.randn_like(t) * 0.1 for n, t in attached.tensors().items()})
    adapted = states(attached)
    assert not torch.allclose(adapted, bare, atol=1e-2)
    with attached.disabled():
        assert torch.equal(states(attached), bare)
    assert torch.equal(states(attached), adapted)
    attached.detach()
    assert torch.equal(states(Attached(None)), bare)
