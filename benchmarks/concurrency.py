"""8 threads ask 200 short questions of 8 skills: is every answer its skill's own, and how fast?

LoRA on all layers, LoRA on the upper third and activated LoRA, rank 16, float32. First every
request is answered alone; then all of them at once from 8 threads through this engine, and through
PEFT behind one lock, as its `set_adapter` demands; and, where it is installed, those of plain LoRA
through vLLM, which gets the same folders and all requests at once.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from common import Metric, arguments, at_least, finish
from engine_common import backbone_folder, exact_backbone, peft_model, random_skills
from peers.installed import vllm_arguments, vllm_seconds

from agentkit.engine.engine import Engine
from agentkit.prompt import build_prompt
from agentkit.skill.folder import Skill, load_skill
from agentkit.types import EncodedPrompt, Generation, Request

THREADS, SKILLS, WORDS = 8, 8, 8
PLAIN = 6
"""The first so many skills are plain LoRA; the others are activated."""


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--requests", type=int, default=200)
    vllm_arguments(parser)
    options = parser.parse_args()
    base = backbone_folder()
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        folder = Path(scratch)
        with Engine(exact_backbone(base)) as engine:
            layers = engine.backbone.layers
            skills = random_skills(folder, base, 3, rank=16)
            upper = list(range(2 * layers // 3, layers))
            skills += random_skills(folder, base, 3, rank=16, layers=upper, start=100)
            prompts = [question(engine, number) for number in range(options.requests)]
            for skill in random_skills(folder, base, 2, rank=16, start=200):
                skills.append(activated(skill, prompts[0], folder))
            for skill in skills:
                engine.load(skill)
            order = random.Random(0)
            own = [order.randrange(SKILLS) for _ in prompts]
            requests = [
                Request(prompt, adapter=skills[at].digest, generation=Generation(WORDS))
                for prompt, at in zip(prompts, own, strict=True)
            ]
            alone = [engine.submit(request).result().text for request in requests]
            found, ours = from_threads(
                lambda number: engine.submit(requests[number]).result().text, len(requests)
            )
        mismatches = sum(a != b for a, b in zip(alone, found, strict=True))
        answer = behind_lock(peft_model(base, skills), skills, prompts, own)
        answers, peer = from_threads(answer, len(prompts))
        same = sum(a == b for a, b in zip(alone, answers, strict=True)) / len(alone)
        served = [at for at in range(len(prompts)) if own[at] < PLAIN]
        order = {
            "model": str(base),
            "dtype": "float32",
            "rank": 16,
            "context": 2048,
            "words": WORDS,
            "adapters": {skill.name: str(skill.path) for skill in skills[:PLAIN]},
            "requests": [[skills[own[at]].name, list(prompts[at].ids)] for at in served],
        }
        vllm = vllm_seconds(options.vllm, order)
    metrics = [
        Metric("mismatches", mismatches, "", "0", mismatches == 0),
        Metric("requests_per_second", len(prompts) / ours, "/s"),
        Metric("peft_requests_per_second", len(prompts) / peer, "/s"),
        Metric("answers_as_peft", same),
        Metric("vllm_requests_per_second", len(served) / vllm["seconds"] if vllm else None, "/s"),
        at_least("throughput_over_peft", peer / ours, 2, "x"),
    ]
    return finish("concurrency", metrics, options.json)


def from_threads(answer: Callable[[int], str | None], count: int) -> tuple[list[str | None], float]:
    """Answers in order, and the seconds that all of them took."""
    with ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter()
        found = list(pool.map(answer, range(count)))
        return found, time.perf_counter() - began


def question(engine: Engine, number: int) -> EncodedPrompt:
    prompt = build_prompt(
        engine.frame, instructions="Answer shortly.", question=f"Say something of matter {number}."
    )
    return engine.encode(prompt)


def activated(skill: Skill, prompt: EncodedPrompt, folder: Path) -> Skill:
    """A copy of the adapter that acts from the prompt's invocation on."""
    copy = folder / f"activated-{skill.name}"
    shutil.copytree(skill.path, copy)
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["alora_invocation_tokens"] = list(prompt.ids[prompt.invocation_start :])
    path.write_text(json.dumps(config), "utf-8")
    return load_skill(copy)


def behind_lock(
    model: Any, skills: Sequence[Skill], prompts: Sequence[EncodedPrompt], own: Sequence[int]
) -> Callable[[int], str | None]:
    """PEFT as a careful user would serve it: one request at a time, its adapter set before."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone_folder())
    lock = Lock()

    def answer(number: int) -> str:
        prompt = prompts[number]
        with lock, torch.inference_mode():
            model.set_adapter(skills[own[number]].name)
            ids = torch.tensor([prompt.ids])
            found = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=WORDS,
                do_sample=False,
                pad_token_id=0,
            )
        text: str = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        return text

    return answer


if __name__ == "__main__":
    sys.exit(main())
