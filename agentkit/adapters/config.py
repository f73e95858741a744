"""`adapter_config.json`, as PEFT writes it, read against an allow-list.

Every key that PEFT 0.21 writes for LoRA is known here. What changes the arithmetic and is not
served, and what names a module or a class, is refused with its reason; a key that is not known is
refused too, because ignoring it could mean a silently different adapter. Nothing is imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import SchemaError

from agentkit.errors import AdapterError

MAX_RANK = 1024
MAX_CONFIG_BYTES = 4_000_000

_Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
_Rank: TypeAlias = Annotated[int, Field(ge=1, le=MAX_RANK)]
_Number = TypeVar("_Number", int, float)
_Token: TypeAlias = Annotated[int, Field(ge=0)]

_ALL_LINEAR = "all-linear"
_OUTPUT_LAYERS = ("lm_head", "embed_out")
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")

# Initialisations that change the backbone's own weights, so that the saved adapter does not fit
# the backbone that the skill is served with.
_CHANGES_BACKBONE = ("pissa", "olora", "corda", "loftq", "lora_ga")

_NEUTRAL: Mapping[str, tuple[Any, str]] = {
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
    "use_dora": (False, "DoRA is not served; train with use_dora=False"),
    "use_qalora": (False, "QALoRA is not served"),
    "velora_config": (None, "VeLoRA is not served"),
}
"""The one value that each of these keys may have (or null), and why no other."""

_UNUSED = frozenset(("inference_mode", "lora_dropout", "qalora_group_size", "fan_in_fan_out"))
"""Keys that play no part in inference, whatever they say."""


class LoraConfig(BaseModel):
    """What a LoRA adapter does, by PEFT's names: adds `scaling * B @ A` to linear layers.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685. Which layers, which rank and which scaling
    follow PEFT's own rules for names and patterns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    peft_type: Literal["LORA"]
    r: _Rank
    lora_alpha: FiniteFloat
    target_modules: list[_Name] | _Name
    """Names or name endings, or one regular expression that must match the whole name."""
    exclude_modules: list[_Name] | _Name | None = None
    layers_to_transform: list[_Token] | _Token | None = None
    layers_pattern: list[_Name] | str | None = None
    rank_pattern: dict[_Name, _Rank] = Field(default_factory=dict, max_length=10_000)
    alpha_pattern: dict[_Name, FiniteFloat] = Field(default_factory=dict, max_length=10_000)
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (https://arxiv.org/abs/2312.03732) instead of alpha / r."""
    alora_invocation_tokens: list[_Token] | None = None
    """Activated LoRA (https://arxiv.org/abs/2504.12397): the adapter acts from these tokens on."""
    init_lora_weights: bool | str = True
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: Literal["CAUSAL_LM", "FEATURE_EXTRACTION"] | None = None
    peft_version: str | None = None

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _compiles(cls, value: list[str] | str | None) -> list[str] | str | None:
        if isinstance(value, str) and value != _ALL_LINEAR:
            _matcher(value)
        if value == []:
            raise ValueError("must name at least one module")
        return value

    @field_validator("layers_pattern")
    @classmethod
    def _plain(cls, value: list[str] | str | None) -> list[str] | str | None:
        for pattern in [value] if isinstance(value, str) else value or ():
            if not re.fullmatch(r"[A-Za-z0-9_.]*", pattern):
                raise ValueError(f"must be a plain name, not {pattern!r}")
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _keys_compile(cls, value: dict[str, Any]) -> dict[str, Any]:
        for pattern in value:
            _ending_matcher(pattern)
        return value

    @field_validator("init_lora_weights")
    @classmethod
    def _keeps_backbone(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and value.startswith(_CHANGES_BACKBONE):
            raise ValueError(
                f"{value!r} changes the backbone's weights; convert the adapter with "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> LoraConfig:
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform needs target_modules to be a list")
        return self

    def targets(self, module: str) -> bool:
        """Whether the backbone's linear layer of that name carries this adapter."""
        if _named_by(self.exclude_modules, module):
            return False
        if self.target_modules == _ALL_LINEAR:
            return module.rpartition(".")[2] not in _OUTPUT_LAYERS
        if not _named_by(self.target_modules, module):
            return False
        if isinstance(self.target_modules, str) or module in self.target_modules:
            return True
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        index = self._layer_index(module)
        return index == layers if isinstance(layers, int) else index in layers

    def rank(self, module: str) -> int:
        """The rank of the adapter on that module."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """The factor on `B @ A` for that module."""
        rank = self.rank(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _layer_index(self, module: str) -> int | None:
        if not self.layers_pattern:
            found = _LAYER.match(module)
            return int(found[1]) if found else None
        names = self.layers_pattern
        for name in [names] if isinstance(names, str) else names:
            found = re.match(rf"(?:^|.*?\.){re.escape(name)}\.(\d+)\.", module)
            if found:
                return int(found[1])
        return None


AdapterConfig: TypeAlias = LoraConfig
"""Any kind of adapter that is served."""

KINDS: Mapping[str, type[AdapterConfig]] = {"LORA": LoraConfig}
"""By `peft_type`."""


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
    unknown = sorted(values.keys() - model.model_fields.keys() - _NEUTRAL.keys() - _UNUSED)
    if unknown:
        raise AdapterError(
            "unknown keys: " + ", ".join(map(repr, unknown)),
            where=where,
            hint="save the adapter again with PEFT 0.21 or remove them if they mean nothing",
        )
    for key, (neutral, reason) in _NEUTRAL.items():
        value = values.get(key)
        if value not in (None, neutral) and not (value in ([], False) and neutral is None):
            raise AdapterError(f"{key} is {_shown(value)}", where=where, hint=reason)
    chosen = {
        key: value
        for key, value in values.items()
        if key in model.model_fields and value is not None
    }
    try:
        return model.model_validate(chosen)
    except ValidationError as cause:
        first = cause.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else "config"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise AdapterError(
                f"{key} is missing or null", where=where, hint="save the adapter again with PEFT"
            ) from cause
        shown = f", not {_shown(first['input'])}" if first["loc"] else ""
        raise AdapterError(f"{key}: {message}{shown}", where=where) from cause


def _named_by(names: list[str] | str | None, module: str) -> bool:
    if names is None:
        return False
    if isinstance(names, str):
        return _matches(_matcher(names), module)
    return module in names or any(module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    for pattern, value in patterns.items():
        if _matches(_ending_matcher(pattern), module):
            return value
    return default


def _matches(matcher: TypeAdapter[str], text: str) -> bool:
    try:
        matcher.validate_python(text)
    except ValidationError:
        return False
    return True


def _matcher(pattern: str) -> TypeAdapter[str]:
    """Matches whole names. Raises ValueError if `pattern` is not a regular expression."""
    _compile(pattern)  # by itself, so that a stray parenthesis cannot close the group below
    return _compile(rf"\A(?:{pattern})\z")


def _ending_matcher(pattern: str) -> TypeAdapter[str]:
    """Matches names that end with `pattern` after a dot or as a whole, as PEFT has it."""
    _compile(pattern)
    return _compile(rf"\A(?:.*\.)?(?:{pattern})\z")


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> TypeAdapter[str]:
    # Pydantic matches with the Rust `regex` crate, whose time is linear in the text and whose
    # compiled size is bounded; Python's `re` would let a hostile pattern run for ever.
    try:
        return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    except SchemaError as cause:
        raise ValueError(
            f"{pattern[:80]!r} is not a regular expression without look-around and "
            "back-references, or too large"
        ) from cause


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
