"""What retrieval does to a skill's verdicts: `retrieval.py --effect`."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common import Metric
from retrieval_tasks import Question, Task
from rich.console import Console

from agentkit.context import TOP_K
from agentkit.kit import Kit
from agentkit.settings import Settings
from agentkit.training.jsonl import read_jsonl
from agentkit.types import ContextSpec, StepCall

VERDICTS = {
    "Entailment": "entailed",
    "Contradiction": "contradicted",
    "NotMentioned": "not_mentioned",
}
console = Console(stderr=True)


def effect(tasks: Sequence[Task], options: argparse.Namespace) -> list[Metric]:
    """Accuracy of a skill's verdicts by what it was shown.

    `evidence` is the gold evidence filled up with excerpts to 512 tokens, so that a rule which
    nothing speaks to is shown as much as any other.
    """
    rows = read_jsonl(options.data_dir / "contract_nli" / f"{options.split}.jsonl.gz")
    labels = [
        {key: VERDICTS[a["choice"]] for key, a in row["annotations"].items()}
        for row, _ in zip(rows, tasks, strict=False)
    ]
    right: dict[str, int] = defaultdict(int)
    tokens: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    asked = 0
    with tempfile.TemporaryDirectory() as scratch:
        own = Settings()
        settings = own.model_copy(update={"home": Path(scratch)})
        (Path(scratch) / "models").symlink_to(own.models_dir, target_is_directory=True)
        with Kit(settings) as kit:
            runner = kit.runner()
            for task, gold in zip(tasks, labels, strict=True):
                kit.documents.put(task.document)
                asked += len(task.questions)
                for name, calls in shown_ways(kit, task, options.skill).items():
                    began = time.perf_counter()
                    results = runner.run(calls)
                    seconds[name] += time.perf_counter() - began
                    for question, result in zip(task.questions, results, strict=True):
                        if isinstance(result, Exception):
                            raise result
                        right[name] += result.output["verdict"] == gold[question.name]
                        tokens[name] += result.usage.prompt_tokens
                console.print(f"{asked} questions", dict(right), end="\r")
    metrics = [Metric("questions", asked)]
    for name in right:
        metrics += [
            Metric(f"accuracy, {name}", right[name] / asked),
            Metric(f"prompt tokens, {name}", tokens[name] / asked),
            Metric(f"seconds a question, {name}", seconds[name] / asked, "s"),
        ]
    return metrics


def shown_ways(kit: Kit, task: Task, skill: str) -> dict[str, list[StepCall]]:
    reference = {"$document": task.document.digest}
    specs = {
        "no context": ContextSpec(mode="none"),
        "excerpts in 512": ContextSpec(mode="excerpts", budget=512),
        "excerpts in 1024": ContextSpec(mode="excerpts", budget=1024),
        "whole document": ContextSpec(mode="whole"),
    }
    ways = {
        name: [call(skill, question.text, reference, spec) for question in task.questions]
        for name, spec in specs.items()
    }
    ways["evidence"] = [
        call(skill, question.text, evidence_text(kit, task, question), ContextSpec(mode="whole"))
        for question in task.questions
    ]
    return ways


def evidence_text(kit: Kit, task: Task, question: Question) -> str:
    text, count = task.document.text, kit.engine.count_tokens
    shown = list(question.gold)
    left = 512 - sum(count(text[slice(*place)]) for place in shown)
    if left > 0:
        citations = kit.retriever.excerpts(
            task.document, question.text, top_k=TOP_K, budget_tokens=left, count_tokens=count
        )
        shown += [
            (c.start, c.end)
            for c in citations
            if not any(c.start < end and start < c.end for start, end in question.gold)
        ]
    return "\n\n".join(text[start:end] for start, end in sorted(shown))


def call(skill: str, rule: str, document: object, context: ContextSpec) -> StepCall:
    return StepCall(
        step="effect",
        instruction="",
        input={"rule": rule, "document": document},
        skill=skill,
        context=context,
    )
