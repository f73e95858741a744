"""In-place activation by slots, for one skill or for a different one in each stretch of tokens.

Every adapted module is wrapped once and holds its adapters by slot; one shared value says which
slot is active. Activating sets that value: no walk over modules, no copy, the same cost however
many adapters are loaded. The frozen weights are never touched, and a module without the active
slot runs the backbone's own code, so the bare backbone's results stay bit-identical.

Where the tokens of one forward belong to several skills, the value is a plan instead: which slot
acts on which tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Protocol

from torch import Tensor, nn

from agentkit.adapters.layers import ModuleSpec
from agentkit.engine.mixing import MixedPlan, Segment, merged


class Delta(Protocol):
    """What an adapter does at one module, token by token."""

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The module's adapted outputs `(1, tokens, out)`; `outputs` may be changed in place."""
        ...


class Activation:
    """Stateful: what is active now: a slot, a plan over tokens, or None, the bare backbone."""

    __slots__ = ("plan", "slot")

    def __init__(self) -> None:
        self.slot: int | None = None
        self.plan: MixedPlan | None = None


class AdaptedForward:
    """Stateful: takes the place of a module's `forward` and holds its adapters by slot."""

    __slots__ = ("_activation", "_forward", "_name", "_own", "deltas")

    def __init__(self, name: str, module: nn.Module, activation: Activation) -> None:
        """Puts itself into the module."""
        self._name = name
        self._activation = activation
        self.deltas: dict[int, Delta] = {}
        self._own = "forward" not in vars(module)
        self._forward: Callable[[Tensor], Tensor] = module.forward
        module.forward = self

    def __call__(self, input: Tensor) -> Tensor:
        outputs = self._forward(input)
        if self._activation.plan is not None:
            return self._activation.plan.apply(self._name, self.deltas, input, outputs)
        delta = self.deltas.get(self._activation.slot)  # type: ignore[arg-type]
        return outputs if delta is None else delta(input, outputs)

    def restore(self, module: nn.Module) -> None:
        """Leave the module as it was before."""
        if self._own:
            del module.forward  # the class's own comes back
        else:
            module.forward = self._forward


class Slots:
    """Stateful: the adapters that a backbone's modules hold, and which one is active.

    Not thread-safe: the engine's loop is the only one to use it.
    """

    def __init__(self, modules: Mapping[str, ModuleSpec]) -> None:
        self._modules = modules
        self._wrapped: dict[str, AdaptedForward] = {}
        self._activation = Activation()
        self._plan: MixedPlan | None = None
        self._numbers = count(1)  # never reused, so a stale number can mean no other adapter

    def fill(self, deltas: Mapping[str, Delta]) -> int:
        """Put an adapter's parts into the modules they name; returns its slot."""
        slot = next(self._numbers)
        for name, delta in deltas.items():
            wrapped = self._wrapped.get(name)
            if wrapped is None:
                wrapped = AdaptedForward(name, self._modules[name].module, self._activation)
                self._wrapped[name] = wrapped
            wrapped.deltas[slot] = delta
        return slot

    def empty(self, slot: int) -> None:
        """Take an adapter out; modules that hold none afterwards are as they were."""
        if self._activation.slot == slot:
            self._activation.slot = None
        self._plan = None
        for name, wrapped in list(self._wrapped.items()):
            wrapped.deltas.pop(slot, None)
            if not wrapped.deltas:
                wrapped.restore(self._modules[name].module)
                del self._wrapped[name]

    def release(self) -> None:
        """Forget what the last mixed batch stacked; it is stacked again when it is needed."""
        self._plan = None

    @property
    def active(self) -> int | None:
        return self._activation.slot

    def activate(self, slot: int | None) -> None:
        """Make `slot` the active one; None is the bare backbone. Constant time."""
        self._activation.slot = slot

    @contextmanager
    def activated(self, slot: int | None) -> Iterator[None]:
        """`slot` within the block, the one before it afterwards."""
        before = self._activation.slot
        self._activation.slot = slot
        try:
            yield
        finally:
            self._activation.slot = before

    @contextmanager
    def mixed(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Each segment's slot on its tokens, for one forward; `segments` tile its tokens."""
        segments = merged(segments)
        if len(segments) <= 1:
            with self.activated(segments[0].slot if segments else None):
                yield
            return
        if self._plan is None or self._plan.segments != tuple(segments):
            self._plan = MixedPlan(segments)
        self._plan.begin()
        before = self._activation.plan
        self._activation.plan = self._plan
        try:
            yield
        finally:
            self._activation.plan = before
