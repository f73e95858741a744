"""What fewer bits of a large backbone's frozen layers save, each training in a process of its own.

A document is trained on with a backbone of some 800 million weights, whole and with its layers in
int8 and in NF4 (where bitsandbytes is installed, or `--nf4` says where), the lower two thirds'
states cached. Its weights are random, stored in bfloat16: memory and time are as with real ones.
A peak counts the pages of the weights' files that are mapped, which the system may take back.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import Metric, arguments, finish, need
from training import ROOT, alone
from transformers import LlamaConfig, LlamaForCausalLM

from agentkit import models
from agentkit.settings import Settings

LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
BITS: dict[str, dict[str, str]] = {
    "whole": {},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument(
        "--nf4", type=Path, default=ROOT / ".venv" / "nf4", help="where bitsandbytes is installed"
    )
    options = parser.parse_args()
    need(options.data_dir)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        backbone, weights = large_backbone(Path(scratch) / "large")
        given = ("--data-dir", str(options.data_dir), "--backbone", str(backbone))
        for name, bits in BITS.items():
            path = options.nf4 if name == "nf4" and options.nf4.is_dir() else None
            if name == "nf4" and not (path or find_spec("bitsandbytes")):
                sys.stderr.write("nf4: bitsandbytes is not installed\n")
                continue
            changes = bits | {"pack_tokens": 1024, "epochs": 1}
            found[name] = alone(Path(scratch), name, changes, options.documents, given, path)
    whole = found["whole"]
    metrics = [
        Metric("weights", weights / 1e6, "million"),
        Metric("whole_peak_memory", whole["peak_memory_bytes"] / 1e9, "GB"),
        Metric("whole_seconds", whole["seconds"], "s"),
        *(
            Metric(f"{name}_share_of_{what}", one[key] / whole[key])
            for name, one in found.items()
            if name != "whole"
            for what, key in (("peak_memory", "peak_memory_bytes"), ("time", "seconds"))
        ),
        Metric("tokens_per_epoch", whole["tokens_per_epoch"]),
    ]
    return finish("training_bits", metrics, options.json)


def large_backbone(folder: Path) -> tuple[Path, int]:
    """A folder with random weights and the embedded backbone's tokenizer, and how many they are."""
    small = models.resolve(Settings().backbone, Settings(), "backbone")
    config = json.loads((small / "config.json").read_text("utf-8"))
    tokens = {name: config[name] for name in config if name.endswith("token_id")}
    torch.manual_seed(7)
    large = LlamaForCausalLM(LlamaConfig(**LARGE, **tokens, vocab_size=config["vocab_size"]))
    large.to(torch.bfloat16).save_pretrained(folder)
    for path in small.glob("*token*"):
        shutil.copy(path, folder)
    return folder, sum(p.numel() for p in large.parameters())


if __name__ == "__main__":
    sys.exit(main())
