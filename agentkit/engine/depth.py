"""Some layers of a decoder only: the lower ones once for all skills, the upper ones per skill."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
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


@contextmanager
def kept_inputs(layers: nn.ModuleList, wanted: Collection[int]) -> Iterator[Mapping[int, Tensor]]:
    """Within the block, what each forward gives to some layers, `(tokens, hidden)` by layer.

    As many as there are layers stands for what the last one gives, before the final norm.
    """
    kept: dict[int, Tensor] = {}

    def keep(index: int, states: Tensor) -> None:
        kept[index] = states[0]

    def entering(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(index, kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        return hook

    def leaving(_: nn.Module, __: Any, output: Any) -> None:
        keep(len(layers), output[0] if isinstance(output, tuple) else output)

    hooks = []
    try:
        for index in wanted:
            if index < len(layers):
                enter = entering(index)
                hooks.append(layers[index].register_forward_pre_hook(enter, with_kwargs=True))
            else:
                hooks.append(layers[-1].register_forward_hook(leaving))
        yield kept
    finally:
        for one in hooks:
            one.remove()


def decoder_layers(model: nn.Module, count: int) -> nn.ModuleList | None:
    """The list of the model's layers; None where it has no such list."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return None
