"""Prefill and decoding of one row with one skill (rank 16, all seven modules).

In float32 over the bare backbone and over PEFT with the same adapter, the sides run in turn; then
the default precision with the skill over transformers' own float32 backbone, and llama.cpp with
four-bit weights beside them where it is installed. Decoding one row is
bound by memory: its share of the bandwidth that a plain sum over as many bytes reaches is given.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
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
from peers.installed import llama_arguments, llama_sides
from transformers import DynamicCache

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone, load_backbone
from agentkit.engine.forward import logits
from agentkit.engine.install import prepare
from agentkit.engine.packed import PackedRows
from agentkit.settings import Settings
from agentkit.skill.folder import Skill


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=8, help="written in each timing")
    llama_arguments(parser)
    options = parser.parse_args()
    base, context = backbone_folder(), options.context
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        skill = random_skills(Path(scratch), base, 1, rank=16)[0]
        exact = exact_backbone(base)
        default = load_backbone(base, dtype=Settings().dtype)
        peer, plain = peft_model(base, [skill]), plain_model(base)
        read, write = {}, {}
        for name, backbone, with_skill in (
            ("skill", exact, True),
            ("bare", exact, False),
            ("default", default, True),
        ):
            slots, slot = filled(backbone, skill)
            own = slot if with_skill else None
            read[name] = reader(backbone, slots, own, context)
            write[name] = writer(backbone, slots, own, context, options.tokens)
        for name, model in (("peft", peer), ("transformers", plain)):
            read[name] = peer_reader(model, context)
            write[name] = peer_writer(model, context, options.tokens)
        room = options.tokens * (options.rounds + 1)  # one round is to warm up
        llama = llama_sides(options.gguf, prompt(context), options.tokens, room)
        if llama:
            read["llama_cpp"], write["llama_cpp"] = llama["read"], llama["write"]
        reading = in_turn(read, rounds=options.rounds)
        writing = in_turn(write, rounds=options.rounds)
        bandwidth = memory_bandwidth()
    per_token = {name: value / options.tokens for name, value in writing.items()}
    size = sum(p.nbytes for p in exact.model.parameters())
    metrics = [
        Metric(f"{name}_prefill", context / value, "tokens/s") for name, value in reading.items()
    ]
    metrics += [
        Metric(f"{name}_decode", 1 / value, "tokens/s") for name, value in per_token.items()
    ]
    for phase in ("prefill", "decode") if not llama else ():
        metrics.append(Metric(f"llama_cpp_{phase}", None, "tokens/s"))
    metrics += [
        at_most("prefill_over_bare", reading["skill"] / reading["bare"], 1.08, "x"),
        at_most("decode_over_bare", writing["skill"] / writing["bare"], 1.08, "x"),
        at_least("prefill_faster_than_peft", reading["peft"] / reading["skill"], 1, "x"),
        at_least("decode_faster_than_peft", writing["peft"] / writing["skill"], 1, "x"),
        at_least(
            "default_prefill_over_transformers_float32",
            reading["transformers"] / reading["default"],
            1.5,
            "x",
        ),
        at_least(
            "default_decode_over_transformers_float32",
            writing["transformers"] / writing["default"],
            2.2,
            "x",
        ),
        Metric("memory_bandwidth", bandwidth / 1e9, "GB/s"),
        Metric("decode_share_of_bandwidth", size / per_token["skill"] / bandwidth),
    ]
    return finish("decoding", metrics, options.json)


def filled(backbone: Backbone, skill: Skill) -> tuple[Slots, int]:
    slots = Slots(backbone.modules)
    return slots, slots.fill(prepare(skill, backbone).deltas)


def prompt(context: int) -> list[int]:
    found = torch.randint(5, 40_000, (context,), generator=torch.Generator().manual_seed(0))
    return [int(token) for token in found]


def reader(
    backbone: Backbone, slots: Slots, slot: int | None, context: int
) -> Callable[[], object]:
    """Reads the whole context; the last token's logits."""

    def read() -> object:
        tree = PackedRows(None)
        last = tree.append(tree.fork(), (slot, prompt(context)))
        return logits(backbone, slots, [tree], [[last]])

    return read


def writer(
    backbone: Backbone, slots: Slots, slot: int | None, context: int, tokens: int
) -> Callable[[], object]:
    """Writes some tokens after the context."""
    tree = PackedRows(None)
    row = tree.fork()
    tree.append(row, (slot, prompt(context)))
    logits(backbone, slots, [tree], [[0]])

    def write() -> object:
        token = 7
        for _ in range(tokens):
            at = tree.append(row, (slot, [token]))
            token = int(logits(backbone, slots, [tree], [[at]])[0].argmax())
        return token

    return write


def peer_reader(model: Any, context: int) -> Callable[[], object]:
    ids = torch.tensor([prompt(context)])
    return lambda: (
        model(
            input_ids=ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1
        ).logits
    )


def peer_writer(model: Any, context: int, tokens: int) -> Callable[[], object]:
    cache = DynamicCache()
    model(input_ids=torch.tensor([prompt(context)]), past_key_values=cache, logits_to_keep=1)

    def write() -> object:
        token = 7
        for _ in range(tokens):
            ids = torch.tensor([[token]])
            token = int(model(input_ids=ids, past_key_values=cache).logits[0, -1].argmax())
        return token

    return write


def memory_bandwidth() -> float:
    """Bytes a second of the best of several sums over 512 MB."""
    data = torch.ones(128_000_000)
    seconds = []
    for _ in range(5):
        seconds.append(in_turn({"sum": data.sum}, rounds=1, warm=0)["sum"])
    return data.nbytes / min(seconds)


if __name__ == "__main__":
    sys.exit(main())
