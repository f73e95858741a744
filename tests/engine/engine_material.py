"""Prompts over one small document, and how to ask them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.engine import Engine
from agentkit.engine.prefix import PrefixCache, PrefixStates
from agentkit.engine.reading import Reader, Steps
from agentkit.prompt import build_prompt, encode_prompt, frame_of, number_spans
from agentkit.types import (
    Completion,
    Document,
    EncodedPrompt,
    Prompt,
    Request,
    Segment,
    Span,
)

SENTENCES = (
    "This Agreement is made between Acme and Bolt on the first day of May.",
    "Each party shall keep the other party's information confidential.",
    "The supplier may end the contract with thirty days' notice.",
    "Nothing here limits liability for wilful damage.",
)
QUESTIONS = (
    "Who are the parties?",
    "May the supplier end it?",
    "Is liability limited at all, ever?",
)


@dataclass(frozen=True)
class Prompts:
    """Makes encoded prompts over one document."""

    backbone: Backbone

    def __call__(
        self,
        question: str = QUESTIONS[0],
        *,
        sentences: Sequence[str] = SENTENCES,
        instructions: str = "Answer the question from the document.",
    ) -> EncodedPrompt:
        text = "\n".join(sentences)
        spans, start = [], 0
        for sentence in sentences:
            spans.append(Span(start, start + len(sentence)))
            start += len(sentence) + 1
        document = Document("d" * 64, "tiny.txt", "text/plain", text, spans=tuple(spans))
        prompt = build_prompt(
            frame_of(self.backbone.tokenizer),
            instructions=instructions,
            question=question,
            spans=number_spans(document),
        )
        return encode_prompt(self.backbone.tokenizer, prompt)


SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "string"},
        "spans": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["answer", "spans"],
}


def done(engine: Engine, request: Request) -> Completion:
    return engine.submit(request).result(timeout=60)


def plain_prompt(ids: tuple[int, ...]) -> EncodedPrompt:
    """Ids with no prefix worth sharing."""
    empty = Segment("header", "")
    prompt = Prompt(empty, (), empty, empty, empty)
    return EncodedPrompt(prompt, ids, 0, 0, 0, (), ())


def read_prefix(backbone: Backbone, ids: Sequence[int]) -> PrefixStates:
    """States of ids, with keys and values, under the bare backbone."""
    reader = Reader(backbone, Slots(backbone.modules), PrefixCache(0))
    return read_whole(reader.read(None, ids))


def read_whole(steps: Steps) -> PrefixStates:
    """What a reading gives at its end."""
    with torch.inference_mode():
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
