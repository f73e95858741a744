"""From a situation to a way of training: rules in a table, each with its reason.

For every setting the first rule that holds decides; the last one always does. What a rule says is
a starting point for a measurement, not the end of one.
"""

from __future__ import annotations

from agentkit.advise.conditions import (
    LEAST_FOR_A_HEAD,
    always,
    few_and_short,
    head_alone,
    prefix,
    recomputed,
    trains_a_head,
    worth_trials,
)
from agentkit.advise.memory import way
from agentkit.advise.rule import Advice, Holds, Rule
from agentkit.advise.situation import Situation
from agentkit.training.spec import HEAD_EPOCHS, RATES, SIZED_BY, Method


def _upper_third(s: Situation) -> str:
    return "upper 1/3"


def _method(s: Situation) -> Method:
    method: Method = next(r.value(s) for r in RULES if r.setting == "method" and r.holds(s))
    return method


def _rank(s: Situation) -> int:
    rank: int = next(r.value(s) for r in RULES if r.setting == "rank" and r.holds(s))
    return rank


def _without(size: str) -> Holds:
    """Whether the method's size is not set by this."""
    return lambda s: size not in SIZED_BY[_method(s)]


RULES: tuple[Rule, ...] = (
    Rule(
        "method",
        lambda s: s.deployment == "vllm" and s.answer == "marks",
        lambda s: "lora",
        "vLLM loads a LoRA folder as it is, but marks are read off by a task head, which it does "
        "not serve: serve them with agentkit, or have the skill write what it finds",
    ),
    Rule(
        "method",
        lambda s: s.deployment == "vllm",
        lambda s: "lora",
        "vLLM loads a LoRA folder as it is; it serves no prefix and no task head",
    ),
    Rule(
        "method",
        head_alone,
        lambda s: "head",
        "the memory holds the backbone but no training through it: a task head on its frozen "
        "states needs one reading of the rows, and minutes",
    ),
    Rule(
        "method",
        prefix,
        lambda s: "prefix",
        "a prefix is the smallest adapter, a few hundred kilobytes for a small backbone; with so "
        "many tasks that outweighs that it shares no reading of a document",
    ),
    Rule(
        "method",
        lambda s: s.answer != "marks" and s.tasks >= 4 and s.document_tokens >= 1000,
        lambda s: "alora",
        "it acts from the question on, so the bare backbone's reading of a long document serves "
        "every one of the tasks; marks are read off the document and need an adapter that reads it",
    ),
    Rule(
        "method",
        lambda s: s.tasks >= 100,
        lambda s: "bottleneck",
        "one small net in a layer: a quarter of the size of LoRA of rank 16 at its default factor, "
        "and two products where that has fourteen; memory and time that count with many skills",
    ),
    Rule(
        "method",
        lambda s: s.gpu and s.rows >= 20_000,
        lambda s: "hybrid",
        "rows enough to fill both: LoRA bends what a layer attends to, a bottleneck what it says",
    ),
    Rule(
        "method",
        lambda s: s.gpu and s.rows >= 5000 and way(s).quantization is None,
        lambda s: "dora",
        "LoRA with magnitudes trained apart comes nearer to full fine-tuning at the same size; it "
        "trains a little slower, which a GPU hides",
    ),
    Rule(
        "method",
        always,
        lambda s: "lora",
        "the best understood method; any layers may be adapted, and it serves everywhere",
    ),
    Rule(
        "layers",
        prefix,
        lambda s: "all",
        "a prefix conditions every layer",
    ),
    Rule(
        "layers",
        head_alone,
        lambda s: "all",
        "none is adapted: the head reads the last one's states, which are computed once",
    ),
    Rule(
        "layers",
        lambda s: s.deployment == "vllm" and s.gpu and s.rows >= 5000,
        lambda s: "all",
        "there are rows and compute for it, and vLLM computes every layer for every skill anyway",
    ),
    Rule(
        "layers",
        lambda s: s.gpu and s.rows >= 5000 and s.updates in ("rarely", "monthly"),
        lambda s: "all",
        "with this many rows, seldom trained on, all layers have something to learn from",
    ),
    Rule(
        "layers",
        worth_trials,
        lambda s: "auto",
        "there are rows enough to measure which layers matter; those below the chosen ones are "
        "computed once",
    ),
    Rule(
        "importance",
        lambda s: worth_trials(s) and not (prefix(s) or head_alone(s)),
        lambda s: "validation",
        "looks from the top, so that much is computed once; gradients chose the lowest layers here",
    ),
    Rule("importance", always, lambda s: None, ""),
    Rule(
        "layers",
        always,
        _upper_third,
        "the upper third: the states below are computed once and every epoch trains on the rest "
        "alone, and few rows teach few layers",
    ),
    Rule("virtual_tokens", _without("virtual_tokens"), lambda s: None, ""),
    Rule(
        "virtual_tokens",
        lambda s: s.rows < 1000,
        lambda s: 8,
        "fewer than 1,000 rows; each takes a token's place in every reading",
    ),
    Rule(
        "virtual_tokens",
        always,
        lambda s: 16,
        "rows enough to fill them; each takes a token's place in every reading",
    ),
    Rule("reduction_factor", _without("reduction_factor"), lambda s: None, ""),
    Rule(
        "reduction_factor",
        lambda s: s.rows < 20_000 or s.tasks >= 100,
        lambda s: 16,
        "enough for most tasks; a smaller one costs memory with every skill",
    ),
    Rule("reduction_factor", always, lambda s: 8, "20,000 rows and more can fill it"),
    Rule("rank", _without("rank"), lambda s: None, ""),
    Rule(
        "rank",
        lambda s: s.rows < 200,
        lambda s: 4,
        "fewer than 200 rows: a larger adapter learns them by heart",
    ),
    Rule("rank", lambda s: s.rows < 1000, lambda s: 8, "fewer than 1,000 rows"),
    Rule(
        "rank",
        lambda s: s.rows < 20_000 or s.tasks >= 100,
        lambda s: 16,
        "enough for most tasks; a larger one costs memory with every skill",
    ),
    Rule("rank", always, lambda s: 32, "20,000 rows and more can fill it"),
    Rule("alpha", _without("rank"), lambda s: None, ""),
    Rule(
        "alpha",
        always,
        lambda s: 2 * _rank(s),
        "twice the rank: what is learnt counts as much at any rank",
    ),
    Rule("learning_rate", head_alone, lambda s: None, ""),
    Rule(
        "learning_rate",
        always,
        lambda s: RATES[_method(s)],
        "where this method begins to learn; another method has another (without the line its own)",
    ),
    Rule(
        "epochs",
        head_alone,
        lambda s: HEAD_EPOCHS,
        "a head learns from states that are kept: its passes are short, and it wants many",
    ),
    Rule(
        "epochs",
        lambda s: s.rows < 500,
        lambda s: 6,
        "few rows must be seen often; watch the tuning figures",
    ),
    Rule("epochs", lambda s: s.rows < 1000, lambda s: 4, "fewer than 1,000 rows make few steps"),
    Rule("epochs", lambda s: s.rows < 3000, lambda s: 3, "the usual number for such a set"),
    Rule("epochs", lambda s: s.rows < 20_000, lambda s: 2, "later epochs add little"),
    Rule("epochs", always, lambda s: 1, "one pass over so many rows"),
    Rule(
        "packs_per_step",
        lambda s: s.rows < 20_000,
        lambda s: 1,
        "more, smaller steps: on small sets they learn more in the same time",
    ),
    Rule("packs_per_step", always, lambda s: 4, "steadier gradients where rows abound"),
    Rule(
        "pack_tokens",
        lambda s: s.memory < max(4.0, 8 * s.weights),
        lambda s: 1024,
        "activations grow with it, and memory is short",
    ),
    Rule(
        "pack_tokens",
        few_and_short,
        lambda s: 512,
        "a pack of many short documents would leave few steps to learn in: smaller ones make more "
        "of them, in the same time",
    ),
    Rule(
        "pack_tokens",
        lambda s: s.memory < max(12.0, 16 * s.weights) or s.document_tokens < 1000,
        lambda s: 2048,
        "a usual document and its questions fit",
    ),
    Rule(
        "pack_tokens",
        always,
        lambda s: 3072,
        "long documents are read whole, as they will be served",
    ),
    Rule(
        "start_from",
        lambda s: s.rows < 500 and s.tasks >= 3,
        lambda s: "../general",
        "few rows of many tasks: train one general adapter on all of them first, with this method, "
        "rank and alpha, and begin each skill with it",
    ),
    Rule("start_from", always, lambda s: None, ""),
    Rule(
        "search",
        lambda s: not (s.gpu and worth_trials(s)) or head_alone(s),
        lambda s: None,
        "",
    ),
    Rule(
        "search",
        _without("rank"),
        lambda s: {"minutes": 60, "rank": []},
        "trials of the learning rate are cheap on a GPU, and what they find is kept until the next "
        "training; this method has no rank",
    ),
    Rule(
        "search",
        always,
        lambda s: {"minutes": 60},
        "trials are cheap on a GPU, and what they find is kept until the next training",
    ),
    Rule(
        "data.tuning",
        lambda s: (s.documents or s.rows) < 50,
        lambda s: 0.3,
        "with few documents a smaller share could not choose a threshold",
    ),
    Rule("data.tuning", lambda s: s.rows < 1000, lambda s: 0.2, "a tenth would be noise"),
    Rule("data.tuning", always, lambda s: 0.1, "enough to choose thresholds and watch progress"),
    Rule(
        "answer.scoring",
        lambda s: s.answer != "choice",
        lambda s: None,
        "",
    ),
    Rule(
        "answer.scoring",
        lambda s: s.deployment == "vllm",
        lambda s: "likelihood",
        "a task head is served by agentkit alone; without one there is no `evidence_field`",
    ),
    Rule(
        "answer.scoring",
        lambda s: s.rows < LEAST_FOR_A_HEAD,
        lambda s: "likelihood",
        "a head begins with nothing and wants more rows; the words' likelihood begins with what "
        "the backbone knows, and gives no evidence: leave `evidence_field` out",
    ),
    Rule(
        "answer.scoring",
        always,
        lambda s: "head",
        "one reading gives every answer with a calibrated score, and the evidence",
    ),
    Rule(
        "frozen_baseline",
        trains_a_head,
        lambda s: True,
        "trains the head on the frozen backbone, too, and says what the adapter adds: one reading "
        "more by the upper layers",
    ),
    Rule("frozen_baseline", always, lambda s: None, ""),
    Rule(
        "dtype",
        lambda s: way(s).takes(2 * s.weights) > s.memory,
        lambda s: "bfloat16",
        "float32 would not fit the memory; a processor without instructions for bfloat16 takes "
        "several times as long with it",
    ),
    Rule(
        "dtype",
        always,
        lambda s: "auto",
        "bfloat16, half the memory, where there are instructions for it; elsewhere float32 is "
        "several times faster",
    ),
    Rule(
        "quantization",
        lambda s: way(s).quantization == "nf4",
        lambda s: "nf4",
        "not even eight bits of each weight would leave room for activations; needs the extra nf4",
    ),
    Rule(
        "quantization",
        lambda s: way(s).quantization == "int8",
        lambda s: "int8",
        "in bfloat16 weights and activations would not fit the memory",
    ),
    Rule("quantization", always, lambda s: None, ""),
    Rule(
        "checkpointing",
        lambda s: recomputed(s) and not head_alone(s),
        lambda s: True,
        "activations are computed again instead of kept: a third more time for much less memory",
    ),
    Rule("checkpointing", always, lambda s: None, ""),
    Rule(
        "rows",
        lambda s: s.rows < 200,
        lambda s: "label more rows first",
        "with fewer than 200 the next rows usually gain more than any setting",
    ),
    Rule("rows", always, lambda s: None, ""),
    Rule(
        "retraining",
        lambda s: s.updates in ("weekly", "daily"),
        lambda s: "train on a schedule, install what passes its floors",
        "one adapter per task is retrained without touching the others; a served folder is "
        "replaced while runs go on",
    ),
    Rule("retraining", always, lambda s: None, ""),
)


def advise(situation: Situation) -> list[Advice]:
    """What the rules say, a setting each, in the table's order.

    Raises `InputError` for what cannot be, and where no way to train fits the memory.
    """
    situation.check()
    decided: dict[str, Advice | None] = {}
    for rule in RULES:
        if rule.setting not in decided and rule.holds(situation):
            value = rule.value(situation)
            decided[rule.setting] = (
                None if value is None else Advice(rule.setting, value, rule.reason)
            )
    return [advice for advice in decided.values() if advice is not None]
