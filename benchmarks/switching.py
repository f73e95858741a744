"""What it costs to switch to another skill, with 3, 100 and 1,000 of them in memory (rank 4).

Activation alone, and the time to the first token right after a switch beside the time without
one; PEFT's `set_adapter` with 2, 8 and 32 adapters loaded, on the same backbone in the same run.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import Metric, arguments, at_least, at_most, finish
from engine_common import backbone_folder, exact_backbone, in_turn, peft_model, random_skills

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.install import prepare

BATCH = 1000
"""Activations in one timing, because a clock costs as much as one of them."""


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--resident", type=int, nargs=3, default=[3, 100, 1000])
    parser.add_argument("--peft", type=int, nargs=3, default=[2, 8, 32])
    options = parser.parse_args()
    base = backbone_folder()
    few, _, many = options.resident
    ours: dict[int, float] = {}
    metrics: list[Metric] = []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        backbone = exact_backbone(base)
        skills = random_skills(Path(scratch), base, max(many, options.peft[-1]), rank=4)
        slots, filled = Slots(backbone.modules), list[int]()
        for count in options.resident:
            for skill in skills[len(filled) : count]:
                filled.append(slots.fill(prepare(skill, backbone).deltas))
            ours[count] = activation(slots, filled)
            metrics.append(Metric(f"activation_{count}_resident", 1e6 * ours[count], "us"))
        added = first_token(backbone, slots, filled)
        peer: dict[int, float] = {}
        for count in options.peft:
            peer[count] = set_adapter(peft_model(base, skills[:count]), count)
            metrics.append(Metric(f"peft_set_adapter_{count}_resident", 1e3 * peer[count], "ms"))
    metrics += [
        at_most("activation_at_most_resident", 1e6 * ours[many], 50, "us"),
        at_most("activation_growth", ours[many] / ours[few], 2, "x"),
        at_most("first_token_added", 1e3 * added, 0.5, "ms"),
        at_least("faster_than_peft", peer[options.peft[-1]] / ours[many], 1000, "x"),
    ]
    return finish("switching", metrics, options.json)


def activation(slots: Slots, filled: Sequence[int]) -> float:
    """Median seconds of one activation."""
    order = random.Random(0)
    seconds = []
    for _ in range(30):
        chosen = [order.choice(filled) for _ in range(BATCH)]
        began = time.perf_counter()
        for slot in chosen:
            slots.activate(slot)
        seconds.append((time.perf_counter() - began) / BATCH)
    slots.activate(None)
    return statistics.median(seconds)


def first_token(backbone: Backbone, slots: Slots, filled: Sequence[int]) -> float:
    """Seconds that a first token takes longer if another skill was active before.

    The sides run in turn: one switches to another skill and computes, the other computes the same
    under the skill that is active then.
    """
    ids, at = torch.arange(5, 21), torch.arange(16)
    order = random.Random(1)
    last = filled[0]

    def token() -> None:
        backbone.logits(ids, positions=at, at=at[-1:])

    def switched() -> None:
        nonlocal last
        last = order.choice([slot for slot in filled if slot != last][:8])
        slots.activate(last)
        token()

    seconds = in_turn({"switched": switched, "stayed": token}, rounds=40, warm=3)
    slots.activate(None)
    return seconds["switched"] - seconds["stayed"]


def set_adapter(model: Any, count: int) -> float:
    """Median seconds of PEFT's own switch."""
    names = list(model.peft_config)
    seconds = []
    for number in range(12):
        began = time.perf_counter()
        model.set_adapter(names[number % count])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
