"""Does retrieval find the evidence, at what cost, and what does that do to verdicts?

Share of ContractNLI's gold evidence spans found. A gold span counts as found only when every
character of it is covered by what was retrieved, so half a clause is nothing. Systems rank the
same units, the product's own spans; `in N tokens` counts the backbone's tokens of all the text
shown, so that larger units or neighbours cannot win by size. Intervals: 95%, documents resampled.

`new questions` tunes the reranker anew without the question asked (a fourth of the 17 hypotheses
at a time, in all their wordings). CUAD's clauses, of which the reranker never saw any, are looked
for by the names of their categories: it must not harm documents and questions of another kind.
`--effect N` gives a skill N documents with nothing, with excerpts, whole, and with the evidence.
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from common import Metric, arguments, at_least, finish, need
from retrieval_effect import effect
from retrieval_tasks import Counts, Question, Task, contract_nli, cuad, found
from rich.console import Console
from transformers import AutoTokenizer

from agentkit import models
from agentkit.context import TOP_K
from agentkit.prompt import token_counter
from agentkit.retrieval.chunking import span_chunks
from agentkit.retrieval.document_index import DocumentIndex
from agentkit.retrieval.rerank import Reranker
from agentkit.retrieval.rerank_head import TunedReranker
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.selection import select
from agentkit.retrieval.tuning import Tuning, fit
from agentkit.routing.encoder import SentenceEncoder
from agentkit.settings import Settings
from agentkit.training.evidence import load_groups
from agentkit.types import Document

ROOT = Path(__file__).resolve().parent.parent
AT = (1, 3, 5, 10)
BUDGETS = (256, 512, 1024)

FOLDS = 4
TIMED = 10
"""Documents on whose questions the cost of a query is taken."""
console = Console(stderr=True)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--split", default="dev", choices=("dev", "train_full_50"))
    parser.add_argument("--documents", type=int, default=61)
    parser.add_argument("--contracts", type=int, default=20, help="of CUAD")
    parser.add_argument("--known-only", action="store_true", help="do not tune for new questions")
    parser.add_argument("--effect", type=int, nargs="?", const=12, default=0, metavar="N")
    parser.add_argument(
        "--skill", default="compliance-review", help="whose verdicts --effect reads"
    )
    options = parser.parse_args()
    need(options.data_dir)
    tasks = contract_nli(options.data_dir, options.split)[: options.documents]
    if options.effect:
        return finish("retrieval_effect", effect(tasks[: options.effect], options), options.json)

    settings = Settings()
    encoder = SentenceEncoder(
        models.resolve(settings.encoder, settings, "encoder"), remembered=100_000
    )
    backbone = models.resolve(settings.backbone, settings, "backbone")
    tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=True)
    count = lru_cache(maxsize=None)(token_counter(tokenizer))
    retriever = Retriever(encoder, settings, documents=None)  # type: ignore[arg-type]

    counts, cost = measure(tasks, encoder, retriever, count)
    metrics = list(of_counts("nli", counts))
    metrics += targets(counts)
    metrics += cost
    if not options.known_only:
        news = new_questions(tasks, encoder, options.data_dir, settings, count)
        metrics += of_counts("nli_new_questions", news)
    if options.contracts:
        contracts = cuad(options.data_dir)[: options.contracts]
        counts, _ = measure(contracts, encoder, retriever, count)
        metrics += of_counts("cuad", counts)
        gain = counts.mean("default at 5") - counts.mean("fused at 5")
        metrics.append(at_least("cuad: default over plain fusion at 5", gain, 0.0))
    return finish("retrieval", metrics, options.json)


# ---------------------------------------------------------------- what answers


def measure(
    tasks: Sequence[Task],
    encoder: SentenceEncoder,
    retriever: Retriever,
    count: Callable[[str], int],
    *,
    alone: bool = False,
) -> tuple[Counts, list[Metric]]:
    """Every system (or the default alone) on every question; the cost beside plain vectors."""
    counts = Counts()
    seconds: dict[str, float] = defaultdict(float)
    asked = 0
    for number, task in enumerate(tasks, start=1):
        document = task.document
        chunks = span_chunks(document)
        bare = [replace(chunk, heading=()) for chunk in chunks]
        began = time.perf_counter()
        plain = DocumentIndex(document, encoder, chunks=bare)
        plain.search("anything", top_k=1)
        middle = time.perf_counter()
        default = retriever.document_index(document)
        default.search("anything", top_k=1)
        seconds["embed plain"] += middle - began
        # A passage without a heading is the same text, and remembered: count it again.
        same = sum(not chunk.heading for chunk in chunks) / max(len(chunks), 1)
        seconds["embed headed"] += time.perf_counter() - middle + same * (middle - began)
        headed = DocumentIndex(document, encoder)
        headed.search("anything", top_k=1)
        systems = {
            "bm25": (plain, "text"),
            "vectors": (plain, "vector"),
            "fused": (plain, "hybrid"),
            "fused with headings": (headed, "hybrid"),
            "default": (default, "hybrid"),
        }
        if alone:
            systems = {"default": systems["default"]}
        totals: dict[str, int] = defaultdict(int)
        for question in task.questions:
            if not question.gold:
                continue
            asked += number <= TIMED
            for name, (index, mode) in systems.items():
                # A text that was not seen before, so that the pass of the encoder is counted.
                if number <= TIMED and not alone:
                    began = time.perf_counter()
                    index.scores(f"{question.text} {name} {asked}", mode=mode)
                    seconds[name] += time.perf_counter() - began
                order = np.argsort(-index.scores(question.text, mode=mode), kind="stable")
                record(totals, name, document, chunks, order, question, count)
            for budget in BUDGETS:
                citations = retriever.excerpts(
                    document,
                    question.text,
                    top_k=TOP_K,
                    budget_tokens=budget,
                    count_tokens=count,
                )
                shown = [(c.start, c.end) for c in citations]
                totals[f"default in {budget}"] += found(document.text, question.gold, shown)
        counts.asked.append(sum(len(question.gold) for question in task.questions))
        for name in (f"{s} {k}" for s in systems for k in keys()):
            counts.found[name].append(totals[name])
        console.print(f"{number} of {len(tasks)}", end="\r")
    if alone:
        return counts, []
    plain_ms = 1000 * seconds["vectors"] / max(asked, 1)
    cost = [Metric("questions timed", asked), Metric("ms a query, vectors", plain_ms, "ms")]
    cost += [
        Metric(f"time a query, {name} / vectors", seconds[name] / seconds["vectors"], "x")
        for name in ("bm25", "fused", "default")
    ]
    ratio = seconds["embed headed"] / seconds["embed plain"]
    cost.append(Metric("time to embed a document, headed / plain", ratio, "x"))
    return counts, cost


def record(
    totals: dict[str, int],
    name: str,
    document: Document,
    chunks,  # noqa: ANN001
    order,  # noqa: ANN001
    question: Question,
    count: Callable[[str], int],
) -> None:
    for at in AT:
        shown = [(chunks[i].start, chunks[i].end) for i in order[:at]]
        totals[f"{name} at {at}"] += found(document.text, question.gold, shown)
    if name == "default":
        return  # what the product itself makes of a budget is measured instead
    for budget in BUDGETS:
        hits = [int(i) for i in order[:TOP_K]]
        taken = select(chunks, hits, budget=budget, count_tokens=count, neighbours=False)
        shown = [(chunks[i].start, chunks[i].end) for i in taken]
        totals[f"{name} in {budget}"] += found(document.text, question.gold, shown)


def keys() -> list[str]:
    return [f"at {at}" for at in AT] + [f"in {budget}" for budget in BUDGETS]


def new_questions(
    tasks: Sequence[Task],
    encoder: SentenceEncoder,
    folder: Path,
    settings: Settings,
    count: Callable[[str], int],
) -> Counts:
    """The default with a reranker that was tuned without the question, put together over folds."""
    console.print("tuning without the questions ...")
    wordings = ROOT / "skills" / "compliance-review" / "training" / "wordings.jsonl"
    asked = load_groups(folder, encoder, wordings=wordings if wordings.is_file() else None)
    names = sorted({question.text for task in tasks for question in task.questions})
    random.Random(7).shuffle(names)
    total = Counts()
    for fold in range(FOLDS):
        out = set(names[fold::FOLDS])
        groups = [one.group for one in asked if one.question not in out]
        reranker: Reranker = TunedReranker(fit(groups, encoder.digest, Tuning()))
        retriever = Retriever(encoder, settings, documents=None, reranker=reranker)  # type: ignore[arg-type]
        part = [
            Task(task.document, tuple(q for q in task.questions if q.text in out)) for task in tasks
        ]
        counts, _ = measure(part, encoder, retriever, count, alone=True)
        for name, values in counts.found.items():
            sums = total.found[name] or [0] * len(values)
            total.found[name] = [a + b for a, b in zip(sums, values, strict=True)]
        total.asked = [
            a + b for a, b in zip(total.asked or [0] * len(tasks), counts.asked, strict=True)
        ]
    return total


def of_counts(kind: str, counts: Counts) -> Iterator[Metric]:
    for name in counts.found:
        low, high = counts.interval(name)
        yield Metric(f"{kind}: {name}", counts.mean(name), f"[{low:.3f}, {high:.3f}]")


def targets(counts: Counts) -> list[Metric]:
    gain = counts.mean("default in 512") - counts.mean("fused in 512")
    low, high = counts.interval("default in 512", less="fused in 512")
    return [
        at_least("nli: default at 5 spans", counts.mean("default at 5"), 0.62),
        at_least("nli: default at 10 spans", counts.mean("default at 10"), 0.78),
        at_least(
            "nli: default over plain fusion in 512 tokens", gain, 0.08, f"[{low:.3f}, {high:.3f}]"
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
