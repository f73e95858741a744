"""A `train.yaml` with open settings to one with none: layers, size and what is searched for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from agentkit.adapters.heads import Head
from agentkit.errors import SkillError
from agentkit.training.fitting import checkpoint_key
from agentkit.training.layer_selection import (
    LayerChoice,
    draw_layers,
    given_layers,
    layers_of_skill,
)
from agentkit.training.methods import module_names
from agentkit.training.packs import Pack
from agentkit.training.probing import choose_layers
from agentkit.training.search import best_size, draw_search, search, size_losses
from agentkit.training.spec import TrainSpec
from agentkit.training.stages import started_from
from agentkit.training.workplace import remembered


def settle(
    spec: TrainSpec,
    model: Any,
    packs: Sequence[Pack],
    head: Head | None,
    *,
    backbone: str,
    skill: Path,
    origin: Path,
    work: Path,
    console: Console,
) -> tuple[TrainSpec, LayerChoice, dict[str, Any]]:
    """The settings to train with, the layers to adapt, and what was measured to find them.

    `backbone` is the model's fingerprint; paths count from `origin`. What was measured is kept in
    `work`, so that a training that was killed does not measure it again. The model is left as it
    was; pictures of what was measured go into the skill folder.
    Raises `SkillError` for modules or layers that the backbone does not have.
    """
    for name in ("layers.svg", "search.svg"):  # an earlier training's
        (skill / name).unlink(missing_ok=True)
    if spec.method == "head":
        return _head_alone(spec, head)
    count = int(model.config.num_hidden_layers)
    spec = spec.model_copy(update={"modules": module_names(model, spec)})
    said = _Said(console)
    found: dict[str, Any] = {}

    def measured(what: str, find: Callable[[], Any]) -> Any:
        key = f"{what} {checkpoint_key(spec, packs, backbone, head)}"
        return remembered(work / "measured.json", key, find)

    if spec.layers_of:
        choice = layers_of_skill(started_from(spec.layers_of, origin, skill, backbone), count)
    elif spec.layers.strip() == "auto":
        choice = LayerChoice.from_json(
            measured("layers", lambda: choose_layers(model, spec, packs, head, said=said).to_json())
        )
    else:
        choice = LayerChoice(given_layers(spec.layers, count), "given")
    if choice.method != "given":
        console.print(f"layers: {choice.named} ({choice.method})")
    if choice.scores:
        draw_layers(skill / "layers.svg", choice, skill.name)
    if spec.search:
        named = ",".join(map(str, choice.chosen))
        spec, found["search"] = search(
            model,
            spec.model_copy(update={"layers": named}),
            packs,
            head,
            store=work / "search.sqlite",
            key=checkpoint_key(spec, packs, backbone, head),
            said=said,
        )
        best = ", ".join(f"{name} {value}" for name, value in found["search"]["best"].items())
        console.print(f"search: {best or 'as given'} (of {len(found['search']['trials'])} trials)")
        draw_search(skill / "search.svg", found["search"], skill.name)
        if spec.layers != named:
            choice = LayerChoice(given_layers(spec.layers, count), "search")
    if spec.size == "auto":
        layers = ",".join(map(str, choice.chosen))
        found["sizes"] = measured(
            f"sizes {layers}",
            lambda: size_losses(model, spec, packs, choice.chosen, head, said=said),
        )
        spec = best_size(spec, found["sizes"])
        named = "reduction_factor" if spec.method == "bottleneck" else "rank"
        console.print(f"size: {named} {getattr(spec, named):g}")
    return spec, choice, found


def _head_alone(
    spec: TrainSpec, head: Head | None
) -> tuple[TrainSpec, LayerChoice, dict[str, Any]]:
    if head is None:
        raise SkillError(
            "there is no task head to train: the skill answers in words",
            where="train.yaml",
            hint="method head is for answers that a head gives; choose another method",
        )
    if spec.search or spec.size:
        raise SkillError(
            "a task head alone has neither layers nor a size to be found",
            where="train.yaml",
            hint="leave `search` and `size` out, or choose another method",
        )
    return spec, LayerChoice((), "none"), {}


class _Said:
    """Stateful: passes on what is said at most once a second."""

    def __init__(self, console: Console) -> None:
        self._console, self._next = console, 0.0

    def __call__(self, text: str) -> None:
        if time.monotonic() >= self._next:
            self._console.print(text)
            self._next = time.monotonic() + 1.0
