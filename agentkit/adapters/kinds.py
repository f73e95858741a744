"""What each kind of adapter says of itself in `adapter_config.json`, one model for each kind."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    field_validator,
    model_validator,
)

from agentkit.adapters.patterns import by_pattern, ending_matcher, matcher, named_by

MAX_RANK = 1024
MAX_VIRTUAL_TOKENS = 4096

Kind: TypeAlias = Literal["lora", "dora", "activated", "bottleneck", "hybrid", "prefix", "head"]
"""`head` is a task head alone, read off the bare backbone's states."""
NonLinearity: TypeAlias = Literal["relu", "gelu", "silu", "tanh"]
SubLayer: TypeAlias = Literal["attention", "feed-forward"]

_Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
_Rank: TypeAlias = Annotated[int, Field(ge=1, le=MAX_RANK)]
_Token: TypeAlias = Annotated[int, Field(ge=0)]
_Task: TypeAlias = Literal["CAUSAL_LM", "FEATURE_EXTRACTION"]

_ALL_LINEAR = "all-linear"
_OUTPUT_LAYERS = ("lm_head", "embed_out")
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")

# Initialisations that change the backbone's own weights, so that the saved adapter does not fit
# the backbone that the skill is served with.
_CHANGES_BACKBONE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class _Config(BaseModel):
    """What every kind says: whose it is. None of it changes the arithmetic."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: _Task | None = None
    peft_version: str | None = None


class LoraConfig(_Config):
    """What a LoRA adapter does, by PEFT's names: adds `scaling * B @ A` to linear layers.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685. Which layers, which rank and which scaling
    follow PEFT's own rules for names and patterns.
    """

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
    use_dora: bool = False
    """DoRA (https://arxiv.org/abs/2402.09353): each output has a trained magnitude."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (https://arxiv.org/abs/2312.03732) instead of alpha / r."""
    alora_invocation_tokens: list[_Token] | None = None
    """Activated LoRA (https://arxiv.org/abs/2504.12397): the adapter acts from these tokens on."""
    init_lora_weights: bool | str = True

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _compiles(cls, value: list[str] | str | None) -> list[str] | str | None:
        if isinstance(value, str) and value != _ALL_LINEAR:
            matcher(value)
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
            ending_matcher(pattern)
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
        if self.use_dora and self.alora_invocation_tokens is not None:
            raise ValueError("an activated LoRA cannot be weight-decomposed too")
        if self.alora_invocation_tokens == []:
            raise ValueError("alora_invocation_tokens must name at least one token")
        return self

    @property
    def kind(self) -> Kind:
        if self.alora_invocation_tokens is not None:
            return "activated"
        return "dora" if self.use_dora else "lora"

    def targets(self, module: str) -> bool:
        """Whether the backbone's linear layer of that name carries this adapter."""
        if named_by(self.exclude_modules, module):
            return False
        if self.target_modules == _ALL_LINEAR:
            return module.rpartition(".")[2] not in _OUTPUT_LAYERS
        if not named_by(self.target_modules, module):
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
        return by_pattern(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """The factor on `B @ A` for that module."""
        rank = self.rank(module)
        alpha = by_pattern(self.alpha_pattern, module, self.lora_alpha)
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


class BottleneckConfig(_Config):
    """Small feed-forward nets with a residual of their own, beside the sub-layers of a decoder.

    A sub-layer maps `x` to `y`, before the residual adds them. With `f(z) = scaling *
    up(non_linearity(down(z)))`, biases included, a sequential adapter gives `y + f(y)`, a parallel
    one `y + f(x)`. `down` maps to `hidden // reduction_factor`. Houlsby et al. 2019
    (https://arxiv.org/abs/1902.00751) put one after attention and one after the feed-forward
    sub-layer, Pfeiffer et al. 2020 (https://arxiv.org/abs/2005.00247) after the feed-forward one
    alone; parallel ones are He et al.'s (https://arxiv.org/abs/2110.04366).

    PEFT cannot load this kind or the hybrid: `peft.utils.register_peft_method` takes the members of
    its own `PeftType` enumeration alone, and its tuners replace layers that give one tensor, which
    an attention sub-layer does not.
    """

    peft_type: Literal["BOTTLENECK"] = "BOTTLENECK"
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    parallel: bool = False
    reduction_factor: Annotated[FiniteFloat, Field(ge=1)] = 16.0
    non_linearity: NonLinearity = "relu"
    scaling: FiniteFloat = 1.0
    layers_to_transform: list[_Token] | _Token | None = None

    @property
    def kind(self) -> Kind:
        return "bottleneck"

    def places(self, layer: int, part: SubLayer) -> bool:
        """Whether that sub-layer of a layer carries a bottleneck."""
        chosen = self.layers_to_transform
        if isinstance(chosen, int):
            chosen = [chosen]
        if chosen and layer not in chosen:
            return False
        return part == "feed-forward" or self.placement == "houlsby"

    def width(self, hidden: int) -> int:
        """Numbers between down and up, for a backbone whose states have `hidden`."""
        return max(1, int(hidden // self.reduction_factor))


class HybridConfig(_Config):
    """LoRA on linear layers and bottlenecks on sub-layers, in one adapter."""

    peft_type: Literal["HYBRID"] = "HYBRID"
    lora: LoraConfig
    bottleneck: BottleneckConfig

    @model_validator(mode="after")
    def _plain_lora(self) -> HybridConfig:
        if self.lora.alora_invocation_tokens is not None:
            raise ValueError("the LoRA of a hybrid cannot be an activated one")
        return self

    @property
    def kind(self) -> Kind:
        return "hybrid"


class PrefixConfig(_Config):
    """Keys and values that stand before every prompt (Li and Liang 2021).

    https://arxiv.org/abs/2101.00190. PEFT folds a trained projection into what it saves.
    """

    peft_type: Literal["PREFIX_TUNING"]
    num_virtual_tokens: Annotated[int, Field(ge=1, le=MAX_VIRTUAL_TOKENS)]
    num_layers: Annotated[int, Field(ge=1, le=10_000)]
    num_attention_heads: Annotated[int, Field(ge=1, le=10_000)]
    """Heads of keys and values."""
    token_dim: Annotated[int, Field(ge=1, le=1_000_000)]
    """All of these heads' widths together."""
    num_transformer_submodules: Literal[1] | None = None

    @model_validator(mode="after")
    def _whole_heads(self) -> PrefixConfig:
        if self.token_dim % self.num_attention_heads:
            raise ValueError("token_dim must be a multiple of num_attention_heads")
        return self

    @property
    def kind(self) -> Kind:
        return "prefix"


AdapterConfig: TypeAlias = LoraConfig | BottleneckConfig | HybridConfig | PrefixConfig
"""Any kind of adapter that is served."""

KINDS: Mapping[str, type[AdapterConfig]] = {
    "LORA": LoraConfig,
    "BOTTLENECK": BottleneckConfig,
    "HYBRID": HybridConfig,
    "PREFIX_TUNING": PrefixConfig,
}
"""By `peft_type`."""
