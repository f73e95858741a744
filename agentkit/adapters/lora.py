"""LoRA at one module: a low-rank product beside the frozen weights.

Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear

from agentkit.adapters.weights import LoraPair


class LoraDelta:
    """Adds `scaling * (x @ a.T) @ b.T` to a module's outputs, in the backbone's type."""

    __slots__ = ("down", "up")

    def __init__(self, pair: LoraPair, dtype: torch.dtype, device: torch.device) -> None:
        self.down = pair.a.to(device=device, dtype=dtype).contiguous()
        """`(rank, in_features)`."""
        scaled = pair.b.to(torch.float32) * pair.scaling
        self.up = scaled.to(device=device, dtype=dtype).T.contiguous()
        """`(rank, out_features)`, scaling included."""

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        low = linear(inputs, self.down)
        flat = outputs.view(-1, outputs.shape[-1])
        flat.addmm_(low.view(-1, low.shape[-1]), self.up)
        return outputs

    @property
    def silent(self) -> bool:
        """Whether it adds nothing whatever the inputs are."""
        return not (bool(self.up.any()) and bool(self.down.any()))

    @property
    def nbytes(self) -> int:
        return int(self.down.nbytes + self.up.nbytes)


def lora_deltas(
    pairs: Mapping[str, LoraPair], dtype: torch.dtype, device: torch.device
) -> dict[str, LoraDelta]:
    """The parts of a LoRA adapter by module name, ready for the slots of a backbone."""
    return {name: LoraDelta(pair, dtype, device) for name, pair in pairs.items()}
