"""Tiny backbones of every family, and adapters of every kind that PEFT has on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.install import PreparedSkill
from agentkit.engine.prefix import GrowingCache
from agentkit.testing import tiny_tokenizer

LAYERS = 3
HIDDEN = 32
IDS = torch.tensor([5, 17, 99, 3, 42, 250, 7, 7, 130, 64, 301, 12])

_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
_SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """A config class of transformers, what it takes, and the linear modules of its layers."""

    config: str
    options: Mapping[str, Any]
    modules: Sequence[str] = _SPLIT


FAMILIES = {
    "llama": Family("LlamaConfig", _SIZES),
    "qwen2": Family("Qwen2Config", _SIZES),
    "qwen3": Family("Qwen3Config", {**_SIZES, "head_dim": 16}),
    "mistral": Family("MistralConfig", {**_SIZES, "sliding_window": 8}),
    "gemma3": Family(
        "Gemma3TextConfig",
        {
            **_SIZES,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "phi3": Family("Phi3Config", _SIZES, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "gpt2": Family(
        "GPT2Config",
        {
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 256,
            "initializer_range": 0.2,
        },
        ("c_attn", "c_proj", "c_fc"),
    ),
}


def make_backbone(name: str, folder: Path, **options: Any) -> Path:
    """A random model of a family with a tokenizer; returns the folder."""
    family = FAMILIES[name]
    tokenizer = tiny_tokenizer()
    config = getattr(transformers, family.config)(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**family.options, **options},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at values that hide mistakes
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def peft_configs(family: str) -> dict[str, LoraConfig | PrefixTuningConfig]:
    """Kinds and options by name."""
    modules = list(FAMILIES[family].modules)
    invocation = tiny_tokenizer()("<|im_end|>\n<|im_start|>", add_special_tokens=False)
    common: dict[str, Any] = {"task_type": "CAUSAL_LM"}

    def lora(**options: Any) -> LoraConfig:
        return LoraConfig(
            **{"r": 4, "lora_alpha": 8, "target_modules": modules, **common, **options}
        )

    return {
        "lora": lora(),
        "lora-patterns": lora(
            r=3,
            use_rslora=True,
            target_modules=modules[:2],
            layers_to_transform=[1, 2],
            rank_pattern={modules[0]: 5},
            alpha_pattern={modules[1]: 3.0},
        ),
        "dora": lora(use_dora=True),
        "activated": lora(alora_invocation_tokens=list(invocation["input_ids"])),
        "prefix": PrefixTuningConfig(num_virtual_tokens=5, **common),
        "prefix-projected": PrefixTuningConfig(
            num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=12, **common
        ),
    }


def peft_folder(
    base: Path, folder: Path, config: LoraConfig | PrefixTuningConfig, *, strength: float = 0.3
) -> Path:
    """A PEFT folder with random weights; `strength` is the deviation of `lora_B`. Returns it."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=strength)
            elif "magnitude" in name:
                parameter.mul_(1 + strength * torch.rand_like(parameter))
            elif "prompt_encoder" in name:
                parameter.normal_(std=0.7)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def peft_logits(base: Path, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """PEFT's logits `(tokens, vocabulary)` of an adapter as it loads it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids[None]).logits[0]
    return logits[-len(ids) :]


def our_logits(
    backbone: Backbone,
    slots: Slots,
    slot: int | None,
    ids: torch.Tensor,
    skill: PreparedSkill | None = None,
    starts: int | None = None,
) -> torch.Tensor:
    """Logits of one sequence with a slot active, from token `starts` on where it is given."""
    before = skill.prefix_states if skill else None
    length = before[0][0].shape[-2] if before else 0
    cache = GrowingCache([(pair,) for pair in before] if before else (), len(ids))
    parts = []
    bounds = [0, len(ids)] if not starts else [0, starts, len(ids)]
    with torch.inference_mode():
        for first, last in pairwise(bounds):
            at = torch.arange(length + first, length + last)
            keys = torch.arange(length + last)
            with slots.activated(None if starts and last == starts else slot):
                parts.append(
                    backbone.logits(
                        ids[first:last],
                        positions=at,
                        at=torch.arange(last - first),
                        cache=cache,
                        mask=backbone.attention_mask(keys <= at[:, None], at, keys),
                    )
                )
    return torch.cat(parts)


def greedy(
    model: torch.nn.Module, ids: Sequence[int], ends: frozenset[int], tokens: int
) -> list[int]:
    """The answer's tokens, each by a whole forward of its own; the best is clearly the best."""
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < tokens:
            logits = model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
            best = logits.topk(2).values
            assert best[0] - best[1] > 1e-4
            if int(logits.argmax()) in ends:
                break
            written.append(int(logits.argmax()))
    return written
