"""A GGUF file becomes a folder of safetensors, once: `convert.py MODEL.gguf FOLDER`.

Run as a script in a process of its own, which imports nothing of agentkit: the caller stays
without torch, and the memory of the conversion is given back when it ends.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write `gguf`'s dequantised weights, config and tokenizer into `folder` as safetensors.

    Weights are float32: four-bit blocks dequantise to `scale * q + minimum`, which neither
    float16 nor bfloat16 holds exactly, and a fingerprint must not depend on a rounding.
    """
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{gguf.name} is no GGUF file")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # The weights are plain floats now; save_pretrained refuses them while the config says GGUF.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    del model.hf_quantizer
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
