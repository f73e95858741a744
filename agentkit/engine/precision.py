"""Which numbers the backbone computes with, by phase.

Reading many tokens is bound by arithmetic, writing one token per row by the weights' way through
memory. So on a CPU with bfloat16 instructions `auto` reads in bfloat16 and writes with an int8
copy of the weights, one scale for each output, made once at load beside the bfloat16 ones. What
is read (prefixes, task heads, scored choices, the first token of an answer) never meets int8.

What a row is written with so depends on how many rows are written with it, and two best tokens
that nearly tie may change places; `float32` gives the same logits in any company, up to 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from agentkit.adapters.joint import Joint, reading_alike
from agentkit.adapters.layers import ModuleSpec
from agentkit.adapters.lora import frozen_weight

TypeName: TypeAlias = Literal["float32", "bfloat16", "float16"]
DtypeName: TypeAlias = Literal["auto"] | TypeName
DTYPES: Mapping[TypeName, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FEW = 4
"""Rows up to which a step of writing takes int8. The kernel's time grows with every row; from
about 8 rows on the bfloat16 product is as fast."""
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
_LARGEST = 127
_CACHE = 1 << 20
"""Bytes of weights that are read ahead at once. The int8 kernel takes four outputs at a time,
an order that the processor's prefetching does not follow; a sum over the same bytes is read at the
memory's pace, and the product then finds them in the cache: both together take 0.7 of its time."""


def computing_type(name: DtypeName, device: str) -> torch.dtype:
    """The type of the weights and states under a setting; `auto` depends on the machine."""
    if name != "auto":
        return DTYPES[name]
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if kind == "cpu" and not _has_bfloat16():
        return torch.float32
    return torch.bfloat16


def writes_in_int8(name: DtypeName, device: str) -> bool:
    """Whether a setting writes with int8 weights on that device."""
    return name == "auto" and torch.device(device).type == "cpu" and _has_bfloat16()


def _has_bfloat16() -> bool:
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in _BFLOAT16)


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 `(out, in)` and bfloat16 scales `(out,)` whose product is nearest to `weight`.

    Symmetric, by output. The scale is rounded up to bfloat16 before the weights are divided by it,
    so that its rounding does not add to theirs: no weight is further off than half a scale.
    """
    rows = weight.detach().float()
    exact = rows.abs().amax(dim=1) / _LARGEST
    scale = exact.to(torch.bfloat16)
    scale = torch.where(scale.float() < exact, scale * (1 + 2**-7), scale)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    steps = (rows / scale.float()[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    return steps.to(torch.int8).contiguous(), scale


class Phase:
    """Stateful: whether the forward under way writes a token in each of a few rows."""

    __slots__ = ("few",)

    def __init__(self) -> None:
        self.few = False


class Int8Product:
    """The products of modules that read the same states, by an int8 copy of their weights."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        weights, scales = zip(*(quantized(frozen_weight(one)) for one in modules), strict=True)
        self._weight, self._scale = torch.cat(weights), torch.cat(scales)
        self._widths = [len(weight) for weight in weights]
        self._biases: list[Tensor | None] = [one.bias for one in modules]  # type: ignore[misc]
        outputs = 4 * max(1, _CACHE // (4 * self._weight.shape[1]))
        parts = zip(
            torch.split(self._weight, outputs), torch.split(self._scale, outputs), strict=True
        )
        self._blocks = [(weight, scale, _as_read(weight)) for weight, scale in parts]

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        """By module, `(1, tokens, out)`."""
        parts = []
        for weight, scale, ahead in self._blocks:
            ahead.sum()
            parts.append(torch._weight_int8pack_mm(inputs[0], weight, scale))
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        found = torch.split_with_sizes(outputs[None], self._widths, dim=2)
        for own, bias in zip(found, self._biases, strict=True):
            if bias is not None:
                own.add_(bias)
        return found

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + self._scale.nbytes


class PhasedLinear:
    """Stateful: takes the place of a linear module's `forward`: int8 while a few rows write."""

    __slots__ = ("_forward", "_index", "_joint", "_phase")

    def __init__(
        self, forward: Callable[[Tensor], Tensor], joint: Joint, index: int, phase: Phase
    ) -> None:
        """`joint` makes the int8 products, this module's at `index`."""
        self._forward = forward
        self._joint = joint
        self._index = index
        self._phase = phase

    def __call__(self, input: Tensor) -> Tensor:
        return self._joint.take(self._index, input) if self._phase.few else self._forward(input)


def _as_read(weight: Tensor) -> Tensor:
    """The same bytes in the form that torch sums fastest."""
    flat = weight.view(-1)
    return flat.view(torch.float32) if not len(flat) % 4 else flat


class Int8Writing:
    """Stateful: int8 copies of a backbone's linear weights, used in steps that write few rows."""

    def __init__(self, modules: Mapping[str, ModuleSpec]) -> None:
        """Puts them into the modules; the modules' own weights stay as they are."""
        self._phase = Phase()
        self._products: list[Int8Product] = []
        linear = {name: spec for name, spec in modules.items() if spec.part == "linear"}
        for names in reading_alike(linear):
            specs = [linear[name] for name in names]
            # Products that fill the cache by themselves gain nothing together.
            small = sum(spec.inputs * spec.outputs for spec in specs) <= _CACHE
            for group in [specs] if small else [[spec] for spec in specs]:
                product = Int8Product([spec.module for spec in group])
                joint = Joint(product)
                self._products.append(product)
                for index, spec in enumerate(group):
                    forward = spec.module.forward
                    spec.module.forward = PhasedLinear(forward, joint, index, self._phase)

    @property
    def nbytes(self) -> int:
        """Memory of the copies."""
        return sum(product.nbytes for product in self._products)

    @contextmanager
    def step(self, rows: int | None) -> Iterator[None]:
        """Within the block one forward writes a token in each of `rows`; None: it reads."""
        self._phase.few = rows is not None and rows <= FEW
        try:
            yield
        finally:
            self._phase.few = False
