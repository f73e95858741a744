"""Which layers are worth adapting: given in `train.yaml`, taken from another skill, or measured.

Three measures, each on a sample of the training packs:

- `gradient`: the norm of the loss's gradient in each layer's fresh adapter, as in the sensitivity
  scores of AdaLoRA (https://arxiv.org/abs/2303.10512). One pass, no training.
- `attention`: how far a short training of all layers changes what each layer's attention gives for
  the very same input.
- `validation`: a progressive search from the top. Ever more of the upper layers are trained for a
  short while, until the loss on packs that were kept aside gains too little.

The first two may choose layers anywhere; the last chooses the uppermost ones, under which
everything is computed once and shared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agentkit.errors import MissingExtraError, SkillError
from agentkit.pictures import picture

Importance: TypeAlias = Literal["gradient", "attention", "validation"]

_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")
_UPPER = re.compile(r"\s*upper\s+(\d+)\s*/\s*(\d+)\s*")
_LEAST_GAIN = 0.01
"""Share of the loss that one more step down must save."""


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The adapted layers and, where they were measured, what each scored."""

    chosen: tuple[int, ...]
    method: str
    scores: tuple[float, ...] = ()
    """By layer, larger is more important; for `validation` the loss saved by going down to it."""

    @property
    def named(self) -> str:
        """The layers as `train.yaml` takes them: `3, 20-29`."""
        runs: list[list[int]] = []
        for layer in self.chosen:
            if runs and layer == runs[-1][1] + 1:
                runs[-1][1] = layer
            else:
                runs.append([layer, layer])
        return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs)

    def to_json(self) -> dict[str, Any]:
        return {"chosen": list(self.chosen), "method": self.method, "scores": list(self.scores)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> LayerChoice:
        return cls(tuple(told["chosen"]), str(told["method"]), tuple(told["scores"]))


def given_layers(text: str, count: int) -> tuple[int, ...]:
    """The layers that `all`, `upper 1/3`, `20-29` or `3, 7, 20-29` names, of `count`.

    Raises `SkillError` for a text that names none, or one that is not there.
    """
    if text.strip() == "all":
        return tuple(range(count))
    upper = _UPPER.fullmatch(text)
    if upper is not None and 0 < int(upper[1]) <= int(upper[2]):
        return tuple(range(count - max(1, count * int(upper[1]) // int(upper[2])), count))
    chosen: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else -1
        if match is None or last < first or last >= count:
            raise SkillError(
                f"layers: {text!r} is not a range within 0-{count - 1}",
                where="train.yaml",
                hint='write "all", "auto", "upper 1/3", a range such as "20-29", or a list of them',
            )
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def layers_of_skill(folder: Path, count: int) -> LayerChoice:
    """The layers that another skill's adapter acts on.

    Raises `SkillError` if the folder does not say, or the layers are not this backbone's.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        # A hybrid says it of each of its two parts, which act on the same layers.
        named = config.get("lora", config).get("layers_to_transform")
        chosen = tuple(range(count)) if named is None else tuple(sorted(map(int, named)))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SkillError(
            "its layers cannot be read",
            where=str(folder / "adapter_config.json"),
            hint="layers_of names the folder of a trained skill",
        ) from error
    if not chosen or chosen[-1] >= count:
        raise SkillError(f"it adapts layers {chosen}, the backbone has {count}", where=str(folder))
    return LayerChoice(chosen, f"of {folder.name}")


def best_layers(scores: Sequence[float], size: int, method: str) -> LayerChoice:
    """The `size` layers of largest score, ties to the upper one."""
    ranked = sorted(range(len(scores)), key=lambda layer: (-scores[layer], -layer))
    return LayerChoice(tuple(sorted(ranked[:size])), method, tuple(round(s, 6) for s in scores))


def search_from_top(count: int, step: int, loss_of: Callable[[int], float]) -> LayerChoice:
    """Go down from the top by `step` layers while each step saves enough of the loss.

    `loss_of(first)` is the loss after training layers `first..count-1` for a while.
    """
    first, best = count, loss_of(count)
    scores = [0.0] * count
    while first > 0:
        lower = max(0, first - step)
        loss = loss_of(lower)
        gain = (best - loss) / max(abs(best), 1e-9)
        scores[lower:first] = [round(gain, 6)] * (first - lower)
        if first < count and gain < _LEAST_GAIN:
            break
        first, best = lower, min(best, loss)
    return LayerChoice(tuple(range(first, count)), "validation", tuple(scores))


def draw_layers(path: Path, choice: LayerChoice, title: str) -> None:
    """A bar for each layer's score, the chosen ones in colour; nothing without matplotlib."""
    if not choice.scores:
        return
    colours = ["#2f5d8a" if at in choice.chosen else "#c9d3dd" for at in range(len(choice.scores))]
    # A picture is an extra: the scores are in metrics.json.
    with suppress(MissingExtraError), picture(path, (6, 2.6)) as axes:
        axes.bar(range(len(choice.scores)), choice.scores, color=colours)
        axes.set(xlabel="layer", ylabel=f"importance ({choice.method})", title=title)
