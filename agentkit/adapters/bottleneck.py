"""Bottlenecks: served as deltas on sub-layers, trained as modules hooked onto a model.

`kinds.BottleneckConfig` says what one computes. The sub-layer's output is what its attention or
feed-forward module gives, before any norm that the architecture puts after it (Gemma's) and before
the residual; the parallel form's input is what that module is given, after the norm before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import linear

from agentkit.adapters.kinds import BottleneckConfig, NonLinearity
from agentkit.adapters.layers import AttentionPort, ModuleSpec, adaptable_modules
from agentkit.adapters.shapes import bottleneck_key
from agentkit.adapters.weights import BottleneckParts
from agentkit.errors import AdapterError

NON_LINEARITIES: Mapping[NonLinearity, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class BottleneckDelta:
    """Adds `up(non_linearity(down(z)))` to a sub-layer's outputs, in the backbone's type."""

    __slots__ = ("_act", "_parallel", "down", "down_bias", "up", "up_bias")

    def __init__(
        self,
        parts: BottleneckParts,
        config: BottleneckConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def ready(tensor: Tensor, factor: float = 1.0) -> Tensor:
            return (tensor.to(torch.float32) * factor).to(device=device, dtype=dtype).contiguous()

        self.down = ready(parts.down)
        """`(width, hidden)`."""
        self.down_bias = ready(parts.down_bias)
        self.up = ready(parts.up, config.scaling)
        """`(hidden, width)`, scaling included, as in `up_bias`."""
        self.up_bias = ready(parts.up_bias, config.scaling)
        self._act = NON_LINEARITIES[config.non_linearity]
        self._parallel = config.parallel

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        low = self._act(linear(inputs if self._parallel else outputs, self.down, self.down_bias))
        return outputs.add_(linear(low, self.up, self.up_bias))

    @property
    def silent(self) -> bool:
        """Whether it adds nothing whatever the inputs are."""
        return not (bool(self.up.any()) or bool(self.up_bias.any()))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.down, self.down_bias, self.up, self.up_bias

    @property
    def nbytes(self) -> int:
        return sum(int(tensor.nbytes) for tensor in self.tensors)


def bottleneck_deltas(
    parts: Mapping[str, BottleneckParts],
    config: BottleneckConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, BottleneckDelta]:
    """Bottlenecks by the name of their sub-layer, ready for the slots of a backbone."""
    return {name: BottleneckDelta(one, config, dtype, device) for name, one in parts.items()}


def check_bottlenecks(
    parts: Mapping[str, BottleneckParts],
    modules: Mapping[str, ModuleSpec],
    config: BottleneckConfig,
    *,
    where: str,
) -> None:
    """Check that bottlenecks fit a backbone: each on a sub-layer, none missing, sizes right.

    Raises `AdapterError` that names the first sub-layer at fault.
    """
    hint = "the adapter was trained on another backbone"
    placed = {spec.name: spec for spec in _placed(modules, config)}
    for name, one in parts.items():
        if name not in modules or modules[name].part == "linear":
            raise AdapterError(f"the backbone has no sub-layer {name!r}", where=where, hint=hint)
        if name not in placed:
            raise AdapterError(
                f"a bottleneck at {name!r}, where adapter_config.json places none",
                where=where,
                hint="config and weights belong to different trainings",
            )
        hidden = placed[name].outputs
        has, wants = tuple(one.down.shape), (config.width(hidden), hidden)
        if has != wants:
            raise AdapterError(
                f"{name}: the adapter is for (width, hidden) = {has}, this backbone and "
                f"reduction_factor {config.reduction_factor:g} make {wants}",
                where=where,
                hint=hint,
            )
    missing = [name for name in placed if name not in parts]
    if missing or not placed:
        raise AdapterError(
            f"no tensors for {len(missing)} sub-layers, the first is {missing[0]!r}"
            if missing
            else "adapter_config.json places no bottleneck on this backbone",
            where=where,
            hint="config and weights belong to different trainings, or to another backbone",
        )


def _placed(modules: Mapping[str, ModuleSpec], config: BottleneckConfig) -> list[ModuleSpec]:
    return [
        spec
        for spec in modules.values()
        if spec.part != "linear" and config.places(spec.layer, spec.part)
    ]


class Bottleneck(nn.Module):
    """One trainable bottleneck; it starts as the identity."""

    def __init__(self, hidden: int, config: BottleneckConfig) -> None:
        super().__init__()
        width = config.width(hidden)
        self.down = nn.Linear(hidden, width)
        self.up = nn.Linear(width, hidden)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self._config = config

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Adapted outputs of a sub-layer, from what it was given and what it gave."""
        chosen = inputs if self._config.parallel else outputs
        low = NON_LINEARITIES[self._config.non_linearity](self.down(chosen.to(self.down.weight)))
        added: Tensor = self._config.scaling * self.up(low)
        return outputs + added.to(outputs)


class Bottlenecks(nn.Module):
    """Stateful: the trainable bottlenecks of a model, on it while `attached`.

    Its parameters are all that there is to train; the model's own stay as they are. PEFT's LoRA
    may be on the same model's linear layers: together they are a hybrid.
    """

    def __init__(self, model: nn.Module, config: BottleneckConfig) -> None:
        """For `model`, a transformers decoder. Raises `AdapterError` where it has no sub-layer."""
        super().__init__()
        settings: Any = model.config
        modules = adaptable_modules(model, settings.get_text_config().num_hidden_layers)
        placed = _placed(modules, config)
        if not placed:
            raise AdapterError("the model has no sub-layer where the config places a bottleneck")
        self.config = config
        self._specs = {str(index): spec for index, spec in enumerate(placed)}
        self.layers = nn.ModuleDict(
            {index: Bottleneck(spec.outputs, config) for index, spec in self._specs.items()}
        )

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block the model computes with these bottlenecks."""
        with ExitStack() as undo:
            for index, spec in self._specs.items():
                module = spec.module
                target = module.wrapped if isinstance(module, AttentionPort) else module
                hook = _hook(self.layers[index])
                undo.callback(target.register_forward_hook(hook, with_kwargs=True).remove)
            yield

    def tensors(self) -> dict[str, Tensor]:
        """The weights by the names that a skill folder gives them."""
        return {
            bottleneck_key(self._specs[index].name, part): tensor.detach().cpu().contiguous()
            for index, layer in self.layers.items()
            for part, tensor in layer.state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take weights that `tensors()` gave; others in the mapping are left alone.

        Raises `KeyError` for one that is missing, `RuntimeError` for one of another shape.
        """
        for index, layer in self.layers.items():
            name = self._specs[index].name
            layer.load_state_dict(
                {part: tensors[bottleneck_key(name, part)] for part in layer.state_dict()}
            )


def _hook(bottleneck: nn.Module) -> Callable[..., Any]:
    def adapt(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        inputs = args[0] if args else kwargs["hidden_states"]
        if isinstance(outputs, tuple):
            return (bottleneck(inputs, outputs[0]), *outputs[1:])
        return bottleneck(inputs, outputs)

    return adapt
