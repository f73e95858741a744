"""What caching the lower layers saves: the same training with and without it, each in a process.

Trains a copy of compliance-review on a few documents, and prints time and peak memory of the cached
training as a share of the plain one's. The losses of both are compared: they must agree. Beside
them stand the ways to less memory, each a share of the cached training's: the upper layers computed
again in the backward pass, and the frozen layers in int8. The rest of a process's memory, most of
it Python's libraries, is the same in all: `import_memory` is what a process holds that has loaded
them and nothing else.

What fewer bits save is seen where weights outweigh activations: a document is trained on with a
backbone of some 800 million weights besides, whole and with its layers in int8 and in NF4 (where
bitsandbytes is installed, or `--nf4` says where). Its weights are random, stored in bfloat16:
memory and time are as with real ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Metric, arguments, finish, need

from agentkit import models
from agentkit.settings import Settings
from agentkit.training.copies import copy_untrained
from agentkit.training.spec import load_train_spec

ROOT = Path(__file__).resolve().parent.parent
AGENTKIT = Path(sys.executable).with_name("agentkit")
WAYS = {
    "plain": {"cache_lower": False},
    "cached": {},
    "checkpointing": {"checkpointing": True},
    "int8": {"quantization": "int8"},
}

LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
BITS = {
    "whole": {},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument(
        "--nf4", type=Path, default=ROOT / ".venv" / "nf4", help="where bitsandbytes is installed"
    )
    options = parser.parse_args()
    need(options.data_dir)
    with tempfile.TemporaryDirectory() as scratch:
        plain, cached, again, int8 = (
            trained(Path(scratch), options, name, changes) for name, changes in WAYS.items()
        )
        large = bits(Path(scratch), options)
    drift = max(
        abs(a["loss"] - b["loss"]) / a["loss"]
        for a, b in zip(plain["loss"], cached["loss"], strict=True)
    )
    share = cached["seconds"] / plain["seconds"]
    memory = cached["peak_memory_bytes"] / plain["peak_memory_bytes"]
    lean = [
        Metric(f"{name}_share_of_{what}", one[key] / cached[key])
        for name, one in (("checkpointing", again), ("int8", int8))
        for what, key in (("peak_memory", "peak_memory_bytes"), ("time", "seconds"))
    ]
    metrics = [
        Metric("plain_seconds", plain["seconds"], "s"),
        Metric("cached_seconds", cached["seconds"], "s"),
        Metric("cached_share_of_time", share, "", "<= 0.8", share <= 0.8),
        Metric("cached_share_of_peak_memory", memory, "", "<= 1", memory <= 1),
        Metric("largest_difference_of_loss", drift, "", "<= 0.02", drift <= 0.02),
        Metric("cached_peak_memory", cached["peak_memory_bytes"] / 1e9, "GB"),
        Metric("import_memory", imported() / 1e9, "GB"),
        *lean,
        Metric("epochs", options.epochs),
        Metric("tokens_per_epoch", plain["tokens_per_epoch"]),
        *large,
    ]
    return finish("training", metrics, options.json)


def bits(scratch: Path, options) -> list[Metric]:  # noqa: ANN001
    """Peaks of memory with a large backbone, whole and in fewer bits."""
    backbone = large_backbone(scratch / "large")
    found: dict[str, dict[str, Any]] = {}
    for name, changes in BITS.items():
        path = str(options.nf4) if name == "nf4" and options.nf4.is_dir() else ""
        if name == "nf4" and not (path or find_spec("bitsandbytes")):
            print("nf4: bitsandbytes is not installed", file=sys.stderr)
            continue
        less = changes | {"pack_tokens": 1024, "epochs": 1}
        given = ("--backbone", str(backbone))
        found[name] = trained(
            scratch, options, f"large-{name}", less, documents=1, given=given, path=path
        )
    whole = found.pop("whole")
    return [
        Metric("large_peak_memory", whole["peak_memory_bytes"] / 1e9, "GB"),
        *(
            Metric(f"large_{name}_share_of_{what}", one[key] / whole[key])
            for name, one in found.items()
            for what, key in (("peak_memory", "peak_memory_bytes"), ("time", "seconds"))
        ),
    ]


def large_backbone(folder: Path) -> Path:
    """A folder with random weights and the embedded backbone's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = models.resolve(Settings().backbone, Settings(), "backbone")
    config = json.loads((small / "config.json").read_text("utf-8"))
    torch.manual_seed(7)
    tokens = {name: config[name] for name in config if name.endswith("token_id")}
    large: Any = LlamaForCausalLM(
        LlamaConfig(**LARGE, **tokens, vocab_size=config["vocab_size"], dtype="bfloat16")
    )
    large.to(torch.bfloat16).save_pretrained(folder)
    for path in small.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def imported() -> int:
    """Bytes that a process holds which has imported what trains, and nothing more."""
    code = "import agentkit.training.train, psutil; print(psutil.Process().memory_info().rss)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


def trained(
    scratch: Path,
    options,  # noqa: ANN001
    name: str,
    ways: Mapping[str, Any],
    *,
    documents: int | None = None,
    given: tuple[str, ...] = (),
    path: str = "",
) -> dict[str, Any]:
    """The metrics of one training in a process and a home of its own."""
    skill = ROOT / "skills" / "compliance-review"
    data = load_train_spec(skill / "train.yaml").data[0].model_dump(exclude_unset=True)
    changes = {
        "epochs": options.epochs,
        **ways,
        "max_minutes": None,
        "calibration": [],
        "data": [data | {"limit": documents or options.documents}],
    }
    folder = copy_untrained(skill, scratch / name, changes)
    subprocess.run(
        [
            AGENTKIT,
            "train",
            folder,
            "--data-dir",
            options.data_dir,
            "--work",
            scratch / f"w-{name}",
            *given,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))},
    )
    return json.loads((folder / "metrics.json").read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
