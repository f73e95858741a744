"""Rules that no training saw, asked of contracts that no training saw.

CUAD's held-out filers, whole contracts through the product's own context. The rules are those of
`skills/SKILL/training/clause_rules.jsonl` marked `unseen`: about categories of clauses that no
training of the skill was asked about. A rule whose clause a contract has is asked together with
its opposite; a rule whose clause it lacks is asked alone. Beside it stands the most frequent
verdict of the questions asked, and a pair counts as turned when the rule and its opposite get
opposite verdicts, the right way round. Intervals are bootstraps over contracts.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from common import Metric, arguments, at_least, finish, need
from rich.console import Console

from agentkit.kit import Kit
from agentkit.retrieval.loaders import document_from_text
from agentkit.training.datasets import load_dataset
from agentkit.training.rows import held_out
from agentkit.training.spec import load_train_spec
from agentkit.types import Document, StepCall

ROOT = Path(__file__).resolve().parent.parent
SKILL = "compliance-review"
RULES = ROOT / "skills" / SKILL / "training" / "clause_rules.jsonl"
VERDICTS = {
    "Entailment": "entailed",
    "Contradiction": "contradicted",
    "NotMentioned": "not_mentioned",
}
MARGIN = 0.05
TURNED = 0.80
DRAWS = 1000

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Question:
    """A rule asked of a contract; questions of one `pair` are a rule and its opposite."""

    contract: str
    category: str
    rule: str
    expected: str
    pair: int | None


@dataclass(frozen=True, slots=True)
class Answered:
    question: Question
    verdict: str
    score: float


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=24, help="at most so many contracts")
    parser.add_argument("--absent", type=int, default=2, help="rules asked without a clause")
    options = parser.parse_args()
    need(options.data_dir)
    texts, questions = asked(options.data_dir, options.documents, options.absent)
    answers: list[Answered] = []
    began = time.monotonic()
    with Kit() as kit:
        for contract, own in questions.items():
            document = document_from_text(texts[contract])
            kit.documents.put(document)
            results = kit.runner().run([call(document, question) for question in own])
            for question, result in zip(own, results, strict=True):
                if isinstance(result, Exception):
                    raise result
                output = result.output
                answers.append(Answered(question, output["verdict"], output["score"]))
            console.print(f"{len(answers)} questions, {time.monotonic() - began:.0f} s", end="\r")
    return finish("unseen_rules", measured(answers), options.json)


def asked(
    data_dir: Path, documents: int, absent: int
) -> tuple[dict[str, str], dict[str, list[Question]]]:
    """Texts of held-out contracts, and the questions of each."""
    source = next(
        s
        for s in load_train_spec(ROOT / "skills" / SKILL / "train.yaml").data
        if s.dataset == "cuad_rules"
    )
    records = load_dataset(
        "cuad_rules", data_dir, rules=str(RULES), unseen=True, whole=True, absent=absent
    )
    texts: dict[str, str] = {}
    questions: dict[str, list[Question]] = defaultdict(list)
    for number, record in enumerate(records):
        if not held_out(record["group"], source):
            continue
        text = record["document"]
        name = f"{record['group']}/{len(text)}"
        if name not in texts and len(texts) == documents:
            continue
        texts[name] = text
        pair = number if record["opposite"] else None
        expected = VERDICTS[record["label"]]
        questions[name].append(
            Question(name, record["category"], record["hypothesis"], expected, pair)
        )
        if record["opposite"]:
            questions[name].append(
                Question(name, record["category"], record["opposite"], "contradicted", pair)
            )
    return texts, questions


def call(document: Document, question: Question) -> StepCall:
    return StepCall(
        step="review",
        instruction="",
        input={"rule": question.rule, "document": {"$document": document.digest}},
        skill=SKILL,
    )


def measured(answers: Sequence[Answered]) -> list[Metric]:
    contracts: dict[str, list[Answered]] = defaultdict(list)
    for one in answers:
        contracts[one.question.contract].append(one)
    groups = list(contracts.values())
    accuracy, low, high = interval(groups, right)
    over, over_low, over_high = interval(groups, over_prior)
    turned, turned_low, turned_high = interval(groups, pairs_turned)
    metrics = [
        Metric("contracts", len(groups)),
        Metric("questions", len(answers)),
        Metric("accuracy", accuracy),
        Metric("accuracy, low", low),
        Metric("accuracy, high", high),
        Metric("prior, accuracy", accuracy - over),
        at_least("over prior, accuracy", over, MARGIN),
        Metric("over prior, accuracy, low", over_low),
        Metric("over prior, accuracy, high", over_high),
        at_least("pairs turned", turned, TURNED),
        Metric("pairs turned, low", turned_low),
        Metric("pairs turned, high", turned_high),
    ]
    for expected in VERDICTS.values():
        own = [one for one in answers if one.question.expected == expected]
        if own:
            metrics.append(Metric(f"accuracy where {expected}", right(own)))
    for category in sorted({one.question.category for one in answers}):
        own = [one for one in answers if one.question.category == category]
        metrics.append(Metric(f"accuracy, {category}", right(own)))
    return metrics


def right(answers: Sequence[Answered]) -> float:
    return sum(one.verdict == one.question.expected for one in answers) / len(answers)


def over_prior(answers: Sequence[Answered]) -> float:
    (_, most), *_ = Counter(one.question.expected for one in answers).most_common(1)
    return right(answers) - most / len(answers)


def pairs_turned(answers: Sequence[Answered]) -> float:
    """Share of the pairs in which the rule is entailed and its opposite contradicted."""
    pairs: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for one in answers:
        if one.question.pair is not None:
            key = (one.question.contract, one.question.pair)
            pairs[key].append(one.verdict == one.question.expected)
    return sum(all(pair) for pair in pairs.values()) / max(1, len(pairs))


def interval(
    groups: Sequence[Sequence[Answered]], of: Callable[[Sequence[Answered]], float]
) -> tuple[float, float, float]:
    """A figure with the 2.5th and 97.5th percentile of its bootstrap over contracts."""
    draws = sorted(of(drawn) for drawn in redrawn(groups))
    whole = of([one for group in groups for one in group])
    return whole, draws[int(0.025 * DRAWS)], draws[int(0.975 * DRAWS)]


def redrawn(groups: Sequence[Sequence[Answered]]) -> Iterator[list[Answered]]:
    random = Random(7)
    for _ in range(DRAWS):
        yield [one for group in random.choices(groups, k=len(groups)) for one in group]


if __name__ == "__main__":
    sys.exit(main())
