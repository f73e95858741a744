"""LoRA gives what PEFT gives, whatever PEFT can write of it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from agentkit.adapters.layers import adaptable_modules
from agentkit.adapters.lora import lora_deltas
from agentkit.adapters.weights import load_adapter
from agentkit.engine.activation import Slots
from agentkit.skill.folder import load_skill
from agentkit.testing import ALL_MODULES, TinyBackbone, tiny_adapter

IDS = torch.tensor([[5, 17, 99, 3, 42, 250, 7, 7, 130, 64]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBackbone:
    return TinyBackbone.create(tmp_path_factory.mktemp("lora") / "tiny")


def our_logits(model: torch.nn.Module, layers: int, folder: Path) -> torch.Tensor:
    skill = load_skill(folder)
    pairs = load_adapter(skill).pairs
    slots = Slots(adaptable_modules(model, layers))
    slot = slots.fill(lora_deltas(pairs, torch.float32, torch.device("cpu")))
    with torch.inference_mode(), slots.activated(slot):
        return model(IDS).logits


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="all seven modules"),
        pytest.param({"rank": 1}, id="rank one"),
        pytest.param({"modules": ["q_proj", "v_proj"]}, id="a subset of modules"),
        pytest.param({"layers": [1, 3]}, id="a subset of layers"),
        pytest.param({"rslora": True, "rank": 9}, id="rank-stabilised scaling"),
        pytest.param(
            {
                "rank_pattern": {"q_proj": 2, r"layers\.2\.mlp\.up_proj": 7},
                "alpha_pattern": {"down_proj": 3.0, r"layers\.1\..*v_proj": 5.0},
            },
            id="rank and alpha patterns",
        ),
        pytest.param(
            {"rslora": True, "rank_pattern": {"o_proj": 3}, "alpha_pattern": {"o_proj": 1.5}},
            id="patterns with rank-stabilised scaling",
        ),
    ],
)
def test_logits_equal_those_of_peft(tiny: TinyBackbone, tmp_path: Path, options: dict) -> None:
    folder = tiny_adapter(tmp_path / "skill", tiny, **options)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.path), folder)
    with torch.inference_mode():
        theirs = peft(IDS).logits
    bare = AutoModelForCausalLM.from_pretrained(tiny.path)
    ours = our_logits(bare, 4, folder)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    with torch.inference_mode():
        assert (bare(IDS).logits - theirs).abs().max() > 0.1


def test_the_transposed_linear_layers_of_gpt2_equal_peft(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3, n_embd=32, n_head=4, vocab_size=300, n_positions=64, initializer_range=0.2
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")

    def load() -> GPT2LMHeadModel:
        return GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2").eval()

    lora = LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], task_type="CAUSAL_LM")
    peft = get_peft_model(load(), lora).eval()
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    peft.save_pretrained(str(tmp_path / "skill"))
    (tmp_path / "skill" / "README.md").unlink(missing_ok=True)
    with torch.inference_mode():
        theirs = peft(IDS).logits
    torch.testing.assert_close(our_logits(load(), 3, tmp_path / "skill"), theirs, atol=1e-4, rtol=0)


def test_modules_know_their_layer_and_sizes(tiny: TinyBackbone) -> None:
    modules = adaptable_modules(AutoModelForCausalLM.from_pretrained(tiny.path), 4)
    up = modules["model.layers.2.mlp.up_proj"]
    assert (up.inputs, up.outputs, up.layer) == (48, 96, 2)
    assert modules["lm_head"].layer == 4
    parts = Counter(spec.part for spec in modules.values())
    assert parts == {"linear": 4 * len(ALL_MODULES) + 1, "attention": 4, "feed-forward": 4}


def test_an_untrained_adapter_is_known_to_be_silent(tiny: TinyBackbone, tmp_path: Path) -> None:
    skill = load_skill(tiny_adapter(tmp_path / "skill", tiny, strength=0.0))
    pairs = load_adapter(skill).pairs
    deltas = lora_deltas(pairs, torch.float32, torch.device("cpu"))
    assert all(delta.silent for delta in deltas.values())
