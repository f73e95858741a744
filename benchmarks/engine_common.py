"""What the benchmarks of the engine share: random skills on the real backbone, and timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from agentkit import models
from agentkit.adapters.weights import BACKBONE_KEY
from agentkit.engine.backbone import Backbone, load_backbone
from agentkit.modelfolder import fingerprint
from agentkit.settings import Settings
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import TinyBackbone, tiny_adapter
from agentkit.threads import in_own_thread


def backbone_folder() -> Path:
    settings = Settings()
    return models.resolve(settings.backbone, settings, "backbone")


def exact_backbone(folder: Path) -> Backbone:
    """In float32; both sides have torch's own number of threads."""
    return in_own_thread(lambda: load_backbone(folder, dtype="float32"))


def random_skills(
    folder: Path,
    base: Path,
    count: int,
    *,
    rank: int,
    layers: Sequence[int] | None = None,
    start: int = 0,
) -> list[Skill]:
    """LoRA on all seven linear modules with random weights, in PEFT's format."""
    like = TinyBackbone(base, fingerprint(base))
    first = folder / f"skill-{start}"
    tiny_adapter(first, like, rank=rank, layers=layers, strength=0.02, seed=start)
    shapes = {
        name: tensor.shape
        for name, tensor in load_file(first / "adapter_model.safetensors").items()
    }
    config = (first / "adapter_config.json").read_bytes()
    folders = [first]
    for number in range(start + 1, start + count):
        generator = torch.Generator().manual_seed(number)
        tensors = {
            name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()
        }
        folders.append(folder / f"skill-{number}")
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_bytes(config)
        save_file(
            tensors,
            folders[-1] / "adapter_model.safetensors",
            metadata={BACKBONE_KEY: like.fingerprint},
        )
    return [load_skill(one) for one in folders]


def plain_model(base: Path) -> Any:
    """The backbone as transformers loads it, in float32."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model.eval()


def peft_model(base: Path, skills: Sequence[Skill]) -> Any:
    """The peer: the backbone with every skill loaded by PEFT, by the name of its folder."""
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(
        plain_model(base), skills[0].path, adapter_name=skills[0].name
    )
    for skill in skills[1:]:
        model.load_adapter(skill.path, adapter_name=skill.name)
    return model.eval()


def in_turn(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, warm: int = 1
) -> dict[str, float]:
    """Median seconds of each side, the sides run in turn so that a busy moment meets them all."""
    for _ in range(warm):
        for side in sides.values():
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
