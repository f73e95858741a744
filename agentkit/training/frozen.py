"""What the same task head reaches on the frozen backbone: an adapter is worth what it adds."""

from __future__ import annotations

import copy
import shutil
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
from agentkit.training.spec import TrainSpec
from agentkit.training.workplace import remembered

EPOCHS = 20.0
"""A head alone learns from states that are kept, in seconds: its passes need not be few."""
WORTH = 0.03
"""What an adapter has to add for its training to have been worth more than the head's alone."""
_MAIN = ("accuracy", "mean_average_precision")


class _NoRoomError(Exception):
    """The states of all layers are not all kept."""


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
) -> dict[str, Any]:
    """What a copy of `head`, trained on the frozen backbone alone, measures on the tuning packs.

    `model` has no adapter yet and stays as it is; `backbone` is its fingerprint, `lowest` the
    layer whose states the training begins with, from which these go on. Remembered in `work`, so
    that a training that was killed does not do it again. Empty where the states of all layers take
    more room than `cache_gigabytes`: each pass would compute them anew.
    """
    learnt = [p for p in train_packs if p.answer_at or not isinstance(head, ChoiceHead)]
    alone = spec.model_copy(
        update={"method": "head", "epochs": EPOCHS, "max_minutes": None, "checkpointing": False}
    )
    packs = [*train_packs, *tuning_packs]
    key = checkpoint_key(alone, [*learnt, *tuning_packs], backbone, head)

    def found() -> dict[str, Any]:
        console.print(f"{manifest.name}: the same head on the frozen backbone, to compare with")
        own = copy.deepcopy(head)
        count = len(decoder.layers)
        with Progress(console=console) as progress:
            for depth in (lowest, count):
                states.compute(decoder, packs, depth, progress)
        if states.found(packs, count) < 1:
            raise _NoRoomError
        with layers_only(decoder, range(count, count), final_norm=True):
            attached = attach(model, alone, (), ())
            trained = PackModel(decoder, model.lm_head, own, spec.evidence_weight, attached)
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
        return figures

    try:
        figures: dict[str, Any] = remembered(work / "measured.json", f"frozen {key}", found)
    except _NoRoomError:  # there may be some another time
        console.print("its states take more room than there is: left out")
        return {}
    return figures


def beside_frozen(tuning: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What an adapter added to the frozen backbone with the same head, as a sentence."""
    frozen, trained = tuning.get("frozen", {}), tuning.get("trained", {})
    name = next((name for name in _MAIN if name in frozen and name in trained), None)
    if name is None:
        return None
    added = trained[name] - frozen[name]
    said = (
        f"{name.replace('_', ' ')} {trained[name]:.3f} on the tuning rows, {added:+.3f} over the "
        f"frozen backbone with the same head"
    )
    if added < WORTH:
        said += " (little: `method: head` answers without an adapter; more rows may tell)"
    return said
