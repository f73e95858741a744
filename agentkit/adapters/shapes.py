"""What tensors an adapter's file must hold, judged by names and shapes before any is read.

LoRA and DoRA are named as PEFT names them (`base_model.model.MODULE.lora_A.weight`), prefix tuning
too (`prompt_embeddings`). A bottleneck stands under the name of its sub-layer:
`base_model.model.model.layers.0.mlp.bottleneck_down.weight`, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from agentkit.adapters.kinds import (
    MAX_RANK,
    AdapterConfig,
    BottleneckConfig,
    HybridConfig,
    LoraConfig,
    PrefixConfig,
)
from agentkit.errors import AdapterError

PREFIX = "base_model.model."
PROMPT_KEY = "prompt_embeddings"
BOTTLENECK_PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")
_SIDES = ("lora_A", "lora_B")
_MARK = ".bottleneck_"

TensorShapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Tensor name to shape."""


def lora_key(module: str, side: str) -> str:
    """The name of LoRA's tensor `side` (`lora_A` or `lora_B`) of a module."""
    return f"{PREFIX}{module}.{side}.weight"


def magnitude_key(module: str) -> str:
    """The name of DoRA's magnitudes of a module."""
    return f"{PREFIX}{module}.lora_magnitude_vector"


def bottleneck_key(sub_layer: str, part: str) -> str:
    """The name of one of `BOTTLENECK_PARTS` of a sub-layer."""
    return f"{PREFIX}{sub_layer}{_MARK}{part}"


def lora_part(
    shapes: TensorShapes, config: LoraConfig | HybridConfig
) -> tuple[TensorShapes, LoraConfig]:
    """The tensors that LoRA answers for, and its config."""
    if isinstance(config, LoraConfig):
        return shapes, config
    return {name: s for name, s in shapes.items() if _MARK not in name}, config.lora


def check_shapes(shapes: TensorShapes, config: AdapterConfig, where: str) -> None:
    """Raise `AdapterError` if the tensors are not those of the config's kind, whole and fitting."""
    if not shapes:
        raise AdapterError("the adapter holds no tensors", where=where)
    if isinstance(config, PrefixConfig):
        _check_prompt(shapes, config, where)
        return
    if isinstance(config, LoraConfig):
        lora_shapes(shapes, config, where)
        return
    if isinstance(config, BottleneckConfig):
        bottleneck_shapes(shapes, where)
        return
    lora, of_lora = lora_part(shapes, config)
    lora_shapes(lora, of_lora, where)
    bottleneck_shapes({name: s for name, s in shapes.items() if _MARK in name}, where)


def lora_shapes(shapes: TensorShapes, config: LoraConfig, where: str) -> dict[str, tuple[int, int]]:
    """`(out_features, in_features)` by module. Raises `AdapterError`."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        module, _, side = name.removesuffix(".weight").rpartition(".")
        module = module.removeprefix(PREFIX)
        magnitude = config.use_dora and name == magnitude_key(module)
        if not magnitude and (side not in _SIDES or name != lora_key(module, side)):
            raise AdapterError(
                f"unexpected tensor {name[:200]!r}",
                where=where,
                hint=f"LoRA tensors are called {lora_key('MODULE', 'lora_A')} and "
                f"{lora_key('MODULE', 'lora_B')}",
            )
        if len(shape) != (1 if magnitude else 2) or 0 in shape:
            raise AdapterError(f"{name}: shape {shape}, but LoRA is two-dimensional", where=where)
        found.setdefault(module, {})[side] = shape
    if not found:
        raise AdapterError("the adapter holds no tensors", where=where)
    return {module: _pair_shape(module, sides, config, where) for module, sides in found.items()}


def _pair_shape(
    module: str, sides: Mapping[str, tuple[int, ...]], config: LoraConfig, where: str
) -> tuple[int, int]:
    for side in _SIDES:
        if side not in sides:
            raise AdapterError(f"{lora_key(module, side)} is missing", where=where)
    a, b = sides["lora_A"], sides["lora_B"]
    rank = config.rank(module)
    for side, has in (("lora_A", a[0]), ("lora_B", b[1])):
        if has != rank:
            limit = f"; the limit is {MAX_RANK}" if has > MAX_RANK else ""
            raise AdapterError(
                f"{lora_key(module, side)}: rank {has}, but the config says {rank}{limit}",
                where=where,
            )
    if rank > max(b[0], a[1]):
        raise AdapterError(
            f"{lora_key(module, 'lora_A')}: rank {rank} exceeds both sides of the layer "
            f"{(b[0], a[1])}",
            where=where,
        )
    magnitudes = sides.get("lora_magnitude_vector")
    if config.use_dora and magnitudes != (b[0],):
        raise AdapterError(
            f"{magnitude_key(module)}: DoRA needs {b[0]} magnitudes, found {magnitudes or 'none'}",
            where=where,
        )
    return b[0], a[1]


def bottleneck_shapes(shapes: TensorShapes, where: str) -> dict[str, tuple[int, int]]:
    """`(hidden, width)` by sub-layer. Raises `AdapterError`."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        sub_layer, _, part = name.removeprefix(PREFIX).partition(_MARK)
        if part not in BOTTLENECK_PARTS or name != bottleneck_key(sub_layer, part):
            raise AdapterError(
                f"unexpected tensor {name[:200]!r}",
                where=where,
                hint="a bottleneck's tensors are called "
                f"{bottleneck_key('SUBLAYER', 'down.weight')} and so on",
            )
        found.setdefault(sub_layer, {})[part] = shape
    if not found:
        raise AdapterError("the adapter holds no bottleneck", where=where)
    sizes = {}
    for sub_layer, parts in found.items():
        for part in BOTTLENECK_PARTS:
            if part not in parts:
                raise AdapterError(f"{bottleneck_key(sub_layer, part)} is missing", where=where)
        down = parts["down.weight"]
        if len(down) != 2 or 0 in down:
            raise AdapterError(
                f"{bottleneck_key(sub_layer, 'down.weight')}: shape {down} is no matrix",
                where=where,
            )
        width, hidden = down
        fitting = ((width, hidden), (width,), (hidden, width), (hidden,))
        for part, shape in zip(BOTTLENECK_PARTS, fitting, strict=True):
            if parts[part] != shape:
                raise AdapterError(
                    f"{bottleneck_key(sub_layer, part)}: shape {parts[part]}, expected {shape}",
                    where=where,
                )
        sizes[sub_layer] = (hidden, width)
    return sizes


def _check_prompt(shapes: TensorShapes, config: PrefixConfig, where: str) -> None:
    wanted = (config.num_virtual_tokens, 2 * config.num_layers * config.token_dim)
    if dict(shapes) != {PROMPT_KEY: wanted}:
        raise AdapterError(
            f"the config says one tensor {PROMPT_KEY!r} of shape {wanted}, the file holds "
            + ", ".join(f"{name[:100]!r} {shape}" for name, shape in list(shapes.items())[:3]),
            where=where,
            hint="save the adapter with PEFT's save_pretrained, which folds a projection in",
        )
