"""vLLM's side of a benchmark, run by an interpreter that has vLLM and nothing of agentkit.

Takes an order as JSON on stdin: `model` (folder), `dtype`, `rank`, `adapters` (folders by name),
`requests` (`[adapter name, token ids]` each), `words` (tokens to write), `context`. Prints, as a
line of stdout, `{"seconds": ..., "answers": [...]}`; the model is loaded and warm before.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    order = json.load(sys.stdin)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    model = LLM(
        model=order["model"],
        dtype=order["dtype"],
        enable_lora=True,
        max_loras=len(order["adapters"]),
        max_lora_rank=order["rank"],
        max_model_len=order["context"],
    )
    adapters = {
        name: LoRARequest(name, number, folder)
        for number, (name, folder) in enumerate(order["adapters"].items(), start=1)
    }
    prompts = [{"prompt_token_ids": ids} for _, ids in order["requests"]]
    chosen = [adapters[name] for name, _ in order["requests"]]
    sampling = SamplingParams(temperature=0, max_tokens=order["words"])
    first = {name: at for at, (name, _) in reversed(list(enumerate(order["requests"])))}
    for at in first.values():  # each adapter is brought in before the clock starts
        model.generate([prompts[at]], sampling, lora_request=[chosen[at]], use_tqdm=False)
    began = time.perf_counter()
    found = model.generate(prompts, sampling, lora_request=chosen, use_tqdm=False)
    seconds = time.perf_counter() - began
    answers = [one.outputs[0].text for one in found]
    print(json.dumps({"seconds": seconds, "answers": answers}))


if __name__ == "__main__":
    main()
