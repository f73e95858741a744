"""Which numbers the backbone computes with, by phase.

Reading many tokens is bound by arithmetic, writing one token per row by the weights' way through
memory. So on a CPU with bfloat16 instructions `auto` reads in bfloat16 and writes with an int8
copy of the weights, one scale for each output, made once at load beside the bfloat16 ones. What
is read (prefixes, task heads, scored choices, the first token of an answer) never meets int8.
The bfloat16 weights themselves are kept a second time in the order in which the processor takes
them, which torch's products otherwise bring them into at every call: the same sums, a sixth
sooner for a thousand tokens and a third sooner for sixteen.

What a row is written with so depends on how many rows are written with it, and two best tokens
that nearly tie may change places; `float32` gives the same logits in any company, up to 1e-4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

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
"""Rows up to which a step of writing takes int8. The kernel's time grows with every row; from the
fifth on the bfloat16 product is faster."""
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
_ROWS = 16
"""Tokens that the processor's order is chosen for; it serves any number."""
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


def has_phases(name: DtypeName, device: str) -> bool:
    """Whether a setting reads and writes with different weights on that device."""
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
        found = _split(outputs[None], self._widths)
        for own, bias in zip(found, self._biases, strict=True):
            if bias is not None:
                own.add_(bias)
        return found

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + self._scale.nbytes


class OrderedProduct:
    """The products of modules that read the same states, by weights in the processor's order."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        weights = [frozen_weight(one) for one in modules]
        biases = [
            torch.zeros(len(weight), dtype=weight.dtype) if one.bias is None else one.bias
            for one, weight in zip(modules, weights, strict=True)
        ]
        self._widths = [len(weight) for weight in weights]
        joined = torch.cat(weights).contiguous()
        self._bias = None if all(one.bias is None for one in modules) else torch.cat(biases)  # type: ignore[arg-type]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(joined, _ROWS)
        self.nbytes = joined.nbytes

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        """By module, `(1, tokens, out)`."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self._bias, "none", [], ""
        )
        return _split(outputs, self._widths)


def _split(outputs: Tensor, widths: Sequence[int]) -> Sequence[Tensor]:
    """By module; most products are one module's alone, and at one token every call counts."""
    return (outputs,) if len(widths) == 1 else torch.split_with_sizes(outputs, widths, dim=2)


class PhasedLinear:
    """Stateful: takes the place of a linear module's `forward`: int8 while a few rows write."""

    __slots__ = ("_few", "_index", "_many", "_phase")

    def __init__(self, few: Joint, many: Joint, index: int, phase: Phase) -> None:
        """`few` makes the int8 products and `many` the bfloat16 ones, this module's at `index`."""
        self._few = few
        self._many = many
        self._index = index
        self._phase = phase

    def __call__(self, input: Tensor) -> Tensor:
        joint = self._few if self._phase.few else self._many
        return joint.take(self._index, input)


class ShortNorm:
    """Takes the place of a root mean square norm's `forward`, in fewer calls of torch's.

    Transformers computes it in seven, which is most of what a norm of few tokens takes. torch's
    own is one call that makes as many inside; one token's states need two: their length, and a
    product with a number.
    """

    __slots__ = ("_eps", "_forward", "_size", "_weight", "_zero")

    def __init__(self, module: nn.Module) -> None:
        self._forward = module.forward
        self._weight: Tensor = module.weight.detach()  # type: ignore[operator]
        self._zero = torch.zeros_like(self._weight)
        self._size = len(self._weight)
        self._eps = float(module.variance_epsilon)  # type: ignore[arg-type]

    def __call__(self, input: Tensor) -> Tensor:
        if input.numel() != self._size:
            return functional.rms_norm(input, self._weight.shape, self._weight, self._eps)
        length = torch.linalg.vector_norm(input, dtype=torch.float32).item()
        scale = (length * length / self._size + self._eps) ** -0.5
        return torch.addcmul(self._zero, input, self._weight, value=scale)

    def agrees(self) -> bool:
        """Whether the module computes no other norm, by trying one token and two."""
        one = torch.linspace(-3, 5, self._size, dtype=self._weight.dtype)[None]
        try:
            return all(
                torch.allclose(self(tried), self._forward(tried), rtol=2**-6, atol=2**-8)
                for tried in (one, torch.cat([one, one + 1]))
            )
        except (TypeError, RuntimeError):
            return False


def _as_read(weight: Tensor) -> Tensor:
    """The same bytes in the form that torch sums fastest."""
    flat = weight.view(-1)
    return flat.view(torch.float32) if not len(flat) % 4 else flat


class PhasedWeights:
    """Stateful: two copies of a backbone's linear weights, each fastest in a phase of its own.

    Int8 for steps that write few rows, bfloat16 in the processor's order for all others.
    """

    def __init__(self, modules: Mapping[str, ModuleSpec], norms: Iterable[nn.Module] = ()) -> None:
        """Puts them into the modules; the modules' own weights stay as they are.

        `norms` are modules that may be root mean square norms.
        """
        self._phase = Phase()
        for module in norms:
            norm = ShortNorm(module)
            if norm.agrees():
                module.forward = norm
        self._few: list[Int8Product] = []
        self._many: list[OrderedProduct] = []
        linear = {name: spec for name, spec in modules.items() if spec.part == "linear"}
        for names in reading_alike(linear):
            specs = [linear[name] for name in names]
            # Products that fill the cache by themselves gain nothing together.
            small = sum(spec.inputs * spec.outputs for spec in specs) <= _CACHE
            for group in [specs] if small else [[spec] for spec in specs]:
                members = [spec.module for spec in group]
                self._few.append(Int8Product(members))
                self._many.append(OrderedProduct(members))
                few, many = Joint(self._few[-1]), Joint(self._many[-1])
                for index, module in enumerate(members):
                    module.forward = PhasedLinear(few, many, index, self._phase)

    @property
    def nbytes(self) -> Mapping[str, int]:
        """Memory of the copies."""
        return {
            "int8": sum(product.nbytes for product in self._few),
            "bfloat16, ordered": sum(product.nbytes for product in self._many),
        }

    @contextmanager
    def step(self, rows: int | None) -> Iterator[None]:
        """Within the block one forward writes a token in each of `rows`; None: it reads."""
        self._phase.few = rows is not None and rows <= FEW
        try:
            yield
        finally:
            self._phase.few = False
