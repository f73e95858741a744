"""Answers to rules that no training saw: how many are right, beside always saying the usual."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

import numpy as np
from common import Metric, at_least, at_most

from agentkit.evaluation.classes import calibration_error

VERDICTS = {
    "Entailment": "entailed",
    "Contradiction": "contradicted",
    "NotMentioned": "not_mentioned",
}
OPPOSITE = {"entailed": "contradicted", "contradicted": "entailed"}
MARGIN = 0.05
TURNED = 0.80
CALIBRATED = 0.05
ADDS = 0.03
"""What an adapter must add to the frozen backbone."""
DRAWS = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """A rule asked of a document; questions of one `pair` are a rule and its opposite."""

    document: str
    kind: str
    """What figures are given for one by one: a category of clauses, a hypothesis."""
    rule: str
    expected: str
    pair: str | None
    matter: str
    """A category of clauses, or a hypothesis in all its forms."""
    form: str
    """As it is stated, in other words, or negated."""


@dataclass(frozen=True, slots=True)
class Answered:
    question: Question
    verdict: str
    score: float

    @property
    def right(self) -> bool:
        return self.verdict == self.question.expected


def measured(name: str, answers: Sequence[Answered]) -> list[Metric]:
    """Accuracy, what it is over the prior, and pairs turned, with intervals over documents."""
    by_document: dict[str, list[Answered]] = defaultdict(list)
    for one in answers:
        by_document[one.question.document].append(one)
    groups = list(by_document.values())
    usual_by_form = accuracy(answers) - over_form(answers)
    metrics = [
        Metric(f"{name}, documents", len(groups)),
        Metric(f"{name}, questions", len(answers)),
        Metric(f"{name}, prior, accuracy", accuracy(answers) - over_prior(answers)),
        Metric(f"{name}, one verdict for each form, accuracy", usual_by_form),
        Metric(f"{name}, one verdict for all, accuracy", accuracy(answers) - over_one(answers)),
    ]
    for called, of, target in (
        ("accuracy", accuracy, None),
        ("accuracy over the prior", over_prior, MARGIN),
        ("accuracy over one verdict for each form", over_form, MARGIN),
        ("accuracy over one verdict for all", over_one, MARGIN),
        ("pairs turned", pairs_turned, TURNED),
    ):
        value, low, high = interval(groups, of)
        title = f"{name}, {called}"
        metrics.append(Metric(title, value) if target is None else at_least(title, value, target))
        metrics += [Metric(f"{title}, low", low), Metric(f"{title}, high", high)]
    value, low, high = interval(groups, ece)
    metrics += [
        at_most(f"{name}, ece", value, CALIBRATED),
        Metric(f"{name}, ece, low", low),
        Metric(f"{name}, ece, high", high),
        Metric(f"{name}, score over accuracy", over_sure(answers)),
    ]
    for expected in VERDICTS.values():
        own = [one for one in answers if one.question.expected == expected]
        if own:
            metrics.append(Metric(f"{name}, accuracy where {expected}", accuracy(own)))
    for kind in sorted({one.question.kind for one in answers}):
        own = [one for one in answers if one.question.kind == kind]
        metrics.append(Metric(f"{name}, accuracy, {kind}", accuracy(own)))
    return metrics


def beside(name: str, answers: Sequence[Answered]) -> list[Metric]:
    """The same of what is compared with: without targets, and what is known beforehand once."""
    known = re.compile(r"(?:documents|questions|prior, accuracy|one verdict for .*, accuracy)$")
    return [
        replace(metric, target=None, met=None)
        for metric in measured(name, answers)
        if not known.match(metric.name.removeprefix(f"{name}, "))
    ]


def added(name: str, answers: Sequence[Answered], others: Sequence[Answered]) -> list[Metric]:
    """Accuracy and pairs turned less those of other answers to the same questions, paired."""
    if [one.question for one in answers] != [one.question for one in others]:
        raise ValueError("only answers to the same questions can be compared")
    by_document: dict[str, list[tuple[Answered, Answered]]] = defaultdict(list)
    for pair in zip(answers, others, strict=True):
        by_document[pair[0].question.document].append(pair)

    def over(of: Callable[[Sequence[Answered]], float]) -> tuple[float, float, float]:
        def more(drawn: Sequence[tuple[Answered, Answered]]) -> float:
            return of([mine for mine, _ in drawn]) - of([other for _, other in drawn])

        return interval(list(by_document.values()), more)

    right, right_low, right_high = over(accuracy)
    turned, turned_low, turned_high = over(pairs_turned)
    target = f">= {ADDS:g}, surely above 0"
    return [
        Metric(f"{name}, accuracy", right, "", target, right >= ADDS and right_low > 0),
        Metric(f"{name}, accuracy, low", right_low),
        Metric(f"{name}, accuracy, high", right_high),
        Metric(f"{name}, pairs turned", turned),
        Metric(f"{name}, pairs turned, low", turned_low),
        Metric(f"{name}, pairs turned, high", turned_high),
    ]


def silent(name: str, answers: Sequence[Answered]) -> Metric:
    """How many rules that nothing speaks of are answered so."""
    return Metric(f"{name}, accuracy where the matter is foreign", accuracy(answers))


def accuracy(answers: Sequence[Answered]) -> float:
    return sum(one.right for one in answers) / len(answers)


def ece(answers: Sequence[Answered]) -> float:
    """Expected calibration error of the scores."""
    sure = np.array([one.score for one in answers])
    right = np.array([float(one.right) for one in answers])
    return calibration_error(sure, right, np.ones(len(right))) or 0.0


def over_sure(answers: Sequence[Answered]) -> float:
    """Mean score less accuracy: above zero where the scores promise more than is kept."""
    return sum(one.score for one in answers) / len(answers) - accuracy(answers)


def over_prior(answers: Sequence[Answered]) -> float:
    """Accuracy less that of the usual verdict of each matter in each form, known beforehand."""
    return _over_usual(answers, lambda question: (question.matter, question.form))


def over_form(answers: Sequence[Answered]) -> float:
    """Accuracy less what can be had by telling a negated rule from a stated one."""
    return _over_usual(answers, lambda question: question.form)


def over_one(answers: Sequence[Answered]) -> float:
    """Accuracy less that of the most frequent verdict of all."""
    return _over_usual(answers, lambda question: "")


def _over_usual(answers: Sequence[Answered], group: Callable[[Question], Hashable]) -> float:
    groups: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for one in answers:
        groups[group(one.question)][one.question.expected] += 1
    usual = sum(counts.most_common(1)[0][1] for counts in groups.values())
    return accuracy(answers) - usual / len(answers)


def pairs_turned(answers: Sequence[Answered]) -> float:
    """Share of the pairs in which a rule and its opposite got opposite verdicts.

    Pairs of which neither is said to be decided count as not turned.
    """
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in answers:
        if one.question.pair is not None:
            pairs[one.question.document, one.question.pair].append(one.verdict)
    # A document that a bootstrap draws twice counts twice.
    turned = [
        OPPOSITE.get(first) == second
        for verdicts in pairs.values()
        for first, second in zip(verdicts[::2], verdicts[1::2], strict=True)
    ]
    return sum(turned) / max(1, len(turned))


def interval(
    groups: Sequence[Sequence[T]], of: Callable[[Sequence[T]], float]
) -> tuple[float, float, float]:
    """A figure with the 2.5th and the 97.5th percentile of its bootstrap over documents."""
    draws = sorted(of(drawn) for drawn in redrawn(groups))
    whole = of([one for group in groups for one in group])
    return whole, draws[int(0.025 * DRAWS)], draws[int(0.975 * DRAWS)]


def redrawn(groups: Sequence[Sequence[T]]) -> Iterator[list[T]]:
    random = Random(7)
    for _ in range(DRAWS):
        yield [one for group in random.choices(groups, k=len(groups)) for one in group]
