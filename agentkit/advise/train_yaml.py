"""Advice to the settings of a `train.yaml`."""

from __future__ import annotations

from collections.abc import Iterable

from agentkit.advise.rule import Advice
from agentkit.types import Json


def train_settings(advice: Iterable[Advice]) -> dict[str, Json]:
    """The part of the advice that stands in `train.yaml` word for word.

    Without `start_from`: the folder that it names has to be laid out first.
    """
    known = (
        *(
            "method",
            "layers",
            "importance",
            "virtual_tokens",
            "reduction_factor",
            "rank",
            "alpha",
            "learning_rate",
            "search",
            "epochs",
        ),
        *("packs_per_step", "pack_tokens", "frozen_baseline"),
        *("dtype", "quantization", "checkpointing"),
    )
    return {one.setting: one.value for one in advice if one.setting in known}
