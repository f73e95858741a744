"""The text half of a skill folder: `SKILL.md` and `skill.yaml` as one frozen model.

`SKILL.md` follows the Agent Skills format: YAML front matter with `name` (the folder's name:
lowercase letters, digits and single hyphens, at most 64 characters) and `description` (at most
1,024 characters); its body is the instruction that the model reads. `skill.yaml` says what the
skill takes in, gives out, how it answers and how it is found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
MAX_NAME = 64
MAX_DESCRIPTION = 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerateAnswer(_Frozen):
    """Write the output. JSON that the output schema constrains, or free text if it is a string."""

    kind: Literal["generate"] = "generate"
    choice_field: str | None = None
    """Output field, an enumeration, that is chosen before the rest is written to fit. What chooses
    reads the whole question: surer than the first token that would be written of it. If the output
    has a `score`, that gets its probability."""
    choice_by: Literal["head", "probe"] = "head"
    """What chooses: a head trained with the adapter, or a linear probe of the states below it,
    which tells many values apart better."""
    choice_given: str | None = None
    """Template over the input of the value that it says already: where that is one of the field's
    values, it is taken and nothing is chosen."""


class ChoiceAnswer(_Frozen):
    """Pick one of a few answers; with a task head, also point at the spans that carry it."""

    kind: Literal["choice"]
    choices: tuple[str, ...] = Field(min_length=2, max_length=64)
    field: str = "answer"
    """Output field that gets the choice; `score` gets its probability."""
    scoring: Literal["head", "likelihood"] = "head"
    evidence_field: str | None = None
    """Output field that gets `[{quote, start, end, score}]`; needs `scoring: head`."""
    evidence_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    evidence_limit: int = Field(default=5, ge=1)
    no_evidence: tuple[str, ...] = ()
    """Choices that come without evidence (nothing in the document speaks of it)."""

    @model_validator(mode="after")
    def _consistent(self) -> ChoiceAnswer:
        if self.evidence_field and self.scoring != "head":
            raise ValueError("evidence_field needs scoring: head")
        if unknown := set(self.no_evidence) - set(self.choices):
            raise ValueError(f"no_evidence names {sorted(unknown)}, which are not among choices")
        return self


class SpanLabel(_Frozen):
    """One label that a span-label head gives."""

    name: str
    unit: Literal["sentence", "token"] = "sentence"
    """Mark whole spans, or runs of tokens inside them (names, dates)."""
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """From which probability on it is given; by default as the head's training found best."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many marks in a document, the best ones."""


class MarksField(_Frozen):
    """An output field that lists marks: which, and under which keys."""

    label_key: str
    quote_key: str
    labels: tuple[str, ...] | None = None
    """None means every label."""


class MarksAnswer(_Frozen):
    """Label stretches of the document in one reading, window by window."""

    kind: Literal["marks"]
    labels: tuple[SpanLabel, ...] = Field(min_length=1)
    fields: dict[str, MarksField] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> MarksAnswer:
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise ValueError("labels: a name occurs twice")
        for field, spec in self.fields.items():
            if unknown := set(spec.labels or ()) - set(names):
                raise ValueError(f"fields.{field}.labels: no such label: {sorted(unknown)}")
        return self


Answer = Annotated[GenerateAnswer | ChoiceAnswer | MarksAnswer, Field(discriminator="kind")]


class PromptTemplate(_Frozen):
    """Jinja template over the skill's input."""

    question: str = "{{ input }}"
    """Rendered last. `input` is the whole input; its keys are names of their own."""


class RetrievalDefaults(_Frozen):
    """How much of the document a call is shown, unless the step says otherwise."""

    document: str | None = None
    """Input field that holds the document; None: the skill reads no document."""
    mode: Literal["auto", "whole", "windows", "excerpts", "none"] = "auto"
    """`auto`: whole if it fits the window, else excerpts. `windows`: all of it, piece by piece."""
    window: int | None = Field(default=None, ge=64)
    """Tokens of document in one prompt; None means `settings.document_window`."""
    windows: int | None = Field(default=None, ge=1)
    """In mode `windows`, how many of them are asked: those with the best hits for the query.

    None asks all. A skill that labels the document (`marks`) reads all of it in any case."""
    query: str | None = None
    """Jinja template over the input; None means the rendered question."""
    top_k: int = Field(default=24, ge=1, le=1000)
    budget: int | None = Field(default=None, ge=32)
    """Tokens of excerpts; None means `settings.excerpt_budget`."""
    index: str | tuple[str, ...] = "document"
    """Standing indexes that are searched beside the document, as in a step's context."""
    filters: dict[str, JsonValue] = Field(default_factory=dict)
    """Which chunks may be found: `document`, `source`, `page`, `heading`."""

    @property
    def standing(self) -> bool:
        """Whether anything but the document is searched."""
        return self.index not in ("document", ("document",))


class GenerationDefaults(_Frozen):
    max_tokens: int = Field(default=256, ge=1, le=8192)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    stop: tuple[str, ...] = ()
    beams: int = Field(default=1, ge=1, le=16)
    """Answers that are written side by side, of which the likeliest is given: surer where the
    skill wavers between a few, and slower by what it wavers. Only at temperature 0."""
    beams_if_stuck: int = Field(default=1, ge=1, le=16)
    """By how many an answer is written again from its start once its schema forbids all that the
    skill would write next, such as a number that the document does not have; 1 goes on with the
    likeliest token that is allowed, however unlikely. Only at temperature 0."""

    @model_validator(mode="after")
    def _searches_or_samples(self) -> GenerationDefaults:
        if max(self.beams, self.beams_if_stuck) > 1 and self.temperature > 0:
            raise ValueError("beams search for the likeliest answer: they need temperature 0")
        return self


class MetricFloor(_Frozen):
    floor: float | None = None
    """`agentkit eval` fails below it."""
    description: str = ""


def _free_text() -> dict[str, Any]:
    return {"type": "string"}


class Manifest(_Frozen):
    """What a skill says of itself."""

    name: str
    description: str
    instructions: str = ""
    """Body of SKILL.md."""
    license: str | None = None
    version: str = "1"
    input: dict[str, Any] = Field(default_factory=_free_text)
    """JSON Schema of the input."""
    output: dict[str, Any] = Field(default_factory=_free_text)
    """JSON Schema of the output."""
    answer: Answer = Field(default_factory=GenerateAnswer)
    prompt: PromptTemplate = PromptTemplate()
    utterances: tuple[str, ...] = ()
    """What people say when they want this skill."""
    retrieval: RetrievalDefaults = RetrievalDefaults()
    generation: GenerationDefaults = GenerationDefaults()
    backbones: tuple[str, ...] = ()
    """Other backbone fingerprints that the adapter is declared compatible with."""
    metrics: dict[str, MetricFloor] = Field(default_factory=dict)

    @property
    def head_choices(self) -> tuple[str, ...]:
        """What a choice head or a probe picks from; empty where the skill has neither."""
        answer = self.answer
        if isinstance(answer, ChoiceAnswer):
            return answer.choices if answer.scoring == "head" else ()
        if isinstance(answer, GenerateAnswer) and answer.choice_field is not None:
            fields = self.output.get("properties")
            field = fields.get(answer.choice_field) if isinstance(fields, Mapping) else None
            choices = field.get("enum") if isinstance(field, Mapping) else None
            return tuple(choices) if isinstance(choices, list | tuple) else ()
        return ()

    @property
    def probes(self) -> bool:
        """Whether what picks is a linear probe."""
        return isinstance(self.answer, GenerateAnswer) and self.answer.choice_by == "probe"

    @model_validator(mode="after")
    def _chooses_among_texts(self) -> Manifest:
        field = self.answer.choice_field if isinstance(self.answer, GenerateAnswer) else None
        choices = self.head_choices
        if field is None and isinstance(self.answer, GenerateAnswer):
            for name in self.answer.model_fields_set & {"choice_by", "choice_given"}:
                raise ValueError(f"answer.{name} is of a choice: answer.choice_field is missing")
        if field and (not all(isinstance(one, str) for one in choices) or len(set(choices)) < 2):
            raise ValueError(
                f"answer.choice_field is {field!r}: output.properties needs it, an enum of texts"
            )
        return self
