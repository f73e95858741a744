"""A quantised backbone: a quarter of the memory, and adapters learn almost as on the whole one."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from agentkit.errors import SkillError
from agentkit.testing import TinyBackbone
from agentkit.training.backbone import load_frozen
from agentkit.training.methods import attach
from agentkit.training.quantized import Int8Linear, quantize_layers
from agentkit.training.spec import TrainSpec, load_train_spec


def gradients(backbone: TinyBackbone, **settings: Any) -> dict[str, torch.Tensor]:
    """Of every adapter tensor, for one and the same loss; the adapters are not at their start."""
    spec = TrainSpec(data=({"path": "x"},), dtype="float32", rank=4, **settings)
    model = load_frozen(backbone.path, spec)
    torch.manual_seed(3)
    attached = attach(model, spec, range(1, 4), ())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if attached.apart is not None:
        trained |= {f"apart.{n}": p for n, p in attached.apart.named_parameters()}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(std=0.05)
    ids = torch.randint(20, 390, (1, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 40, 40).masked_fill_(~torch.ones(40, 40).tril().bool(), -1e9)
    states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    model.lm_head(states).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).mean().backward()
    return {name: p.grad.clone() for name, p in trained.items()}


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_adapters_get_nearly_the_gradients_of_the_whole_backbone(
    tiny_backbone: TinyBackbone, method: str
) -> None:
    whole = gradients(tiny_backbone, method=method)
    small = gradients(tiny_backbone, method=method, quantization="int8")
    assert whole.keys() == small.keys()
    flat = [torch.cat([one[name].flatten() for name in whole]) for one in (whole, small)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99
    assert float(flat[1].norm() / flat[0].norm()) == pytest.approx(1.0, abs=0.05)


def test_the_frozen_layers_take_a_quarter_of_their_memory(tiny_backbone: TinyBackbone) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_backbone.path, dtype=torch.float32)

    def size() -> int:
        linear = [m for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
        return sum(t.nbytes for m in linear for t in (*m.parameters(), *m.buffers()))

    before, names = size(), {name for name, _ in model.named_modules()}
    quantize_layers(model.model)
    assert size() < 0.35 * before  # a scale for each of 48 numbers is a twelfth of them
    assert {name for name, _ in model.named_modules()} == names
    assert not isinstance(model.lm_head, Int8Linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_what_its_rounded_weights_give(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=bias).to(dtype)
    small = Int8Linear(linear)
    rows = torch.randn(2, 5, 64, dtype=dtype, requires_grad=True)
    weight = small.weight.float() * small.scale[:, None]
    assert (weight - linear.weight.float()).abs().max() <= small.scale.max() / 2 + 1e-6
    ours = small(rows)
    wanted = nn.functional.linear(
        rows.float(), weight, None if linear.bias is None else linear.bias.float()
    )
    close = {"atol": 2e-2, "rtol": 2e-2} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(ours.float(), wanted, **close)
    (ours_back,) = torch.autograd.grad(ours.float().square().sum(), rows)
    (wanted_back,) = torch.autograd.grad(wanted.square().sum(), rows)
    if dtype is torch.float32:
        torch.testing.assert_close(ours_back, wanted_back)
    assert not small.weight.requires_grad


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_what_is_not_rounded_has_the_type_of_the_training_whatever_the_file_has(
    tiny_backbone: TinyBackbone, tmp_path: Path, stored: torch.dtype, dtype: str
) -> None:
    whole: Any = AutoModelForCausalLM.from_pretrained(tiny_backbone.path, dtype=stored)
    whole.save_pretrained(tmp_path)
    spec = TrainSpec(data=({"path": "x"},), quantization="int8", dtype=dtype)
    model = load_frozen(tmp_path, spec)
    rounded = [m for m in model.model.layers.modules() if isinstance(m, Int8Linear)]
    assert rounded
    assert all(one.scale.dtype is torch.float32 for one in rounded)
    kept = {p.dtype for p in model.parameters() if p.is_floating_point()}
    assert kept == {getattr(torch, dtype)}
    wanted = whole.model.embed_tokens.weight.to(getattr(torch, dtype))
    assert torch.equal(model.model.embed_tokens.weight, wanted)
    tied = whole.lm_head.weight is whole.model.embed_tokens.weight
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_row_of_zeros_stays_one() -> None:
    linear = nn.Linear(4, 2, bias=False)
    nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.ones(1, 4)), torch.zeros(1, 2))


def test_a_skill_learns_on_a_quantised_backbone_and_says_so(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=20, quantization="int8", method="hybrid")
    trained, _ = toy.train()
    losses = [entry["loss"] for entry in trained.metrics["loss"]]
    assert losses[-1] < losses[0]
    assert trained.metrics["training"]["quantization"] == "int8"
    assert trained.metrics["peak_memory_bytes"] > 0


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_four_bit_layers_have_gradients_after_they_were_read_without(tmp_path: Path) -> None:
    """On some processors bitsandbytes lays read layers out anew, and then they have none."""
    # It does so with widths that 32 divides, and stops at others.
    backbone = TinyBackbone.create(tmp_path / "backbone", hidden=128)
    spec = TrainSpec(data=({"path": "x"},), dtype="float32", rank=4, quantization="nf4")
    ids = torch.randint(20, 390, (1, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 40, 40).masked_fill_(~torch.ones(40, 40).tril().bool(), -1e9)
    found = []
    for read_before in (False, True):
        model = load_frozen(backbone.path, spec)
        torch.manual_seed(3)
        attach(model, spec, range(1, 4), ())
        if read_before:
            with torch.no_grad():
                model.model(input_ids=ids, attention_mask=mask)
        model.model(input_ids=ids, attention_mask=mask).last_hidden_state.sum().backward()
        trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert all(gradient is not None for gradient in trained.values())
        found.append(torch.cat([gradient.flatten() for gradient in trained.values()]))
    assert found[0].norm() > 0
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("method", ["lora", "hybrid", "bottleneck", "alora"])
def test_a_skill_learns_on_a_four_bit_backbone(
    make_toy: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=20, quantization="nf4", method=method)
    trained, _ = toy.train()
    losses = [entry["loss"] for entry in trained.metrics["loss"]]
    assert losses[-1] < losses[0]
    assert trained.metrics["training"]["quantization"] == "nf4"


def test_what_cannot_be_quantised_says_why(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    toy = make_toy("likelihood", tmp_path, quantization="nf4")
    if find_spec("bitsandbytes") is None:
        with pytest.raises(SkillError, match="bitsandbytes"):
            load_frozen(Path(toy.settings.backbone), load_train_spec(toy.folder / "train.yaml"))
    path = toy.folder / "train.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"method": "dora"}))
    with pytest.raises(SkillError, match="dora needs the weights' norms"):
        load_train_spec(path)
