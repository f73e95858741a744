"""What a staged training begins with: a trained skill's folder, read against a fresh adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agentkit.adapters.heads import Head
from agentkit.errors import SkillError
from agentkit.training.methods import Attached
from agentkit.training.stages import backbones_of


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Weights of a trained skill that fit an adapter and a head which are to be trained."""

    adapter: dict[str, Tensor]
    head: dict[str, Tensor]
    said: str
    """How much of them it is, to be told."""

    def give(self, attached: Attached, head: Head | None) -> None:
        """Put the weights in; what only the adapter or the head has stays as it is."""
        fresh = attached.tensors()
        attached.load(fresh | {name: t.to(fresh[name].dtype) for name, t in self.adapter.items()})
        if head is not None:
            head.load_state_dict(head.state_dict() | self.head)


def check_start(folder: Path, backbone: str) -> None:
    """Raises `SkillError` where a trained skill's weights say that another backbone is theirs.

    `backbone` is a fingerprint. Weights that name none, as PEFT alone writes them, may be anyone's.
    """
    for weights, named in backbones_of(folder).items():
        if named not in (None, backbone):
            raise SkillError(
                f"{weights} was trained on the backbone {named[:12]}, not {backbone[:12]}",
                where=str(folder),
                hint="start_from names a skill that was trained on the same backbone",
            )


def read_start(attached: Attached, head: Head | None, folder: Path) -> Start:
    """Read the weights of a trained skill that fit; the model's layers have to be all in place.

    Of the head every weight of the same name and shape is taken: one for other answers shares how
    it reads. A folder with a head alone, trained on the frozen backbone, gives that: its answers
    are where the adapter begins. Where a head alone is trained, it is all that is taken. Raises
    `SkillError` if the folder has no adapter of this size, or none of its tensors fits a layer that
    is adapted here.
    """
    weights = folder / "adapter_model.safetensors"
    head_alone = head is not None and (folder / "head.safetensors").exists() > weights.exists()
    try:
        trained = {} if head_alone else load_file(weights)
        read = load_file(folder / "head.safetensors") if head is not None else {}
    except (OSError, SafetensorError) as error:
        raise SkillError(
            f"its adapter or its head cannot be read: {error}",
            where=str(folder),
            hint="start_from names the folder of a trained skill; `agentkit train` trains it first "
            "where it has a train.yaml",
        ) from error
    fresh = attached.tensors()
    shared = {name: tensor for name, tensor in trained.items() if name in fresh}
    for name, tensor in shared.items():
        if tensor.shape != fresh[name].shape:
            raise SkillError(
                f"{name} is {tuple(tensor.shape)}, here {tuple(fresh[name].shape)}",
                where=str(folder),
                hint="start_from needs an adapter of the same rank",
            )
    if fresh and not shared and not head_alone:
        raise SkillError("none of its tensors fits", where=str(folder))
    # Cuts of a head are no parameters: they are chosen anew.
    own = {} if head is None else dict(head.named_parameters())
    fits = {n: t for n, t in read.items() if n in own and t.shape == own[n].shape}
    if not fresh and not fits:
        raise SkillError("none of its head's tensors fits", where=str(folder))
    adapter = fresh and not head_alone
    said = [f"{len(shared)} of the adapter's {len(fresh)} tensors"] if adapter else []
    said += [f"{len(fits)} of the head's {len(own)}"] if own else []
    there, here = _scaling(_config(folder)), _scaling(attached.config())
    if shared and there != here:
        said.append(f"which count there {there:g} times, here {here:g} times")
    return Start(shared, fits, f"starts from {folder.name} with {', '.join(said)}")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _scaling(config: Mapping[str, Any]) -> float:
    """What LoRA's updates are multiplied by; 1 for what is no LoRA."""
    lora = config.get("lora", config)
    rank, alpha = lora.get("r"), lora.get("lora_alpha")
    if not rank or alpha is None:
        return 1.0
    return float(alpha / rank**0.5 if lora.get("use_rslora") else alpha / rank)
