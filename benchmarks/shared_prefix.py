"""1, 2, 4 and 8 skills asked of one real contract: how often is it read?

Time to the first token of each skill's answer (rank 16, all seven modules, float32), every skill
with instructions of its own: activated LoRA and LoRA on the upper third of the layers in this
engine, beside PEFT with plain LoRA, which reads the contract for every skill, and PEFT with
activated LoRA that goes on from the base model's cache by hand. The ceiling is arithmetic: layers
that must be run, were nothing lost.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import Metric, arguments, at_least, finish, need
from engine_common import backbone_folder, exact_backbone, peft_model, random_skills
from transformers import DynamicCache

from agentkit.engine.engine import Engine
from agentkit.prompt import build_prompt, encode_prompt, number_spans
from agentkit.retrieval.loaders import document_from_text
from agentkit.settings import Settings
from agentkit.skill.folder import Skill, load_skill
from agentkit.training.jsonl import read_jsonl
from agentkit.types import EncodedPrompt, Generation, Request


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--skills", type=int, nargs="*", default=[1, 2, 4, 8])
    options = parser.parse_args()
    need(options.data_dir)
    base = backbone_folder()
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        folder = Path(scratch)
        backbone = exact_backbone(base)
        count, upper_layers = options.skills[-1], range(2 * backbone.layers // 3, backbone.layers)
        plain = random_skills(folder, base, count, rank=16)
        upper = random_skills(folder, base, count, rank=16, layers=list(upper_layers), start=100)
        with Engine(backbone, settings=Settings(prefix_cache_bytes=4_000_000_000)) as engine:
            document = contract(options.data_dir, engine, options.tokens)
            prompts = [prompt_of(engine, document, number) for number in range(count)]
            start = prompts[0].invocation_start
            activated = [activate(skill, prompts[0].ids[start:], folder) for skill in plain]
            seconds = {
                "activated": ours(engine, activated, prompts),
                "upper_third": ours(engine, upper, prompts),
            }
        plain_peer = peft_model(base, plain)
        seconds["peft_plain"] = peft_plain(plain_peer, prompts)
        del plain_peer
        by_hand = peft_model(base, activated)
        seconds["peft_by_hand"] = peft_by_hand(by_hand, prompts)
    lower = upper_layers.start / backbone.layers
    metrics = [Metric("document_tokens", prompts[0].document_end)]
    for asked in options.skills:
        total = {side: sum(values[:asked]) for side, values in seconds.items()}
        metrics += [Metric(f"{side}_{asked}_skills", total[side], "s") for side in total]
        faster = {side: total["peft_plain"] / total[side] for side in total}
        ceiling = asked / (lower + asked * (1 - lower))
        if asked < options.skills[-1]:
            metrics += [
                Metric(f"activated_faster_than_plain_{asked}_skills", faster["activated"], "x"),
                Metric(f"upper_third_faster_than_plain_{asked}_skills", faster["upper_third"], "x"),
            ]
            continue
        metrics += [
            at_least(f"activated_faster_than_plain_{asked}_skills", faster["activated"], 5, "x"),
            at_least(
                f"activated_over_by_hand_reuse_{asked}_skills",
                total["peft_by_hand"] / total["activated"],
                1,
                "x",
            ),
            at_least(
                f"upper_third_faster_than_plain_{asked}_skills", faster["upper_third"], 2, "x"
            ),
            Metric(f"upper_third_ceiling_{asked}_skills", ceiling, "x"),
            at_least(
                f"upper_third_of_ceiling_{asked}_skills", faster["upper_third"] / ceiling, 0.8
            ),
        ]
    return finish("shared_prefix", metrics, options.json)


def contract(data: Path, engine: Engine, tokens: int) -> Any:
    """The first contract of at least so many tokens, cut to them."""
    for row in read_jsonl(data / "cuad" / "contracts.jsonl.gz"):
        if len(row["text"]) < 6 * tokens:
            continue
        ids = engine.tokenizer.plain(row["text"][: 12 * tokens])[: int(0.9 * tokens)]
        return document_from_text(engine.tokenizer.decode(ids))
    raise SystemExit(f"no contract of {tokens} tokens")


def prompt_of(engine: Engine, document: Any, number: int) -> EncodedPrompt:
    prompt = build_prompt(
        engine.frame,
        instructions=f"You are specialist number {number}. Answer from the contract alone.",
        question=f"What does the contract say of matter {number}?",
        spans=number_spans(document),
    )
    return encode_prompt(engine.tokenizer, prompt)


def activate(skill: Skill, tokens: Sequence[int], folder: Path) -> Skill:
    """A copy of the adapter that is told to act from these tokens on."""
    copy = folder / f"activated-{skill.name}"
    shutil.copytree(skill.path, copy)
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "alora_invocation_tokens": list(tokens)}), "utf-8")
    return load_skill(copy)


def ours(engine: Engine, skills: Sequence[Skill], prompts: Sequence[EncodedPrompt]) -> list[float]:
    """Seconds to the first token of each skill's answer, asked one after the other."""
    warm = prompt_of(engine, document_from_text("A short one. " * 40), 99)
    for skill in skills:
        engine.load(skill)
        engine.submit(Request(warm, adapter=skill.digest, generation=Generation(1))).result()
    seconds = []
    for skill, prompt in zip(skills, prompts, strict=True):
        request = Request(prompt, adapter=skill.digest, generation=Generation(max_tokens=1))
        began = time.perf_counter()
        engine.submit(request).result()
        seconds.append(time.perf_counter() - began)
    return seconds


def peft_plain(model: Any, prompts: Sequence[EncodedPrompt]) -> list[float]:
    seconds = []
    for number, (name, prompt) in enumerate(zip(model.peft_config, prompts, strict=True)):
        model.set_adapter(name)
        ids = torch.tensor([prompt.ids])
        if number == 0:
            model(input_ids=ids[:, :600], logits_to_keep=1)
        began = time.perf_counter()
        model(input_ids=ids, logits_to_keep=1, use_cache=True).logits.argmax(-1)
        seconds.append(time.perf_counter() - began)
    return seconds


def peft_by_hand(model: Any, prompts: Sequence[EncodedPrompt]) -> list[float]:
    """The base model's cache of the document is cropped to it before each next skill."""
    cache, seconds, end = DynamicCache(), [], prompts[0].document_end
    base = model.base_model.model
    for name, prompt in zip(model.peft_config, prompts, strict=True):
        model.set_adapter(name)
        began = time.perf_counter()
        ids = torch.tensor([prompt.ids])
        if cache.get_seq_length() == 0:
            with model.disable_adapter():
                base(input_ids=ids[:, :end], past_key_values=cache, logits_to_keep=1)
        model(input_ids=ids[:, end:], past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        cache.crop(end - cache.get_seq_length())
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
