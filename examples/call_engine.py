"""The engine by itself: two skills over one reading of a document, and the bare backbone.

    python examples/call_engine.py

Shows what lies under a step: prompts, adapters by digest, JSON that a schema constrains, streaming,
and answers chosen by their likelihood.
"""

import json
from pathlib import Path

from agentkit import Generation, Kit, Request, build_prompt
from agentkit.output import to_output
from agentkit.prompt import number_spans, skill_prompt

DOCUMENT = Path(__file__).parent / "documents" / "nda.md"
RULE = "The receiving party may use the confidential information only for the purpose."
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["non-disclosure agreement", "lease", "licence"]},
        "parties": {"type": "array", "items": {"type": "string", "maxLength": 60}, "maxItems": 2},
    },
    "required": ["kind", "parties"],
}


def main() -> None:
    """Ask one document several things."""
    with Kit() as kit:
        engine = kit.engine
        document = kit.read(DOCUMENT)
        spans = number_spans(document, document.spans[:24])
        print(f"{document.source}: the first {len(spans)} of {len(document.spans)} spans")

        # Two skills, one document: given together, answered each by its own adapter.
        asked = {
            "contract-parsing": {"document": document.text},
            "compliance-review": {"rule": RULE, "document": document.text},
        }
        requests = []
        for name, input in asked.items():
            skill = kit.skills[name]
            engine.load(skill)
            prompt = engine.encode(skill_prompt(engine.frame, skill.manifest, input, spans))
            requests.append(Request(prompt, adapter=skill.digest, read=True))
        for name, request, answer in zip(asked, requests, engine.run(requests), strict=True):
            if isinstance(answer, Exception):
                raise answer
            output = to_output(kit.skills[name].manifest, [(request.prompt, answer)])
            print(f"{name}: {json.dumps(output, ensure_ascii=False)[:300]}")

        def ask(question: str) -> Request:
            prompt = build_prompt(engine.frame, instructions="", question=question, spans=spans)
            return Request(engine.encode(prompt), generation=Generation(max_tokens=64))

        # The bare backbone, constrained by a JSON Schema: what comes out always parses.
        request = ask("What kind of agreement is this, and who are the parties? Answer in JSON.")
        constrained = Request(request.prompt, schema=SCHEMA, generation=request.generation)
        answer = engine.submit(constrained).result()
        print(f"constrained: {json.loads(answer.text or '')}")

        # Token by token; closing the stream early would stop the answer.
        print("streamed: ", end="")
        with engine.stream(ask("What is this agreement about?")) as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print()

        # Not generated but scored: how likely is each answer?
        request = ask("Is this agreement about secrets or about rent?")
        scored = engine.submit(Request(request.prompt, choices=("secrets", "rent"))).result()
        likelihoods = {text: round(value, 3) for text, value in (scored.choices or {}).items()}
        print(f"likelihood: {likelihoods}")

        statistics = engine.prefix_statistics
        print(f"prompt beginnings: {statistics.hits} from memory, {statistics.misses} computed")


if __name__ == "__main__":
    main()
