"""LoRA at one module: a low-rank product beside the frozen weights; DoRA, which rescales them.

Hu et al. 2021, https://arxiv.org/abs/2106.09685; Liu et al. 2024, https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from agentkit.adapters.layers import ModuleSpec
from agentkit.adapters.weights import LoraPair

_FEW = 32
"""Tokens that are multiplied in float32 where the factors are held so."""


class LoraDelta:
    """Adds `scaling * (x @ a.T) @ b.T` to a module's outputs; `dtype` is what it is held in."""

    __slots__ = ("down", "up")

    def __init__(self, pair: LoraPair, dtype: torch.dtype, device: torch.device) -> None:
        self.down = pair.a.to(device=device, dtype=dtype).contiguous()
        """`(rank, in_features)`."""
        scaled = pair.b.to(torch.float32) * pair.scaling
        self.up = scaled.to(device=device, dtype=dtype).T.contiguous()
        """`(rank, out_features)`, scaling included."""

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return _add_product(inputs, self.down, self.up, outputs)

    @property
    def silent(self) -> bool:
        """Whether it adds nothing whatever the inputs are."""
        return not (bool(self.up.any()) and bool(self.down.any()))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.down, self.up

    @property
    def nbytes(self) -> int:
        return int(self.down.nbytes + self.up.nbytes)


class DoraDelta:
    """Turns `W x + bias` into `scale * (W x + scaling * b a x) + bias`; held in `dtype`.

    `scale` is the trained magnitude over the norm of each row of `W + scaling * b a`. The weights
    are frozen, so it is computed once, in float32.
    """

    __slots__ = ("down", "scale", "shift", "up")

    def __init__(self, pair: LoraPair, module: nn.Module, dtype: torch.dtype) -> None:
        weight = frozen_weight(module)
        device = weight.device
        scale = dora_scale(pair, weight)
        self.down = pair.a.to(device=device, dtype=dtype).contiguous()
        """`(rank, in_features)`."""
        scaled = pair.b.to(device, torch.float32) * (pair.scaling * scale)[:, None]
        self.up = scaled.to(dtype).T.contiguous()
        """`(rank, out_features)`, scaling and scale included."""
        self.scale = scale.to(dtype)
        """`(out_features,)`."""
        self.shift: Tensor | None = None
        """What gives the bias back, which is not scaled."""
        if module.bias is not None:
            bias: Tensor = module.bias.detach()  # type: ignore[operator]
            self.shift = (bias.float() * (1 - scale)).to(dtype)

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        outputs.mul_(self.scale)
        if self.shift is not None:
            outputs.add_(self.shift)
        return _add_product(inputs, self.down, self.up, outputs)

    @property
    def silent(self) -> bool:
        """Whether it changes nothing whatever the inputs are."""
        product = bool(self.up.any()) and bool(self.down.any())
        return not product and bool((self.scale == 1).all())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        found = (self.down, self.up, self.scale)
        return found if self.shift is None else (*found, self.shift)

    @property
    def nbytes(self) -> int:
        return sum(int(tensor.nbytes) for tensor in self.tensors)


def frozen_weight(module: nn.Module) -> Tensor:
    """A linear module's weight as `(out_features, in_features)`, whichever way it is stored."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight.T if isinstance(module, Conv1D) else weight


def dora_scale(pair: LoraPair, weight: Tensor) -> Tensor:
    """DoRA's factor on each output, `(out_features,)`, float32; `weight` is `(out, in)`."""
    if pair.magnitude is None:
        raise ValueError("the pair has no magnitudes")
    norms: Tensor = adapted_weight(pair, weight).norm(dim=1)
    return pair.magnitude.to(weight.device, torch.float32) / norms


def adapted_weight(pair: LoraPair, weight: Tensor) -> Tensor:
    """`weight + scaling * b @ a`, float32, without DoRA's factor."""
    a, b = (side.to(weight.device, torch.float32) for side in (pair.a, pair.b))
    return weight.to(torch.float32) + pair.scaling * (b @ a)


def lora_deltas(
    pairs: Mapping[str, LoraPair], dtype: torch.dtype, device: torch.device
) -> dict[str, LoraDelta]:
    """The parts of a LoRA adapter by module name, ready for the slots of a backbone."""
    return {name: LoraDelta(pair, dtype, device) for name, pair in pairs.items()}


def dora_deltas(
    pairs: Mapping[str, LoraPair], modules: Mapping[str, ModuleSpec], dtype: torch.dtype
) -> dict[str, DoraDelta]:
    """The parts of a DoRA adapter by module name; `modules` hold the frozen weights."""
    return {name: DoraDelta(pair, modules[name].module, dtype) for name, pair in pairs.items()}


def add_low_rank(inputs: Tensor, down: Tensor, up: Tensor, outputs: Tensor) -> None:
    """Add `(inputs @ down.T) @ up` to `outputs`, both `(tokens, width)`, in place.

    Factors held in float32 beside narrower states multiply a few tokens as they are (torch's
    narrow products on a CPU take longer to set up than these take at all) and many as the states.
    """
    if down.dtype != inputs.dtype:
        if len(inputs) <= _FEW:
            outputs.add_(inputs.to(down.dtype).mm(down.t()).mm(up))
            return
        down, up = down.to(inputs.dtype), up.to(inputs.dtype)
    outputs.addmm_(linear(inputs, down), up)


def _add_product(inputs: Tensor, down: Tensor, up: Tensor, outputs: Tensor) -> Tensor:
    add_low_rank(
        inputs.reshape(-1, inputs.shape[-1]), down, up, outputs.view(-1, outputs.shape[-1])
    )
    return outputs
