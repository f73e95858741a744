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
from engine_common import backbone_folder, exact_backbone, peft_model, random_skills

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.install import prepare

BATCH = 1000
"""Activations in one timing, because a clock costs as much as one of them."""
PAIRS = 200
"""First tokens with a switch and without one: their difference is far below one's own spread."""


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

    One side switches to another skill and computes, the other computes the same under the skill
    that is active then. They take turns in going first, since a forward takes as long as what ran
    before it lets it; the median of the pairs' differences is free of what lasts longer than a
    pair, and of a busy moment in some of them.
    """
    ids, at = torch.arange(5, 21), torch.arange(16)
    skills = random.Random(1).sample(filled, min(8, len(filled)))

    def token(switch_to: int | None) -> float:
        began = time.perf_counter()
        if switch_to is not None:
            slots.activate(switch_to)
        backbone.logits(ids, positions=at, at=at[-1:])
        return time.perf_counter() - began

    for skill in skills:
        token(skill)
    added = []
    for pair in range(PAIRS):
        other = skills[pair % len(skills)]
        if pair % 2:
            stayed = token(None)
            added.append(token(other) - stayed)
        else:
            switched = token(other)
            added.append(switched - token(None))
    slots.activate(None)
    return statistics.median(added)


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
