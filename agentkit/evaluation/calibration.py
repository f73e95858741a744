"""A trained skill to one whose confidence means something, by rows that it answers as served.

Tuning by packs, as a training does it, tells nothing of a document that is read in windows, nor of
questions unlike any of the training. Here rows go the product's own way, and what the choice head
said of each is fitted by how new the question is to it (see `agentkit.adapters.novelty`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from agentkit.errors import InputError
from agentkit.evaluation import classes
from agentkit.evaluation.evaluate import batches, document_key
from agentkit.evaluation.kept_readings import KeptReadings, Readings
from agentkit.evaluation.serving import SkillPredictor
from agentkit.output import Answered
from agentkit.skill.folder import Skill, load_skill
from agentkit.skill.manifest import ChoiceAnswer, Manifest
from agentkit.step import Runner, _Prepared
from agentkit.training.calibration import Floats, PlainHead, Said, fit_calibration
from agentkit.training.checks import check_calibrated, check_enough
from agentkit.training.rows import Row
from agentkit.types import Json, StepResult

MOST = 1000
"""Rows of a part that are answered, at most; and questions of a training that are compared with."""
_EACH = 4
"""Documents of which one question of a training is taken to be known, at most."""

Progress = Callable[[int, int], None]
"""Told how many rows are done, and of how many."""


@dataclass(frozen=True, slots=True)
class _ReadResult(StepResult):
    readings: Readings = ()


class ReadingRunner(Runner):
    """Stateful: a runner whose results of a choice carry what the head said."""

    def _finish(
        self, one: _Prepared, answers: Sequence[Answered], seconds: float
    ) -> StepResult | Exception:
        result = super()._finish(one, answers, seconds)
        answer = one.skill.manifest.answer if one.skill else None
        if isinstance(result, Exception) or not isinstance(answer, ChoiceAnswer):
            return result
        known = {field.name: getattr(result, field.name) for field in fields(StepResult)}
        readings = tuple(c.reading for _, c in answers if c.reading is not None)
        return _ReadResult(**known, readings=readings)


def calibrate_skill(
    folder: Path,
    known: Sequence[Row] | None,
    parts: Mapping[str, Sequence[Row]],
    *,
    serve: Callable[[Skill], SkillPredictor],
    keep: Callable[[Skill], KeptReadings],
    silence: float | None = None,
    on_progress: Progress | None = None,
    seed: int = 7,
) -> dict[str, Any]:
    """Fit a trained skill's calibration and write it into its `head.safetensors`.

    `known` are rows of its training, which say what it knows (None or none: what its last
    calibration knew); `parts` rows with answers that it was not trained on, by what they are
    called. `serve` makes a predictor of a skill, with a `ReadingRunner`; `keep` gives what was said
    of rows before this was killed. `silence` is as `fit_curve` takes it.
    Returns what was done, by part with accuracy and calibration error before and after. Raises
    `SkillError` for a folder without a trained choice head, `InputError` for too few rows, a row
    that cannot be answered, or a folder that another process wrote to meanwhile.
    """
    trained = load_skill(folder)
    manifest = trained.manifest
    answer = check_calibrated(manifest, str(folder))
    file = folder / "head.safetensors"
    began_with = _weights(folder)
    head = PlainHead.read(file)
    asked = {name: _sample(rows, manifest, seed) for name, rows in parts.items() if rows}
    learnt = _questions(known or (), manifest, seed)
    count = sum(map(len, asked.values()))
    check_enough(count, str(folder))
    # Before time is spent on any: one may say what is none of the choices.
    gold = {name: [_gold(row, answer) for row in rows] for name, rows in asked.items()}
    done = 0

    def heard(rows: Sequence[Row]) -> Iterator[tuple[int, Readings]]:
        nonlocal done
        for batch in batches(rows, manifest):
            own = [rows[at] for at in batch]
            if (said := kept.get(own)) is None:
                kept.put(own, said := list(_readings(predictor, own)))
            yield from zip(batch, said, strict=True)
            done += len(batch)
            if on_progress is not None:
                on_progress(done, count + len(learnt))

    with TemporaryDirectory() as scratch:
        plain = Path(scratch) / folder.resolve().name
        shutil.copytree(folder, plain)
        head.write(plain / file.name)
        # The copy's digest is another each time: the order of a file's metadata is by chance.
        predictor, kept = serve(load_skill(plain)), keep(trained)
        # Of these only the questions count, whatever would be right of them.
        knows = _said(heard(learnt), [0] * len(learnt)) if learnt else None
        said = {name: _said(heard(rows), gold[name]) for name, rows in asked.items()}

    silent = [answer.choices.index(name) for name in answer.no_evidence]
    questions = None if knows is None else knows.questions[knows.deciding(knows.chances, silent)]
    calibration = head.knowing(questions, len(answer.choices), silent)
    found = fit_calibration(calibration, said, silence)
    if _weights(folder) != began_with:
        raise InputError(
            "it was trained or calibrated by another process meanwhile; nothing was written",
            where=str(folder),
            hint="calibrate it again",
        )
    head.write(file, calibration)
    kept.clear()
    return {
        "known_questions": len(calibration.known),
        "silence": silence,
        "furthest": round(float(calibration.furthest), 4),
        "curve": [round(float(value), 4) for value in calibration.curve],
        "parts": {
            name: {
                "questions": len(said[name].gold),
                "novelty": round(float(np.median(one.novelty)), 4),
                "before": _figures(one.before, said[name].gold),
                "after": _figures(one.after, said[name].gold),
            }
            for name, one in found.items()
        },
    }


def _weights(folder: Path) -> list[bytes]:
    """Digests of what a training writes, adapter and head."""
    files = sorted(folder.glob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).digest() for file in files]


def asks_again(rows: Sequence[Row], known: Sequence[Row], manifest: Manifest) -> int:
    """How many rows ask a question that rows of the training ask, too.

    None where a skill has but one, as one that is given nothing but a document.
    """
    there = {_question(row, manifest) for row in known}
    if len(there) < 2:
        return 0
    return sum(_question(row, manifest) in there for row in rows)


def _question(row: Row, manifest: Manifest) -> str:
    """A row's input without its document."""
    field = manifest.retrieval.document
    given = row.input
    if isinstance(given, Mapping):
        given = {key: value for key, value in given.items() if key != field}
    return json.dumps(given, sort_keys=True)


def _sample(rows: Sequence[Row], manifest: Manifest, seed: int) -> list[Row]:
    """At most `MOST` rows, whole documents of them as far as they go."""
    if len(rows) <= MOST:
        return list(rows)
    return [row for own in _documents(rows, manifest, seed) for row in own][:MOST]


def _questions(rows: Sequence[Row], manifest: Manifest, seed: int) -> list[Row]:
    """At most `MOST` rows of many questions, each asked of a few documents."""
    taken: Counter[str] = Counter()
    chosen: list[Row] = []
    for own in _documents(rows, manifest, seed):
        for row in own:
            question = _question(row, manifest)
            if taken[question] < _EACH and len(chosen) < MOST:
                taken[question] += 1
                chosen.append(row)
    return chosen


def _documents(rows: Sequence[Row], manifest: Manifest, seed: int) -> list[list[Row]]:
    """The rows of each document, documents in random order; none of them twice."""
    documents: dict[str, dict[str, Row]] = {}
    for row in rows:
        own = documents.setdefault(document_key(row, manifest), {})
        own[_question(row, manifest)] = row
    order = sorted(documents)
    Random(seed).shuffle(order)
    return [list(documents[document].values()) for document in order]


def _readings(predictor: SkillPredictor, rows: Sequence[Row]) -> Iterator[Readings]:
    for row, result in zip(rows, predictor.results(rows), strict=True):
        if isinstance(result, Exception):
            raise InputError(f"cannot be answered: {result}", where=row.place or "a row")
        readings = result.readings if isinstance(result, _ReadResult) else ()
        if not readings or any(reading.choices is None for reading in readings):
            raise InputError("no head answered", where=row.place or "a row")
        yield readings


def _said(heard: Iterator[tuple[int, Readings]], gold: Sequence[int]) -> Said:
    places, answered = zip(*heard, strict=True)
    windows = [reading for readings in answered for reading in readings]
    return Said(
        chances=np.array([reading.choices for reading in windows], dtype=np.float32),
        questions=np.array([reading.question for reading in windows], dtype=np.float32),
        counts=np.array([len(readings) for readings in answered], dtype=np.int64),
        gold=np.array([gold[at] for at in places], dtype=np.int64),
    )


def _gold(row: Row, answer: ChoiceAnswer) -> int:
    expected = row.expected.get(answer.field) if isinstance(row.expected, Mapping) else None
    if expected not in answer.choices:
        raise InputError(
            f"{answer.field} is {expected!r}, not one of {', '.join(answer.choices)}",
            where=row.place or "a row",
        )
    return answer.choices.index(expected)


def _figures(chances: Floats, gold: np.ndarray[Any, Any]) -> dict[str, Json]:
    right = (chances.argmax(axis=1) == gold).astype(np.float64)
    sure = chances.max(axis=1).astype(np.float64)
    error = classes.calibration_error(sure, right, np.ones(len(right)))
    return {"accuracy": round(float(right.mean()), 4), "ece": round(error or 0.0, 4)}
