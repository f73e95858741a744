"""Which parts of a backbone an adapter can act on, and at which depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A linear module of the backbone: its name, its sizes, and the layer it belongs to."""

    name: str
    inputs: int
    outputs: int
    layer: int
    """Index of its layer; the number of layers for a module that comes after all of them."""
    module: nn.Module


def adaptable_modules(model: nn.Module, layers: int) -> Mapping[str, ModuleSpec]:
    """Every linear module of `model` by name: `nn.Linear`, and GPT-2's transposed `Conv1D`."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
        else:
            continue
        match = _LAYER.search(name)
        found[name] = ModuleSpec(
            name, inputs, outputs, int(match.group(1)) if match else layers, module
        )
    return found
