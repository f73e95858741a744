"""LoRA at one module: a low-rank product beside the frozen weights; DoRA, which rescales them.

Hu et al. 2021, https://arxiv.org/abs/2106.09685; Liu et al. 2024, https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from agentkit.adapters.joint import Joint, reading_alike
from agentkit.adapters.layers import ModuleSpec
from agentkit.adapters.weights import LoraPair

_FEW = 32
"""Tokens that are multiplied in float32 where the factors are held so."""


class Down:
    """The products down of the modules of one adapter that read the same states."""

    __slots__ = ("modules", "ranks", "weight")

    def __init__(
        self, pairs: Mapping[str, LoraPair], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.modules = tuple(pairs)
        self.ranks = [pair.rank for pair in pairs.values()]
        stacked = torch.cat([pair.a for pair in pairs.values()])
        self.weight = stacked.T.to(device=device, dtype=dtype).contiguous()
        """`(in_features, sum of ranks)`."""

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        """By module, `(tokens, rank)`.

        Factors held in float32 beside narrower states multiply a few tokens as they are (torch's
        narrow products on a CPU take longer to set up than these take at all) and many as the
        states.
        """
        flat = inputs.reshape(-1, inputs.shape[-1])
        weight = self.weight
        if weight.dtype != flat.dtype:
            if flat.shape[0] <= _FEW:
                flat = flat.to(weight.dtype)
            else:
                weight = weight.to(flat.dtype)
        low = flat.mm(weight)
        return (low,) if len(self.ranks) == 1 else torch.split_with_sizes(low, self.ranks, dim=1)


class LoraDelta:
    """Adds `scaling * (x @ a.T) @ b.T` to a module's outputs."""

    __slots__ = ("down", "index", "joint", "up")

    def __init__(self, pair: LoraPair, down: Down, joint: Joint, index: int) -> None:
        self.down = down
        """Shared with the modules that read the same states; `joint` gives its product."""
        self.joint = joint
        self.index = index
        """Which of these modules this one is."""
        like = down.weight
        self.up = (pair.b.to(torch.float32) * pair.scaling).to(like).T.contiguous()
        """`(rank, out_features)`, scaling included."""

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        low = self.joint.take(self.index, inputs)
        up = self.up if self.up.dtype == low.dtype else self.up.to(low.dtype)
        flat = outputs.view(-1, outputs.shape[-1])
        if low.dtype != flat.dtype:
            flat.add_(low.mm(up))
        else:
            flat.addmm_(low, up)
        return outputs

    @property
    def silent(self) -> bool:
        """Whether it adds nothing whatever the inputs are."""
        return not all(bool(tensor.any()) for tensor in self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return torch.split_with_sizes(self.down.weight, self.down.ranks, dim=1)[self.index], self.up

    @property
    def nbytes(self) -> int:
        return sum(int(tensor.nbytes) for tensor in self.tensors)


class DoraDelta:
    """Turns `W x + bias` into `scale * (W x + scaling * b a x) + bias`.

    `scale` is the trained magnitude over the norm of each row of `W + scaling * b a`. The weights
    are frozen, so it is computed once, in float32.
    """

    __slots__ = ("product", "scale", "shift")

    def __init__(self, product: LoraDelta, scale: Tensor, bias: Tensor | None) -> None:
        """`product` has `scale` on its outputs already."""
        self.product = product
        self.scale = scale.to(product.up.dtype)
        """`(out_features,)`."""
        self.shift: Tensor | None = None
        """What gives the bias back, which is not scaled."""
        if bias is not None:
            self.shift = (bias.float() * (1 - scale)).to(self.scale.dtype)

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        # Summed apart first, which rounds as PEFT's does.
        change = outputs * (self.scale - 1)
        if self.shift is not None:
            change.add_(self.shift)
        return outputs.add_(self.product(inputs, change))

    @property
    def silent(self) -> bool:
        """Whether it changes nothing whatever the inputs are."""
        return self.product.silent and bool((self.scale == 1).all())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        found = (*self.product.tensors, self.scale)
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
    """The parts of a LoRA adapter by module name, ready for the slots of a backbone.

    `dtype` is what they are held in.
    """
    found = {}
    for modules in reading_alike(pairs):
        down = Down({module: pairs[module] for module in modules}, dtype, device)
        joint = Joint(down)
        for index, module in enumerate(modules):
            found[module] = LoraDelta(pairs[module], down, joint, index)
    return found


def dora_deltas(
    pairs: Mapping[str, LoraPair], modules: Mapping[str, ModuleSpec], dtype: torch.dtype
) -> dict[str, DoraDelta]:
    """The parts of a DoRA adapter by module name; `modules` hold the frozen weights."""
    scales, scaled = {}, {}
    device = torch.device("cpu")
    for name, pair in pairs.items():
        weight = frozen_weight(modules[name].module)
        device = weight.device
        scales[name] = dora_scale(pair, weight)
        scaled[name] = replace(pair, b=pair.b.to(device, torch.float32) * scales[name][:, None])
    return {
        name: DoraDelta(product, scales[name], modules[name].module.bias)  # type: ignore[arg-type]
        for name, product in lora_deltas(scaled, dtype, device).items()
    }
