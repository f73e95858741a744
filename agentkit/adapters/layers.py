"""Which parts of a backbone an adapter can act on, and at which depth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from agentkit.adapters.kinds import SubLayer

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_SUB_LAYER = re.compile(
    r"(?:^|\.)(?:layers|h|blocks)\.(?P<layer>\d+)\."
    r"(?:(?P<attention>self_attn|self_attention|attn|attention)|(?:mlp|feed_forward|ffn))"
)

Part: TypeAlias = Literal["linear"] | SubLayer


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A module of the backbone that adapters act on: its name, its sizes, and its layer."""

    name: str
    inputs: int
    outputs: int
    layer: int
    """Index of its layer; the number of layers for a module that comes after all of them."""
    module: nn.Module
    """Its `forward` takes one tensor and gives one."""
    part: Part = "linear"
    """A linear module, or a whole sub-layer, which maps states to what the residual adds."""


class AttentionPort(nn.Module):
    """Stateful: an attention sub-layer as a map from states `(batch, tokens, hidden)` to states.

    Attention takes positions, masks and caches beside the states and gives its weights, too. The
    `forward` that is set here sees the states alone; the rest of each call goes by it unchanged.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self._attention = (attention,)  # in a tuple, so that it is no child of this module
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._rest: tuple[Any, ...] = ()

    @property
    def wrapped(self) -> nn.Module:
        """The attention module itself."""
        return self._attention[0]

    @property
    def forward(self) -> Callable[[Tensor], Tensor]:
        return self._states

    @forward.setter
    def forward(self, adapted: Callable[[Tensor], Tensor]) -> None:
        def attend(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            named = "hidden_states" in kwargs
            states = kwargs.pop("hidden_states") if named else args[0]
            self._call = (() if named else args[1:], kwargs)
            try:
                outputs = adapted(states)
                return (outputs, *self._rest)
            finally:
                self._call, self._rest = ((), {}), ()

        self._attention[0].forward = attend

    @forward.deleter
    def forward(self) -> None:
        del self._attention[0].forward  # the class's own comes back

    def _states(self, states: Tensor) -> Tensor:
        args, kwargs = self._call
        attention = self._attention[0]
        outputs, *rest = type(attention).forward(attention, states, *args, **kwargs)
        self._rest = tuple(rest)
        return outputs  # type: ignore[no-any-return]


def adaptable_modules(model: nn.Module, layers: int) -> Mapping[str, ModuleSpec]:
    """What adapters can act on, by name.

    Every linear module (`nn.Linear`, and GPT-2's transposed `Conv1D`), and, where `model` says how
    wide its states are, the attention and feed-forward sub-layers of its layers.
    """
    found = {}
    config: Any = getattr(model, "config", None)
    hidden = config.get_text_config(decoder=True).hidden_size if config is not None else None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
        else:
            if hidden is not None and (match := _sub_layer(name)):
                attention = bool(match["attention"])
                found[name] = ModuleSpec(
                    name,
                    hidden,
                    hidden,
                    int(match["layer"]),
                    AttentionPort(module) if attention else module,
                    "attention" if attention else "feed-forward",
                )
            continue
        match = _LAYER.search(name)
        found[name] = ModuleSpec(
            name, inputs, outputs, int(match.group(1)) if match else layers, module
        )
    return found


def _sub_layer(name: str) -> re.Match[str] | None:
    match = _SUB_LAYER.search(name)
    return match if match and match.end() == len(name) else None
