"""`adapter_config.json`, as PEFT writes it, read against an allow-list.

Every key that PEFT 0.21 writes for LoRA and for prefix tuning is known here. What changes the
arithmetic and is not served, and what names a module or a class, is refused with its reason; a key
that is not known is refused too, because ignoring it could mean a silently different adapter.
Nothing is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentkit.adapters.kinds import (
    KINDS,
    AdapterConfig,
    BottleneckConfig,
    HybridConfig,
    LoraConfig,
    PrefixConfig,
)
from agentkit.errors import AdapterError

MAX_CONFIG_BYTES = 4_000_000

_LORA_NEUTRAL: Mapping[str, tuple[Any, str]] = {
    "arrow_config": (None, "Arrow routing is not served"),
    "auto_mapping": (None, "it names a class to import; train with task_type='CAUSAL_LM'"),
    "bias": ("none", "trained biases are not served; train with bias='none'"),
    "corda_config": (None, "only plain LoRA is served"),
    "ensure_weight_tying": (False, "only linear layers are adapted"),
    "eva_config": (None, "set it to null once the adapter is trained"),
    "kasa_config": (None, "KaSA is not served"),
    "layer_replication": (None, "the backbone's layers are served as they are"),
    "loftq_config": ({}, "the backbone's weights are served as they are"),
    "lora_bias": (False, "a bias on lora_B is not served"),
    "lora_ga_config": (None, "only plain LoRA is served"),
    "megatron_config": (None, "Megatron is not used"),
    "megatron_core": ("megatron.core", "it names a module to import"),
    "modules_to_save": (None, "whole trained modules are not served; adapt linear layers only"),
    "monteclora_config": (None, "MonteCLoRA is not served"),
    "target_parameters": (None, "only linear layers are adapted"),
    "trainable_token_indices": (None, "trained embeddings are not served"),
    "use_bdlora": (None, "BD-LoRA is not served"),
    "use_qalora": (False, "QALoRA is not served"),
    "velora_config": (None, "VeLoRA is not served"),
}
"""The one value that each of these keys may have (or null), and why no other."""

_NEUTRAL: Mapping[type[AdapterConfig], Mapping[str, tuple[Any, str]]] = {
    LoraConfig: _LORA_NEUTRAL,
    BottleneckConfig: {},
    HybridConfig: {},
    PrefixConfig: {key: _LORA_NEUTRAL[key] for key in ("auto_mapping", "modules_to_save")},
}

_UNUSED = frozenset(
    (
        "encoder_hidden_size",
        "fan_in_fan_out",
        "inference_mode",
        "init_weights",
        "lora_dropout",
        "prefix_projection",
        "qalora_group_size",
    )
)
"""Keys that play no part in inference, whatever they say."""


def read_config(path: Path) -> AdapterConfig:
    """Read `adapter_config.json`; raises `AdapterError` that names the key at fault."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as cause:
        raise AdapterError(f"cannot be read: {cause.strerror}", where=str(path)) from cause
    return parse_config(content, str(path))


def parse_config(content: bytes, where: str) -> AdapterConfig:
    """The config in `content` (JSON); `where` is only named in messages.

    Raises `AdapterError` that names the key at fault.
    """
    if len(content) > MAX_CONFIG_BYTES:
        raise AdapterError(f"more than {MAX_CONFIG_BYTES:,} bytes", where=where)
    try:
        values = json.loads(content, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as cause:
        raise AdapterError(f"not valid JSON: {cause}", where=where) from cause
    if not isinstance(values, dict):
        raise AdapterError("must be a JSON object", where=where)
    kind = values.get("peft_type")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise AdapterError(
            f"peft_type {kind!r} is not served",
            where=where,
            hint="supported kinds: " + ", ".join(KINDS),
        )
    chosen = _check_keys(values, model, where)
    if model is HybridConfig:
        for part in ("lora", "bottleneck"):
            chosen[part] = _check_keys(chosen.get(part), KINDS[part.upper()], f"{where}: {part}")
    try:
        return model.model_validate(chosen)
    except ValidationError as cause:
        first = cause.errors(include_url=False)[0]
        depth = 2 if model is HybridConfig else 1
        key = ".".join(map(str, first["loc"][:depth])) or "config"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise AdapterError(
                f"{key} is missing or null", where=where, hint="save the adapter again with PEFT"
            ) from cause
        shown = f", not {_shown(first['input'])}" if first["loc"] else ""
        raise AdapterError(f"{key}: {message}{shown}", where=where) from cause


def _check_keys(values: Any, model: type[AdapterConfig], where: str) -> dict[str, Any]:
    """The values that matter, once every key is known and the neutral ones are neutral."""
    if not isinstance(values, dict):
        raise AdapterError("must be a JSON object", where=where)
    neutrals = _NEUTRAL[model]
    unknown = sorted(values.keys() - model.model_fields.keys() - neutrals.keys() - _UNUSED)
    if unknown:
        raise AdapterError(
            "unknown keys: " + ", ".join(map(repr, unknown)),
            where=where,
            hint="save the adapter again with PEFT 0.21 or remove them if they mean nothing",
        )
    for key, (neutral, reason) in neutrals.items():
        value = values.get(key)
        if value not in (None, neutral) and not (value in ([], False) and neutral is None):
            raise AdapterError(f"{key} is {_shown(value)}", where=where, hint=reason)
    return {
        key: value
        for key, value in values.items()
        if key in model.model_fields and value is not None
    }


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
