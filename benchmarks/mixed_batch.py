"""A batch with a different skill in every row, beside the bare backbone's and beside PEFT's.

One decoding step of 8 and of 32 rows (rank 16, all seven modules, 64 tokens of context each, in
float32): this engine with one skill a row, this engine and transformers without any, and PEFT with
`adapter_names`. All rows' logits are compared with those of each skill alone first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Metric, arguments, at_least, at_most, finish
from engine_common import (
    backbone_folder,
    exact_backbone,
    in_turn,
    peft_model,
    plain_model,
    random_skills,
)

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.engine import Engine
from agentkit.engine.forward import logits
from agentkit.engine.packed import PackedRows
from agentkit.skill.folder import Skill

CONTEXT = 64


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--rows", type=int, nargs="*", default=[8, 32])
    options = parser.parse_args()
    base = backbone_folder()
    metrics: list[Metric] = []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        skills = random_skills(Path(scratch), base, max(options.rows), rank=16)
        peer, plain = peft_model(base, skills), plain_model(base)
        with Engine(exact_backbone(base)) as engine:
            for skill in skills:
                engine.load(skill)
            for rows in options.rows:
                metrics += measured(engine, peer, plain, skills[:rows], options.rounds)
    return finish("mixed_batch", metrics, options.json)


def measured(
    engine: Engine, peer: Any, plain: Any, skills: Sequence[Skill], rounds: int
) -> list[Metric]:
    rows = len(skills)
    ids = torch.randint(5, 40_000, (rows, CONTEXT), generator=torch.Generator().manual_seed(rows))
    slots = [engine.loaded[skill.digest].slot for skill in skills]
    names = [skill.name for skill in skills]
    bare: list[int | None] = [None] * rows
    error = difference(engine, ids, slots)
    sides = {
        "ours": stepper(engine.backbone, engine._slots, ids, slots),
        "bare": stepper(engine.backbone, engine._slots, ids, bare),
        "peft": peft_stepper(peer, ids, names),
        "transformers": peft_stepper(plain, ids, None),
    }
    seconds = in_turn(sides, rounds=rounds, warm=2)
    ratio = seconds["ours"] / seconds["bare"]
    name = f"{rows}_rows"
    target = rows == 8
    over_bare = f"{name}_over_bare"
    return [
        Metric(f"{name}_largest_logit_difference", error, "", "<= 0.0001", error <= 1e-4),
        Metric(f"{name}_step", 1e3 * seconds["ours"], "ms"),
        Metric(f"{name}_bare_step", 1e3 * seconds["bare"], "ms"),
        Metric(f"{name}_transformers_bare_step", 1e3 * seconds["transformers"], "ms"),
        Metric(f"{name}_peft_step", 1e3 * seconds["peft"], "ms"),
        at_most(over_bare, ratio, 1.3, "x") if target else Metric(over_bare, ratio, "x"),
        Metric(f"{name}_over_transformers_bare", seconds["ours"] / seconds["transformers"], "x"),
        at_least(f"{name}_faster_than_peft", seconds["peft"] / seconds["ours"], 2.0, "x")
        if target
        else Metric(f"{name}_faster_than_peft", seconds["peft"] / seconds["ours"], "x"),
    ]


def stepper(
    backbone: Backbone, slots: Slots, ids: torch.Tensor, own: Sequence[int | None]
) -> Callable[[], torch.Tensor]:
    """Writes one token in every row at each call."""
    tree = PackedRows(None)
    numbers = []
    for row, slot in zip(ids.tolist(), own, strict=True):
        numbers.append(tree.fork())
        tree.append(numbers[-1], (slot, row))
    logits(backbone, slots, [tree], [[0]])

    def step() -> torch.Tensor:
        at = [tree.append(number, (slot, [7])) for number, slot in zip(numbers, own, strict=True)]
        return logits(backbone, slots, [tree], [at])[0]

    return step


def peft_stepper(
    model: Any, ids: torch.Tensor, names: list[str] | None
) -> Callable[[], torch.Tensor]:
    """The same as transformers has it; with `names`, PEFT's adapter of each row."""
    options = {"adapter_names": names} if names else {}
    tokens = torch.full((len(ids), 1), 7)
    cache = model(input_ids=ids, use_cache=True, **options).past_key_values

    def step() -> torch.Tensor:
        found = model(input_ids=tokens, past_key_values=cache, use_cache=True, **options)
        return found.logits

    return step


def difference(engine: Engine, ids: torch.Tensor, slots: Sequence[int]) -> float:
    """The largest difference of a logit in the mixed batch from the same row alone."""
    together = stepper(engine.backbone, engine._slots, ids, slots)()
    worst = 0.0
    for row, slot, found in zip(ids, slots, together, strict=True):
        alone = stepper(engine.backbone, engine._slots, row[None], [slot])()[0]
        known = len(engine.tokenizer)
        worst = max(worst, float((alone - found)[:known].abs().max()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
