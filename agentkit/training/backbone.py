"""The frozen backbone as a training needs it: in its computing type, or with quantised weights."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from agentkit.engine.precision import computing_type
from agentkit.errors import SkillError
from agentkit.training.attention import use_block_attention
from agentkit.training.quantized import quantize_layers
from agentkit.training.spec import TrainSpec

_CPU = torch.device("cpu")
_PRIMITIVES = 64
"""So many of the products that it has prepared, one for each shape, oneDNN keeps. Packs are of any
length, with a dozen shapes each: of the 1,024 that it keeps otherwise most are never met again, and
hold gigabytes. Preparing them anew costs a few hundredths of the time.
"""


def with_type(spec: TrainSpec, device: torch.device) -> TrainSpec:
    """The settings with the type that `auto` means on a device.

    A processor without instructions for bfloat16 takes several times as long with it as with
    float32. No gradient is scaled here, so float16 is never taken.
    """
    if spec.dtype != "auto":
        return spec
    found = computing_type("auto", device.type) is torch.bfloat16
    return spec.model_copy(update={"dtype": "bfloat16" if found else "float32"})


def load_frozen(folder: Path, spec: TrainSpec, device: torch.device = _CPU) -> Any:
    """The model in a folder on a device, with attention in row blocks, in evaluation mode.

    Raises `SkillError` for a backbone whose layers cannot be cut, and where what quantises it is
    not installed.
    """
    # Read when oneDNN computes for the first time; where something has before, this does nothing.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_PRIMITIVES))
    dtype: Any = getattr(torch, spec.dtype)
    options: dict[str, Any] = {"dtype": dtype}
    if spec.quantization == "int8":
        # As the file has them: copies of all in another type would outweigh what is saved.
        options["dtype"] = "auto"
    elif spec.quantization == "nf4":
        options |= {"quantization_config": _nf4(spec), "device_map": {"": device}}
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        **options,
    )
    model.train(False)
    use_block_attention(model)
    decoder = decoder_of(model)
    if spec.quantization == "nf4":
        _keep_trainable(decoder)
    elif spec.quantization == "int8":
        quantize_layers(decoder)
        _convert(model, dtype)
    return model if spec.quantization == "nf4" else model.to(device)


def decoder_of(model: Any) -> Any:
    """The layers without the unembedding; raises `SkillError` for one that cannot be cut."""
    decoder = getattr(model, "model", None)
    if not all(hasattr(decoder, name) for name in ("layers", "norm", "embed_tokens")):
        raise SkillError(
            f"a backbone of type {model.config.model_type} cannot be trained on",
            hint="decoders built like Llama can: Llama, Qwen, Mistral, Gemma, Phi-3",
        )
    return decoder


def check_four_bits() -> None:
    """Raises `SkillError` where what computes with four bits is not installed."""
    if find_spec("bitsandbytes") is None:
        raise SkillError(
            "quantization nf4 needs the package 'bitsandbytes', which is not installed",
            where="train.yaml",
            hint="pip install 'agentkit-skills[nf4]', or write `quantization: int8`, which needs "
            "nothing",
        )


def _nf4(spec: TrainSpec) -> Any:
    """Four-bit NormalFloat, doubly quantised, as QLoRA has it (https://arxiv.org/abs/2305.14314)."""
    check_four_bits()
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
    )


def _convert(model: Any, dtype: torch.dtype) -> None:
    """Give what is not quantised its type, in memory of its own: the file is let go."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype, copy=True)


def _keep_trainable(decoder: Any) -> None:
    """Keep four-bit layers in the layout that has gradients.

    On a CPU with AVX512-BF16 bitsandbytes lays a layer out anew when it is first read without
    gradients, as in the measuring before a training, and no gradient passes through it from then
    on: what adapters below it learn from would be wrong.
    """
    for module in decoder.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
