"""Completions to a skill's output: every quote copied from the document, every value checked.

The model never spells a quote. A task head scores numbered spans and tokens; a generating skill
answers with span numbers wherever its output schema says `x-quote: true`. The words and their
offsets are then taken from the document, so a quote cannot be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from agentkit.errors import InputError, OutputError
from agentkit.skill.grounding import GROUNDED, grounded_schema, shown_text
from agentkit.skill.manifest import (
    ChoiceAnswer,
    GenerateAnswer,
    Manifest,
    MarksAnswer,
    SpanLabel,
)
from agentkit.skill.quoting import fill_quotes, filled_schema, quotable, written_schema
from agentkit.skill.schema import with_choice
from agentkit.types import Completion, EncodedPrompt, Json, Prompt, PromptSpan, Reading

TOKEN_RUN = 0.5
"""A token belongs to a run from this share of the head's own cut on; the run's best token is its
score. A causal model is sure of a name only after its first words, so a run reaches further than
its peak."""
_CUT = 0.5
"""From which probability on a label is given where neither skill nor head says."""

_SCORE = "score"
"""Output field of a choice's probability."""
_AROUND = " \t\r\n\f\v,;:()[]\"'“”‘’"

Answered = tuple[EncodedPrompt, Completion]


@dataclass(frozen=True, slots=True)
class Mark:
    """A labelled stretch of a document."""

    label: str
    start: int
    end: int
    quote: str
    score: float


def check_input(manifest: Manifest, input: Json) -> None:
    """Raise `InputError` unless `input` meets the skill's input schema."""
    if problem := problem_with(manifest.input, input):
        raise InputError(
            f"the input does not fit: {problem}",
            where=f"skill {manifest.name}",
            hint=f"`agentkit skills show {manifest.name}` prints what it takes",
        )


def fits(manifest: Manifest, input: Json) -> bool:
    """Whether `input` meets the skill's input schema; a skill that takes a text takes anything."""
    return manifest.input.get("type") == "string" or problem_with(manifest.input, input) is None


def gives(manifest: Manifest, fields: Sequence[str] | None) -> bool:
    """Whether the skill's output schema may hold one of the fields; None asks for nothing."""
    if fields is None:
        return True
    schema = manifest.output
    if schema.get("type", "object") != "object":
        return False
    known = {*schema.get("properties", {}), *schema.get("required", ())}
    return not known or not known.isdisjoint(fields)


def generation_schema(manifest: Manifest, prompt: Prompt) -> dict[str, Json] | None:
    """The schema that generation is constrained to; None for free text.

    Where the output holds a quote the model writes the number of a span that may be quoted; a
    grounded string has the numbers and names of the prompt's question and spans.
    """
    if writes_plainly(manifest):
        return None
    narrowed: dict[str, Json] = grounded_schema(
        written_schema(manifest.output, len(quotable(prompt.spans))), shown_text(prompt)
    )
    if isinstance(manifest.answer, GenerateAnswer) and prompt.chosen is not None:
        narrowed = with_choice(narrowed, manifest.answer.choice_field or "", prompt.chosen)
    return _unscored(narrowed) if _scores(manifest) else narrowed


def _scores(manifest: Manifest) -> bool:
    """Whether a written output has the probability of what its head chose."""
    properties = manifest.output.get("properties", {})
    return isinstance(manifest.answer, GenerateAnswer) and (
        manifest.answer.choice_field is not None and _SCORE in properties
    )


def _unscored(schema: Mapping[str, Json]) -> dict[str, Json]:
    """The schema of what is written: a score is known, not written."""
    known = {name: part for name, part in schema["properties"].items() if name != _SCORE}
    required = [name for name in schema.get("required", ()) if name != _SCORE]
    return {**schema, "properties": known, "required": required}


def to_output(manifest: Manifest, answers: Sequence[Answered], *, all_scores: bool = False) -> Json:
    """The output of a skill from what the engine gave for each of its prompts.

    `all_scores` lowers every threshold to zero. Raises `OutputError` when the output does not meet
    the skill's output schema.
    """
    answer = manifest.answer
    output: Json
    if isinstance(answer, MarksAnswer):
        output = _marks_output(answer, answers, all_scores)
    elif isinstance(answer, ChoiceAnswer):
        output = _choice_output(answer, answers, all_scores, named=_may_name(manifest, answer))
    else:
        output = _written_output(manifest, answers[0])
    if problem := problem_with(manifest.output, output):
        raise OutputError(
            f"the answer does not meet the output schema: {problem}",
            where=f"skill {manifest.name}",
        )
    return output


# ---------------------------------------------------------------- written answers


def _written_output(manifest: Manifest, answered: Answered) -> Json:
    encoded, completion = answered
    text = completion.text or ""
    if writes_plainly(manifest):
        return text.strip()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise OutputError(
            f"the answer is not JSON: {error.msg}", where=f"skill {manifest.name}"
        ) from error
    output = fill_quotes(manifest.output, value, encoded.prompt.spans)
    reading = completion.reading
    if _scores(manifest) and encoded.prompt.chosen is not None:
        output[_SCORE] = 1.0
    elif _scores(manifest) and reading is not None and reading.choices is not None:
        output[_SCORE] = round(float(reading.choices.max()), 4)
    return output


def writes_plainly(manifest: Manifest) -> bool:
    """Whether a generating skill writes plain text, not JSON."""
    limits = {"enum", "const", "pattern", "maxLength", "minLength", GROUNDED}
    return manifest.output.get("type") == "string" and limits.isdisjoint(manifest.output)


# ---------------------------------------------------------------- choices


def deciding(answer: ChoiceAnswer, answers: Sequence[Answered]) -> Answered:
    """Of several windows' answers that which decides."""
    silent = [answer.choices.index(name) for name in answer.no_evidence]
    chances = [_probabilities(answer, completion) for _, completion in answers]
    return answers[most_telling(np.stack(chances), silent)]


def most_telling(chances: NDArray[np.float32], silent: Sequence[int]) -> int:
    """Of several windows that which speaks of the question most; the first of equals.

    `chances` is `(windows, choices)`; `silent` are the numbers of the choices that say nothing
    speaks of it. Without any, the window that is surest of its choice.
    """
    speaks = 1.0 - chances[:, list(silent)].sum(axis=1) if silent else chances.max(axis=1)
    return int(speaks.argmax())


def _may_name(manifest: Manifest, answer: ChoiceAnswer) -> bool:
    """Whether the output schema lets a piece of evidence say which document it is of."""
    field = manifest.output.get("properties", {}).get(answer.evidence_field)
    items = field.get("items") if isinstance(field, Mapping) else None
    if not isinstance(items, Mapping):
        return True
    return items.get("additionalProperties") is not False or "document" in items.get(
        "properties", ()
    )


def _choice_output(
    answer: ChoiceAnswer, answers: Sequence[Answered], all_scores: bool, *, named: bool
) -> Json:
    encoded, completion = deciding(answer, answers)
    scored = _probabilities(answer, completion)
    best = int(scored.argmax())
    output: dict[str, Json] = {
        answer.field: answer.choices[best],
        _SCORE: round(float(scored[best]), 4),
    }
    if answer.evidence_field:
        evidence: list[Json] = []
        reading = completion.reading
        speaks = all_scores or answer.choices[best] not in answer.no_evidence
        if speaks and reading is not None and reading.evidence is not None:
            evidence = _evidence(answer, encoded, reading.evidence, all_scores, named)
        output[answer.evidence_field] = evidence
    return output


def _probabilities(answer: ChoiceAnswer, completion: Completion) -> Any:
    if completion.reading is not None and completion.reading.choices is not None:
        return completion.reading.choices
    given = completion.choices or {}
    return np.array([given.get(name, 0.0) for name in answer.choices], dtype=np.float32)


def _evidence(
    answer: ChoiceAnswer, encoded: EncodedPrompt, scores: Any, all_scores: bool, named: bool
) -> list[Json]:
    """The best spans above the threshold, in document order; at least the best one.

    `named`: those of a standing index say which document they are of.
    """
    spans = quotable(encoded.prompt.spans)
    order = [int(at) for at in np.argsort(-scores[: len(spans)], kind="stable")]
    least = 0.0 if all_scores else answer.evidence_threshold
    kept = [at for at in order if scores[at] >= least] or order[:1]
    if not all_scores:
        kept = kept[: answer.evidence_limit]
    return [
        {
            "quote": spans[at].text,
            "start": spans[at].start,
            "end": spans[at].end,
            "score": round(float(scores[at]), 4),
            **({"document": spans[at].document} if named and spans[at].standing else {}),
        }
        for at in sorted(kept, key=lambda at: spans[at].start)
    ]


# ---------------------------------------------------------------- marks


def _marks_output(answer: MarksAnswer, answers: Sequence[Answered], all_scores: bool) -> Json:
    marks: list[Mark] = []
    for encoded, completion in answers:
        if completion.reading is not None:
            marks += _window_marks(answer, encoded, completion.reading, all_scores)
    kept = []
    for label in answer.labels:
        own = sorted((m for m in marks if m.label == label.name), key=lambda m: -m.score)
        kept += own if all_scores else own[: label.limit]
    kept.sort(key=lambda mark: (mark.start, mark.end, mark.label))
    return {
        field: [
            {
                spec.label_key: mark.label,
                spec.quote_key: mark.quote,
                "start": mark.start,
                "end": mark.end,
                "score": round(mark.score, 4),
            }
            for mark in kept
            if spec.labels is None or mark.label in spec.labels
        ]
        for field, spec in answer.fields.items()
    }


def _window_marks(
    answer: MarksAnswer, encoded: EncodedPrompt, reading: Reading, all_scores: bool
) -> Iterator[Mark]:
    whole = [label for label in answer.labels if label.unit == "sentence"]
    inner = [label for label in answer.labels if label.unit == "token"]
    if reading.span_labels is not None:
        for column, label in enumerate(whole):
            scores = reading.span_labels[:, column]
            least = _least(label, _cut(reading.span_cuts, column), all_scores)
            for at in np.flatnonzero(scores >= least):
                span = encoded.prompt.spans[int(at)]
                if not _of_another(encoded, span):
                    yield Mark(label.name, span.start, span.end, span.text, float(scores[at]))
    if reading.token_labels is not None:
        for column, label in enumerate(inner):
            cut = _cut(reading.token_cuts, column)
            least = _least(label, cut, all_scores)
            scores = reading.token_labels[:, column]
            yield from _joined(_runs(encoded, scores, label, TOKEN_RUN * cut, least))


def _of_another(encoded: EncodedPrompt, span: PromptSpan) -> bool:
    """Whether a span is a standing index's beside a document's, which come first."""
    return span.standing and not encoded.prompt.spans[0].standing


def _cut(cuts: Any, column: int) -> float:
    return _CUT if cuts is None else float(cuts[column])


def _least(label: SpanLabel, cut: float, all_scores: bool) -> float:
    """From which probability on a label is given: as the skill says, or else its head."""
    if all_scores:
        return 0.0
    return cut if label.threshold is None else label.threshold


def _runs(
    encoded: EncodedPrompt, scores: Any, label: SpanLabel, likely: float, least: float
) -> Iterator[Mark]:
    """Unbroken runs of tokens from the probability `likely` on, within one span.

    A run is a mark if its best token reaches `least`.
    """
    ends = list(encoded.span_ends)
    run: list[int] = []
    for at in [*(int(i) for i in np.flatnonzero(scores >= likely)), -1]:
        if run and (
            at != run[-1] + 1 or _span_of(encoded, ends, at) != _span_of(encoded, ends, run[0])
        ):
            mark = _run_mark(encoded, ends, scores, label, run)
            if mark is not None and mark.score >= least:
                yield mark
            run = []
        run.append(at)


def _joined(marks: Iterable[Mark]) -> list[Mark]:
    """The marks of a label in order, those that share a word as one."""
    joined: list[Mark] = []
    for mark in marks:
        last = joined[-1] if joined else None
        if last is None or not last.start <= mark.start < last.end:
            joined.append(mark)
            continue
        # Each runs to the ends of its words, so the later one ends last.
        quote = last.quote + mark.quote[last.end - mark.start :]
        end, score = max(last.end, mark.end), max(last.score, mark.score)
        joined[-1] = replace(last, end=end, quote=quote, score=score)
    return joined


def _span_of(encoded: EncodedPrompt, ends: Sequence[int], at: int) -> int:
    return int(np.searchsorted(ends, encoded.token_offsets[at][0]))


def _run_mark(
    encoded: EncodedPrompt, ends: Sequence[int], scores: Any, label: SpanLabel, run: Sequence[int]
) -> Mark | None:
    span = encoded.prompt.spans[_span_of(encoded, ends, run[0])]
    if _of_another(encoded, span):
        return None
    left = encoded.token_offsets[run[0]][1] - span.start
    right = encoded.token_offsets[run[-1]][2] - span.start
    text = span.text
    while left < right and text[left] in _AROUND:
        left += 1
    while left < right and text[right - 1] in _AROUND:
        right -= 1
    if left == right:
        return None
    # Tokens are pieces of words; a mark is made of whole ones.
    while left > 0 and text[left - 1].isalnum() and text[left].isalnum():
        left -= 1
    while right < len(text) and text[right].isalnum() and text[right - 1].isalnum():
        right += 1
    score = float(np.max(scores[list(run)]))
    return Mark(label.name, span.start + left, span.start + right, text[left:right], score)


# ---------------------------------------------------------------- schemas


@lru_cache(maxsize=128)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def problem_with(
    schema: Mapping[str, Json], value: Json, *, passed_over: Collection[str] = ()
) -> str | None:
    """The first thing wrong with a value, with its place, or None.

    What a keyword of the schema that is `passed_over` forbids is not counted.
    """
    validator = _validator(json.dumps(filled_schema(schema), sort_keys=True))
    for error in validator.iter_errors(value):
        if error.validator in passed_over:
            continue
        place = "/".join(str(part) for part in error.absolute_path)
        return f"{place}: {error.message[:300]}" if place else error.message[:300]
    return None
