"""Some layers of a decoder only: the lower ones once for all skills, the upper ones per skill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def only_layers(
    layers: nn.ModuleList, chosen: range, states: Tensor | None
) -> Iterator[Callable[[], Tensor]]:
    """Within the block the decoder runs just the `chosen` of its layers.

    `states` `(tokens, hidden)` are what the first of them takes, if it is not layer 0; the other
    layers hand on what they are given, so that positions, masks and caches keep their places.
    Yields a function that gives, after the forward, the states that layer `chosen.stop` takes.
    """
    taken: list[Tensor] = []

    def hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    def take(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        taken.append(hidden_states)
        return hidden_states

    given = None if states is None else states[None]

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": given}
        return (given, *args[1:]), kwargs

    replaced = [index for index in range(len(layers)) if index not in chosen]
    before = {index: vars(layers[index]).get("forward") for index in replaced}
    hook = None
    try:
        for index in replaced:
            layers[index].forward = take if index == chosen.stop else hand_on
        if given is not None:
            hook = layers[chosen.start].register_forward_pre_hook(begin, with_kwargs=True)
        yield lambda: taken[-1][0]
    finally:
        if hook is not None:
            hook.remove()
        for index in replaced:
            forward = before[index]
            if forward is None:
                vars(layers[index]).pop("forward", None)
            else:
                layers[index].forward = forward


def decoder_layers(model: nn.Module, count: int) -> nn.ModuleList | None:
    """The list of the model's layers; None where it has no such list."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return None
