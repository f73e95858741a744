"""Rows through predictors into scorers: one pass, each document read once by each of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agentkit.errors import InputError
from agentkit.evaluation.baselines import Predictor
from agentkit.evaluation.choice_scorer import ChoiceScorer
from agentkit.evaluation.marks_scorer import MarksScorer
from agentkit.evaluation.report import Evaluation, Subject
from agentkit.evaluation.resampling import RESAMPLES, Figure, intervals
from agentkit.evaluation.scoring import Prediction, Scorer, TextOf, scorable
from agentkit.evaluation.text_scorer import TextScorer
from agentkit.skill.manifest import ChoiceAnswer, Manifest, MarksAnswer
from agentkit.training.checks import problem_of_gold
from agentkit.training.rows import Row
from agentkit.types import Json

TOGETHER = 32
"""Rows that are given to a predictor together."""


@dataclass(slots=True)
class _Running:
    predictor: Predictor
    scorer: Scorer
    failed: int = 0
    seconds: float = 0.0


def evaluate(
    manifest: Manifest,
    rows: Sequence[Row],
    predictors: Mapping[str, Predictor],
    *,
    text_of: TextOf,
    on_prediction: Callable[[int, Prediction], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation | None:
    """Measure predictors on the rows that say what is right; the first is compared with the rest.

    Rows over one document are answered together, wherever they stand. `on_prediction` is given
    every row's number and the first predictor's answer, out of order; `on_progress` the number of
    rows that were done. The other predictors see only rows that can be measured. None when no row
    can be. Raises `InputError` naming the row whose `expected` does not fit the skill, before any
    row is answered.
    """
    check_gold(manifest, rows)
    running = {
        name: _Running(one, scorer_for(manifest, text_of)) for name, one in predictors.items()
    }
    groups: list[str] = []
    for batch in batches(rows, manifest):
        chosen = [(at, rows[at]) for at in batch]
        measured = [(at, row) for at, row in chosen if scorable(manifest, row.expected)]
        groups += [document_key(row, manifest) for _, row in measured]
        for number, one in enumerate(running.values()):
            asked = chosen if number == 0 else measured
            began = time.perf_counter()
            predictions = one.predictor([row for _, row in asked]) if asked else []
            one.seconds += time.perf_counter() - began
            for (at, row), prediction in zip(asked, predictions, strict=True):
                if number == 0 and on_prediction is not None:
                    on_prediction(at, prediction)
                one.failed += prediction.error is not None
                if scorable(manifest, row.expected):
                    _add(one.scorer, row, prediction, at)
        if on_progress is not None:
            on_progress(len(batch))
    if not groups:
        return None
    measures = {name: one.scorer.figures for name, one in running.items()}
    found = intervals(measures, groups, resamples=resamples, seed=seed)
    first = next(iter(running.values())).scorer
    by_label = intervals({"": first.label_f1}, groups, resamples=resamples, seed=seed).figures[""]
    subjects = {
        name: Subject(
            figures=found.figures[name],
            differences=found.differences.get(name, {}),
            details=_with_intervals(one.scorer.details(), by_label if one.scorer is first else {}),
            failed=one.failed,
            seconds=one.seconds,
        )
        for name, one in running.items()
    }
    return Evaluation(len(groups), len(set(groups)), subjects)


def _with_intervals(details: dict[str, Json], by_label: Mapping[str, Figure]) -> dict[str, Json]:
    """The details with the interval of each label's F1, `[low, high]`; None where it has none."""
    if any(figure.low is not None for figure in by_label.values()):
        for name, figures in details.get("labels", {}).items():
            f1 = next(figure for figure in figures if figure.endswith("f1"))
            ends = by_label[name].low, by_label[name].high
            figures[f"{f1}_interval"] = (
                None if None in ends else [round(end, 4) for end in ends if end is not None]
            )
    return details


def check_gold(manifest: Manifest, rows: Sequence[Row]) -> None:
    """Raises `InputError` for the first row that says what the skill cannot answer."""
    field = manifest.retrieval.document
    for number, row in enumerate(rows, start=1):
        if not scorable(manifest, row.expected):
            continue
        problem = problem_of_gold(manifest, row)
        if isinstance(manifest.answer, MarksAnswer) and field:
            given = row.input.get(field) if isinstance(row.input, Mapping) else None
            problem = "the row has no document" if given is None else problem
        if problem:
            raise InputError(
                problem,
                where=row.place or f"row {number}",
                hint="skill.yaml says what the skill gives",
            )


def scorer_for(manifest: Manifest, text_of: TextOf) -> Scorer:
    """A fresh scorer that fits the way in which a skill answers."""
    answer = manifest.answer
    if isinstance(answer, ChoiceAnswer):
        return ChoiceScorer(answer)
    if isinstance(answer, MarksAnswer):
        return MarksScorer(answer, text_of)
    return TextScorer(manifest.output, answer.choice_field)


def _add(scorer: Scorer, row: Row, prediction: Prediction, at: int) -> None:
    try:
        scorer.add(row.input, row.expected, prediction)
    except InputError as error:
        error.where = f"row {at + 1}, {error.where}" if error.where else f"row {at + 1}"
        raise


def batches(rows: Sequence[Row], manifest: Manifest) -> Iterator[list[int]]:
    """Numbers of rows, those of one document together, documents as they first appear."""
    together: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        together.setdefault(document_key(row, manifest), []).append(at)
    order = [at for own in together.values() for at in own]
    for start in range(0, len(order), TOGETHER):
        yield order[start : start + TOGETHER]


def document_key(row: Row, manifest: Manifest) -> str:
    """What rows over one document share."""
    field = manifest.retrieval.document
    if field and isinstance(row.input, Mapping) and field in row.input:
        return json.dumps(row.input[field], sort_keys=True)
    return row.group


def text_reader(manifest: Manifest, stored: Callable[[str], str]) -> TextOf:
    """What gives a row's document text: as it stands in the input, or `stored` by its digest."""
    field = manifest.retrieval.document

    def text_of(input: Json) -> str:
        value = input.get(field) if field and isinstance(input, Mapping) else None
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping) and isinstance(value.get("$document"), str):
            return stored(value["$document"])
        raise InputError("the row has no document", where="input")

    return text_of
