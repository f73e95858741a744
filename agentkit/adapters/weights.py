"""An adapter's weights: do they fit their config, and the backbone that is to carry them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from agentkit.adapters.config import MAX_RANK, AdapterConfig, read_config
from agentkit.adapters.tensor_file import (
    BACKBONE_KEY,
    LoadedWeights,
    check_finite,
    read_header,
    read_tensors,
)
from agentkit.errors import AdapterError
from agentkit.skill.folder import Skill

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BACKBONE_KEY",
    "LoadedWeights",
    "LoraPair",
    "check_adapter",
    "check_adapter_header",
    "check_against_modules",
    "fingerprint_status",
    "load_adapter",
    "lora_pairs",
    "read_tensors",
]

_PREFIX = "base_model.model."
_SIDES = ("lora_A", "lora_B")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One LoRA module: its output gains `scaling * (x @ a.T) @ b.T`."""

    a: Tensor
    """`(rank, in_features)`."""
    b: Tensor
    """`(out_features, rank)`."""
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)` of the linear layer that it belongs on."""
        return int(self.b.shape[0]), int(self.a.shape[1])


Shapes: TypeAlias = Mapping[str, tuple[int, int]]
"""Module name to `(out_features, in_features)`."""


def lora_pairs(weights: LoadedWeights, config: AdapterConfig) -> dict[str, LoraPair]:
    """The LoRA pairs by the name of the module they belong on (`model.layers.0.mlp.up_proj`).

    Raises `AdapterError` if a tensor is none of LoRA's, has no partner, or another rank than the
    config says.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    return {
        module: LoraPair(
            weights.tensors[_key(module, "lora_A")],
            weights.tensors[_key(module, "lora_B")],
            config.scaling(module),
        )
        for module in _check_pairs(shapes, config, str(weights.path))
    }


def load_adapter(skill: Skill) -> tuple[AdapterConfig, LoadedWeights, dict[str, LoraPair]]:
    """Config, weights and LoRA pairs of a skill; raises `AdapterError`."""
    config = read_config(skill.adapter_config)
    check_adapter_header(skill.adapter_weights, config)
    weights = read_tensors(skill.adapter_weights)
    return config, weights, lora_pairs(weights, config)


def check_adapter_header(path: Path, config: AdapterConfig) -> dict[str, tuple[int, int]]:
    """Check what the header promises against the config, before a tensor is read.

    Returns `(out_features, in_features)` by module. Raises `AdapterError`.
    """
    specs, _ = read_header(path)
    return _check_pairs({name: spec.shape for name, spec in specs.items()}, config, str(path))


def check_adapter(skill: Skill) -> None:
    """Every check of a skill's adapter and head that needs no backbone.

    Raises `AdapterError`. Fit for `Registry(check=...)`: it takes memory for one tensor at a time,
    and does not load torch.
    """
    config = read_config(skill.adapter_config)
    check_adapter_header(skill.adapter_weights, config)
    check_finite(skill.adapter_weights)
    if skill.head_weights:
        check_finite(skill.head_weights)


def check_against_modules(
    pairs: Mapping[str, LoraPair] | Shapes,
    modules: Shapes,
    config: AdapterConfig,
    *,
    where: str = "adapter",
) -> None:
    """Check that an adapter fits a backbone, whose linear layers are `modules`.

    Every pair must land on a module, fit its shape and be targeted by the config; every module
    that the config targets must have its pair; and there must be at least one.

    Raises `AdapterError` that names the first module at fault.
    """
    hint = "the adapter was trained on another backbone"
    if not pairs:
        raise AdapterError("the adapter holds no tensors", where=where)
    for name, pair in pairs.items():
        shape = pair.shape if isinstance(pair, LoraPair) else pair
        if name not in modules:
            raise AdapterError(f"the backbone has no linear layer {name!r}", where=where, hint=hint)
        if shape != modules[name]:
            raise AdapterError(
                f"{name}: the adapter is for (out, in) = {shape}, the backbone has {modules[name]}",
                where=where,
                hint=hint,
            )
        if not config.targets(name):
            raise AdapterError(
                f"tensors for {name!r}, which adapter_config.json does not target",
                where=where,
                hint="config and weights belong to different trainings",
            )
    missing = [name for name in modules if name not in pairs and config.targets(name)]
    if missing:
        raise AdapterError(
            f"no tensors for {len(missing)} targeted modules, the first is {missing[0]!r}",
            where=where,
            hint="config and weights belong to different trainings, or to another backbone",
        )


def fingerprint_status(
    metadata: Mapping[str, str],
    backbone_fingerprint: str,
    declared: tuple[str, ...] = (),
    *,
    where: str | None = None,
) -> Literal["match", "declared", "unknown"]:
    """How an adapter meets a backbone: `metadata` are its weights', `declared` its `backbones:`.

    `unknown` means that the weights do not say what they were trained on: serve with a warning.
    Raises `AdapterError` if they say another backbone than this one and it is not declared.
    """
    trained_on = metadata.get(BACKBONE_KEY)
    if trained_on == backbone_fingerprint:
        return "match"
    if backbone_fingerprint in declared:
        return "declared"
    if trained_on is None:
        return "unknown"
    raise AdapterError(
        f"trained on the backbone {trained_on}, not on {backbone_fingerprint}",
        where=where,
        hint="if the skill was measured to work on this one too, list its fingerprint under "
        "backbones: in skill.yaml",
    )


def _key(module: str, side: str) -> str:
    return f"{_PREFIX}{module}.{side}.weight"


def _check_pairs(
    shapes: Mapping[str, tuple[int, ...]], config: AdapterConfig, where: str
) -> dict[str, tuple[int, int]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        module, _, side = name.removesuffix(".weight").rpartition(".")
        module = module.removeprefix(_PREFIX)
        if side not in _SIDES or name != _key(module, side):
            raise AdapterError(
                f"unexpected tensor {name[:200]!r}",
                where=where,
                hint=f"LoRA tensors are called {_key('MODULE', 'lora_A')} and "
                f"{_key('MODULE', 'lora_B')}",
            )
        if len(shape) != 2 or 0 in shape:
            raise AdapterError(f"{name}: shape {shape}, but LoRA is two-dimensional", where=where)
        found.setdefault(module, {})[side] = shape
    if not found:
        raise AdapterError("the adapter holds no tensors", where=where)
    modules: dict[str, tuple[int, int]] = {}
    for module, sides in found.items():
        for side in _SIDES:
            if side not in sides:
                raise AdapterError(f"{_key(module, side)} is missing", where=where)
        a, b = sides["lora_A"], sides["lora_B"]
        rank = config.rank(module)
        for side, has in (("lora_A", a[0]), ("lora_B", b[1])):
            if has != rank:
                limit = f"; the limit is {MAX_RANK}" if has > MAX_RANK else ""
                raise AdapterError(
                    f"{_key(module, side)}: rank {has}, but the config says {rank}{limit}",
                    where=where,
                )
        if rank > max(b[0], a[1]):
            raise AdapterError(
                f"{_key(module, 'lora_A')}: rank {rank} exceeds both sides of the layer "
                f"{(b[0], a[1])}",
                where=where,
            )
        modules[module] = (b[0], a[1])
    return modules
