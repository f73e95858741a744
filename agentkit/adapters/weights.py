"""An adapter's weights: do they fit their config, and the backbone that is to carry them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from agentkit.adapters.config import read_config
from agentkit.adapters.head_labels import check_labels
from agentkit.adapters.kinds import (
    AdapterConfig,
    BottleneckConfig,
    HybridConfig,
    LoraConfig,
    PrefixConfig,
)
from agentkit.adapters.shapes import (
    PROMPT_KEY,
    bottleneck_key,
    bottleneck_shapes,
    check_shapes,
    lora_key,
    lora_part,
    lora_shapes,
    magnitude_key,
)
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
    "Adapter",
    "BottleneckParts",
    "LoadedWeights",
    "LoraPair",
    "bare_head_metadata",
    "check_adapter",
    "check_adapter_header",
    "check_against_modules",
    "fingerprint_status",
    "load_adapter",
    "lora_pairs",
    "read_tensors",
]


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One LoRA module: its output gains `scaling * (x @ a.T) @ b.T`."""

    a: Tensor
    """`(rank, in_features)`."""
    b: Tensor
    """`(out_features, rank)`."""
    scaling: float
    magnitude: Tensor | None = None
    """DoRA's, `(out_features,)`: the norm of each row of the adapted weight."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)` of the linear layer that it belongs on."""
        return int(self.b.shape[0]), int(self.a.shape[1])


@dataclass(frozen=True, slots=True)
class BottleneckParts:
    """The tensors of one bottleneck."""

    down: Tensor
    """`(width, hidden)`."""
    down_bias: Tensor
    up: Tensor
    """`(hidden, width)`."""
    up_bias: Tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as its files have it; what its kind does not have is empty."""

    config: AdapterConfig
    weights: LoadedWeights
    pairs: Mapping[str, LoraPair]
    """LoRA by the name of a linear module."""
    bottlenecks: Mapping[str, BottleneckParts]
    """By the name of a sub-layer."""
    prompt: Tensor | None
    """Prefix tuning's keys and values, `(virtual tokens, 2 * layers * dim)`, as PEFT has them."""


Shapes: TypeAlias = Mapping[str, tuple[int, int]]
"""Module name to `(out_features, in_features)`."""


def lora_pairs(weights: LoadedWeights, config: LoraConfig) -> dict[str, LoraPair]:
    """The LoRA pairs by the name of the module they belong on (`model.layers.0.mlp.up_proj`).

    Raises `AdapterError` if a tensor is none of LoRA's, has no partner, or another rank than the
    config says.
    """
    return _pairs(weights, lora_shapes(_shapes(weights), config, str(weights.path)), config)


def load_adapter(skill: Skill) -> Adapter:
    """A skill's adapter, read and checked against its config; raises `AdapterError`."""
    config = read_config(skill.adapter_config)
    check_adapter_header(skill.adapter_weights, config)
    weights = read_tensors(skill.adapter_weights)
    where = str(weights.path)
    shapes = _shapes(weights)
    check_shapes(shapes, config, where)  # the file may have changed since its header was read
    if isinstance(config, PrefixConfig):
        return Adapter(config, weights, {}, {}, weights.tensors[PROMPT_KEY])
    pairs: dict[str, LoraPair] = {}
    bottlenecks: dict[str, BottleneckParts] = {}
    rest = shapes
    if isinstance(config, LoraConfig | HybridConfig):
        of_lora, lora = lora_part(shapes, config)
        pairs = _pairs(weights, lora_shapes(of_lora, lora, where), lora)
        rest = {name: shape for name, shape in shapes.items() if name not in of_lora}
    if isinstance(config, BottleneckConfig | HybridConfig):
        bottlenecks = {
            name: BottleneckParts(
                down=weights.tensors[bottleneck_key(name, "down.weight")],
                down_bias=weights.tensors[bottleneck_key(name, "down.bias")],
                up=weights.tensors[bottleneck_key(name, "up.weight")],
                up_bias=weights.tensors[bottleneck_key(name, "up.bias")],
            )
            for name in bottleneck_shapes(rest, where)
        }
    return Adapter(config, weights, pairs, bottlenecks, None)


def _shapes(weights: LoadedWeights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}


def _pairs(
    weights: LoadedWeights, modules: Mapping[str, tuple[int, int]], config: LoraConfig
) -> dict[str, LoraPair]:
    return {
        module: LoraPair(
            weights.tensors[lora_key(module, "lora_A")],
            weights.tensors[lora_key(module, "lora_B")],
            config.scaling(module),
            weights.tensors[magnitude_key(module)] if config.use_dora else None,
        )
        for module in modules
    }


def check_adapter_header(path: Path, config: AdapterConfig) -> None:
    """Check what the header promises against the config, before a tensor is read.

    Raises `AdapterError`.
    """
    specs, _ = read_header(path)
    check_shapes({name: spec.shape for name, spec in specs.items()}, config, str(path))


def check_adapter(skill: Skill) -> None:
    """Every check of a skill's adapter and head that needs no backbone.

    Raises `AdapterError`. Fit for `Registry(check=...)`: it takes memory for one tensor at a time,
    and does not load torch.
    """
    if skill.adapter:
        config = read_config(skill.adapter_config)
        check_adapter_header(skill.adapter_weights, config)
        check_finite(skill.adapter_weights)
    else:
        bare_head_metadata(skill)
    if skill.head_weights:
        metadata = read_header(skill.head_weights)[1]
        check_labels(metadata, skill.manifest, where=str(skill.head_weights))
        check_finite(skill.head_weights)


def bare_head_metadata(skill: Skill) -> Mapping[str, str]:
    """Metadata of the task head of a skill without an adapter, which names its backbone.

    Raises `AdapterError` if it names none: then it was trained with an adapter, which is missing.
    """
    metadata = read_header(skill.head_weights)[1] if skill.head_weights else {}
    if BACKBONE_KEY not in metadata:
        raise AdapterError(
            "the task head was trained with an adapter, which is missing",
            where=str(skill.path),
            hint="put adapter_config.json and adapter_model.safetensors beside it",
        )
    return metadata


def check_against_modules(
    pairs: Mapping[str, LoraPair] | Shapes,
    modules: Shapes,
    config: LoraConfig,
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
