"""How the answers change with the computing type: the shipped skills on the example documents.

float32 writes greedy answers with the skill that writes; the other types are given the same tokens
one by one, and every next token and logit is compared: where two tokens are further apart than half
a logit, no type may turn them. The skill that chooses reads each rule of
the example playbook under each type. Beside it, the memory that the weights take.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import Metric, arguments, at_least, at_most, finish

from agentkit import models
from agentkit.engine.backbone import DtypeName, load_backbone
from agentkit.engine.engine import Engine
from agentkit.engine.forward import logits
from agentkit.engine.packed import PackedRows
from agentkit.kit import Kit
from agentkit.prompt import number_spans, skill_prompt
from agentkit.settings import Settings
from agentkit.skill.folder import Skill
from agentkit.types import EncodedPrompt, Request

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TYPES: tuple[DtypeName, ...] = ("float32", "bfloat16", "auto")
LEAST = 80
"""Characters from which a sentence is worth explaining."""


@dataclass
class Side:
    """What one type gave."""

    steps: list[torch.Tensor] = field(default_factory=list)
    """By answer, the logits `(1 + tokens, vocabulary)`: one token read, the others written."""
    choices: list[torch.Tensor] = field(default_factory=list)
    """By rule, the probability of each choice."""
    bytes: int = 0


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--answers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32, help="written in each answer")
    parser.add_argument("--writer", default="reporting", help="the skill that writes")
    parser.add_argument("--chooser", default="compliance-review", help="the skill that chooses")
    options = parser.parse_args()
    settings = Settings()
    folder = models.resolve(settings.backbone, settings, "backbone")
    sides: dict[str, Side] = {}
    forced: list[list[int]] = []
    with Kit() as kit:
        document = kit.read(EXAMPLES / "documents" / "nda.md")
        writer, chooser = kit.skills[options.writer], kit.skills[options.chooser]
        rules = playbook(EXAMPLES / "playbooks" / "nda.md")
    sentences = [document.text[span.start : span.end] for span in document.spans]
    quotes = [text for text in sentences if len(text) >= LEAST][: options.answers]
    for name in TYPES:
        side = sides[name] = Side()
        with Engine(load_backbone(folder, dtype=name, threads=settings.threads)) as engine:
            side.bytes = sum(engine.backbone.weight_bytes.values())
            engine.load(writer)
            engine.load(chooser)
            for number, quote in enumerate(quotes):
                prompt = engine.encode(
                    skill_prompt(engine.frame, writer.manifest, {"quote": quote})
                )
                given = forced[number] if number < len(forced) else None
                found = written(engine, writer, prompt, options.tokens, given)
                side.steps.append(found)
                if given is None:
                    forced.append(found.argmax(1).tolist())
            spans = number_spans(document)
            for rule in rules:
                input = {"rule": rule, "document": document.text}
                prompt = engine.encode(skill_prompt(engine.frame, chooser.manifest, input, spans))
                request = Request(prompt, adapter=chooser.digest, read=True)
                reading = engine.submit(request).result().reading
                if reading is None or reading.choices is None:
                    raise SystemExit(f"{options.chooser} has no head of choices")
                side.choices.append(torch.from_numpy(reading.choices))
    metrics = [Metric(f"{name}_weights", side.bytes / 1e6, "MB") for name, side in sides.items()]
    for name in TYPES[1:]:
        metrics += compared(name, sides[name], sides["float32"])
    return finish("precision", metrics, options.json)


def playbook(path: Path) -> list[str]:
    """The rules of a list, without the word in front that weighs them."""
    lines = [line[2:] for line in path.read_text("utf-8").splitlines() if line.startswith("- ")]
    return [line.partition(":** ")[2] or line.partition("**: ")[2] or line for line in lines]


def written(
    engine: Engine, skill: Skill, prompt: EncodedPrompt, tokens: int, given: list[int] | None
) -> torch.Tensor:
    """Logits of the first token, which is read, and of each that is written after it.

    The tokens are the best ones, or those `given`.
    """
    slot = engine.loaded[skill.digest].slot
    tree = PackedRows(None)
    found = []
    with torch.inference_mode():
        at = tree.append(tree.fork(), (slot, prompt.ids))
        for number in range(tokens + 1):
            found.append(logits(engine.backbone, engine._slots, [tree], [[at]])[0][0])
            token = given[number] if given else int(found[-1].argmax())
            at = tree.append(0, (slot, [token]))
    return torch.stack(found)


def compared(name: str, side: Side, exact: Side) -> list[Metric]:
    ours, theirs = (torch.cat([answer[1:] for answer in one.steps]) for one in (side, exact))
    known = theirs[0].isfinite()
    ours, theirs = ours[:, known], theirs[:, known]
    errors = (ours - theirs).abs()
    equal = ours.argmax(1) == theirs.argmax(1)
    best = theirs.topk(2, dim=1).values
    margins = (best[:, 0] - best[:, 1])[~equal]
    verdicts = [a.argmax() == b.argmax() for a, b in zip(side.choices, exact.choices, strict=True)]
    apart = [(a - b).abs().max() for a, b in zip(side.choices, exact.choices, strict=True)]
    return [
        Metric(f"{name}_tokens_compared", len(equal)),
        at_least(f"{name}_equal_greedy_tokens", float(equal.float().mean()), 0.9),
        at_most(
            f"{name}_widest_margin_that_turned",
            float(margins.max()) if len(margins) else 0.0,
            0.5,
        ),
        Metric(f"{name}_largest_logit_error", float(errors.max())),
        Metric(f"{name}_median_logit_error", float(errors.median())),
        Metric(f"{name}_equal_verdicts", float(torch.stack(verdicts).float().mean())),
        Metric(f"{name}_largest_probability_difference", float(torch.stack(apart).max())),
    ]


if __name__ == "__main__":
    sys.exit(main())
