"""Modules that read the same states have their products made at once.

The projections of one attention to queries, keys and values take one input, and so do the gate
and up projections of a feed-forward net. Small products cost more to start than to compute, so
one product for all of them, whose outputs each module then takes its own of, saves most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

_ALIKE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def reading_alike(modules: Iterable[str]) -> list[tuple[str, ...]]:
    """Module names in groups that read the same states, as transformers names them.

    What is not known to share its input stands alone. A group that is no such group in some
    architecture costs time and changes no result: `Joint` looks at what each module is given.
    """
    groups: dict[tuple[str, int | str], list[str]] = {}
    for module in modules:
        parent, _, name = module.rpartition(".")
        kinds = [index for index, alike in enumerate(_ALIKE) if name in alike]
        groups.setdefault((parent, kinds[0] if kinds else name), []).append(module)
    return [tuple(group) for group in groups.values()]


class Joint:
    """Stateful: what several modules make of one input, computed when the first of them asks.

    Each may take its part once, in place; what is left is forgotten when all are taken, or when
    one asks for another input.
    """

    __slots__ = ("_inputs", "_parts", "_product")

    def __init__(self, product: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """`product` gives the modules' parts in order."""
        self._product = product
        self._inputs: Tensor | None = None
        self._parts: dict[int, Tensor] = {}

    def take(self, index: int, inputs: Tensor) -> Tensor:
        """The part of module `index`."""
        if inputs is not self._inputs or index not in self._parts:
            self._inputs, self._parts = inputs, dict(enumerate(self._product(inputs)))
        part = self._parts.pop(index)
        if not self._parts:
            self._inputs = None
        return part
