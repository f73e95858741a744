"""What a training cannot do, said before time is spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from agentkit.errors import InputError, SkillError
from agentkit.skill.manifest import Manifest
from agentkit.training.layer_selection import given_layers
from agentkit.training.packs import Pack
from agentkit.training.spec import TrainSpec


def device_of(name: str) -> torch.device:
    """The device of that name. Raises `InputError` for one that cannot be trained on here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"there is no such device: {error}", where="device") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(f"cannot train on {name!r} here", where="device", hint="device=cpu")
    if device.index:
        raise InputError(
            f"a training takes the first GPU that it sees, not {name!r}",
            where="device",
            hint=f"CUDA_VISIBLE_DEVICES={device.index}, and device=cuda",
        )
    return torch.device("cuda", 0)


def check_choices(manifest: Manifest, packs: Sequence[Pack], skill: Path) -> None:
    """Raises `InputError` where a head has no choice to learn: every input gives it already."""
    if manifest.head_choices and not any(pack.answer_at for pack in packs):
        raise InputError(
            "the input of every training row gives the choice that the head is to make",
            where=str(skill / "train.yaml"),
            hint="add rows whose input leaves it open, or take out answer.choice_given",
        )


def check_probe(spec: TrainSpec, count: int, skill: Path) -> None:
    """Raises `SkillError` for settings that leave a probe nothing to read, before time is spent."""
    where = str(skill / "train.yaml")
    methods = {spec.method, *(spec.search.method if spec.search else ())}
    if "prefix" in methods:
        raise SkillError(
            "a probe reads the states below the adapter, and a prefix acts on every layer",
            where=where,
            hint="take another method, or answer.choice_by: head",
        )
    if spec.search and "head" in methods:
        raise SkillError(
            "a probe takes no steps that a search could compare",
            where=where,
            hint="take head out of search.method",
        )
    if not spec.cache_lower:
        raise SkillError(
            "a probe is fitted to the lower layers' cached states",
            where=where,
            hint="set cache_lower: true, or answer.choice_by: head",
        )
    for layers in spec.search.layers if spec.search else ():
        check_depth(given_layers(layers, count)[0], count, skill)
    searched = spec.search is not None and bool(spec.search.layers)
    if not (spec.method == "head" or spec.layers == "auto" or searched or spec.layers_of):
        check_depth(given_layers(spec.layers, count)[0], count, skill)


def check_depth(lowest: int, count: int, skill: Path) -> None:
    """Raises `SkillError` where too few layers are below an adapter to have understood anything."""
    if lowest < count // 3:
        raise SkillError(
            f"a probe reads the states below the adapter, which starts at layer {lowest}",
            where=str(skill / "train.yaml"),
            hint="set layers: upper 1/3, or answer.choice_by: head",
        )
