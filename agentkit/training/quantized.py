"""Frozen linear layers in eight bits: a quarter of float32's memory, and gradients pass through.

Each row of a weight is kept as int8 with a scale of its own, as LLM.int8() has it
(https://arxiv.org/abs/2208.07339) without its outliers; only the weight in use is ever dequantised,
and neither it nor the layer's input is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_LARGEST = 127.0


class Int8Linear(nn.Linear):
    """A frozen linear layer with int8 weights and a scale for each of its outputs."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # its own would take the memory of a whole layer
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / _LARGEST
        levels = (weight / scale[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(levels, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _frozen_product(input, self.weight, self.scale)
        return output if self.bias is None else output + self.bias


class _FrozenProduct(torch.autograd.Function):
    """`input @ (levels * scale).T`, with a gradient for the input alone."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(levels, scale)
        # Eight bits are exact in bfloat16 as well; scales are put on the smaller side, the output.
        return functional.linear(input, levels.to(input.dtype)) * scale.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        levels, scale = ctx.saved_tensors
        gradient = gradients[0]
        return (gradient * scale.to(gradient.dtype)) @ levels.to(gradient.dtype), None, None


_frozen_product: Any = _FrozenProduct.apply


def quantize_layers(decoder: Any) -> None:
    """Put every linear layer of a decoder's layers into eight bits, one after the other."""
    for layer in decoder.layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, Int8Linear(child))
