"""What the same task head reaches on the frozen backbone: an adapter is worth what it adds."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from agentkit.adapters.heads import ChoiceHead, Head
from agentkit.skill.manifest import Manifest
from agentkit.training.fitting import checkpoint_key, fit
from agentkit.training.lower import LowerStates, layers_only
from agentkit.training.measure import calibrate, measure_packs
from agentkit.training.methods import attach
from agentkit.training.model import PackModel
from agentkit.training.packs import Pack
from agentkit.training.spec import HEAD_EPOCHS, TrainSpec
from agentkit.training.workplace import is_remembered, remembered

WORTH = 0.03
"""What an adapter has to add for its training to have been worth more than the head's alone."""
_MAIN = ("accuracy", "mean_average_precision")
_OF_A_HEAD = (
    "head_learning_rate",
    "evidence_weight",
    "max_minutes",
    "packs_per_step",
    "pack_tokens",
    "max_packs",
    "tuning_packs",
    "dtype",
    "quantization",
    "seed",
    "data",
)
"""Settings that a head's training depends on: with others changed, it is the same."""


def frozen_figures(
    model: Any,
    decoder: Any,
    head: Head,
    train_packs: Sequence[Pack],
    tuning_packs: Sequence[Pack],
    states: LowerStates,
    spec: TrainSpec,
    manifest: Manifest,
    *,
    lowest: int,
    backbone: str,
    work: Path,
    console: Console,
    device: torch.device,
) -> tuple[dict[str, Any], float]:
    """What a copy of `head`, trained on the frozen backbone alone, measures on the tuning packs,
    and the seconds that it took.

    `model` has no adapter yet and stays as it is; `backbone` is its fingerprint, `lowest` the
    layer whose states the training begins with, from which these go on. Remembered in `work`, so
    that a training that was killed does not do it again. Nothing where there is no room for both:
    each pass would compute them anew.
    """
    learnt = [p for p in train_packs if p.answer_at or not isinstance(head, ChoiceHead)]
    own: dict[str, Any] = {name: getattr(spec, name) for name in _OF_A_HEAD}
    alone = TrainSpec(method="head", epochs=HEAD_EPOCHS, **own)
    key = checkpoint_key(alone, [*learnt, *tuning_packs], backbone, head)
    count = len(decoder.layers)

    def found() -> tuple[dict[str, Any], float]:
        began = time.monotonic()
        console.print(f"{manifest.name}: the same head on the frozen backbone, to compare with")
        with Progress(console=console) as progress:
            for depth in (lowest, count):
                states.compute(decoder, [*learnt, *tuning_packs], depth, progress)
        taught = copy.deepcopy(head)
        with layers_only(decoder, range(count, count), final_norm=True):
            attached = attach(model, alone, (), ())
            trained = PackModel(decoder, model.lm_head, taught, spec.evidence_weight, attached)
            checkpoints = work / "checkpoints" / key
            fit(
                trained,
                learnt,
                states,
                alone,
                checkpoints=checkpoints,
                console=console,
                device=device,
            )
            trained.eval()
            calibrate(trained, tuning_packs, states)
            figures = measure_packs(trained, tuning_packs, states, manifest)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return figures, round(time.monotonic() - began, 1)

    file = work / "measured.json"
    if not is_remembered(file, f"frozen {key}"):
        both = [*train_packs, *tuning_packs]
        if not states.room_for(both, (lowest, count)):
            console.print(
                f"{manifest.name}: no room for the states of all layers; frozen_baseline left out"
            )
            return {}, 0.0
    figures, seconds = remembered(file, f"frozen {key}", found)
    return figures, seconds


def beside_frozen(tuning: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What an adapter added to the frozen backbone with the same head, as a sentence."""
    frozen, trained = tuning.get("frozen", {}), tuning.get("trained", {})
    name = next((name for name in _MAIN if name in frozen and name in trained), None)
    if name is None:
        return None
    added = round(trained[name] - frozen[name], 4)
    many = f" ({trained['questions']} questions)" if "questions" in trained else ""
    said = (
        f"{name.replace('_', ' ')} {trained[name]:.3f} on the tuning rows{many}, {added:+.3f} over "
        "the frozen backbone with such a head"
    )
    writes = "loss" in trained  # a head alone writes no better than the backbone
    if added < WORTH and not writes:
        said += (
            ": little; measure both on rows held out: `method: head` needs no adapter "
            f"(with `epochs: {HEAD_EPOCHS:g}`)"
        )
    return said
