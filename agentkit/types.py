"""The nouns of the data's way, as frozen values.

`file -> Document -> step input -> Route -> Citations -> Prompt -> Completion -> output -> workflow
state -> report`

All offsets are in Unicode code points of `Document.text`, half open: `text[start:end]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Json: TypeAlias = Any
"""A value made of dict, list, str, int, float, bool and None only."""

Vectors: TypeAlias = NDArray[np.float32]
"""`(n, dimension)`, rows of unit length."""


# ---------------------------------------------------------------- documents


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document under one heading; sections tile the text in order."""

    start: int
    end: int
    heading: tuple[str, ...] = ()
    """The heading path, outermost first; empty before the first heading."""
    page: int | None = None
    """1-based page on which it starts, where the format has pages."""


@dataclass(frozen=True, slots=True)
class Span:
    """A sentence or list item: the unit in which the model quotes."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, as one text in which everything else counts its offsets."""

    digest: str
    """SHA-256 of `text`, hex: its name in workflow state, caches and indexes."""
    source: str
    """The file's name, without its folders."""
    media_type: str
    text: str
    sections: tuple[Section, ...] = ()
    spans: tuple[Span, ...] = ()
    pages: tuple[int, ...] = ()
    """Start offset of each page, where the format has pages."""
    warnings: tuple[str, ...] = ()
    """What a reader should know: not English, no text on page 3, tracked changes accepted."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that an index holds: `document.text[start:end] == text`."""

    id: str
    """`<document digest, 12 hex>:<start>-<end>`."""
    document: str
    start: int
    end: int
    text: str
    heading: tuple[str, ...] = ()
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Citation:
    """A chunk that a step was shown, with the score that brought it there."""

    chunk: str
    document: str
    start: int
    end: int
    text: str
    score: float
    source: str = ""


# ---------------------------------------------------------------- routing


@dataclass(frozen=True, slots=True)
class Query:
    """What the controller sees of a step."""

    instruction: str
    excerpt: str = ""
    """The first characters of the step input's text."""
    candidates: tuple[str, ...] | None = None
    """Names of the skills that fit the step; None means every installed skill."""
    threshold: float | None = None
    """The least confidence to accept; None means the controller's own."""


@dataclass(frozen=True, slots=True)
class Route:
    """The controller's answer: a skill, or an abstention with its reason."""

    skill: str | None
    score: float
    abstained: bool
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)
    """Every candidate's score, best first."""


# ---------------------------------------------------------------- prompts and completions

SegmentKind: TypeAlias = Literal["header", "document", "instructions", "question", "invocation"]


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """A numbered span of the prompt's document segment, and its place in its document."""

    number: int
    document: str
    start: int
    end: int
    text: str
    standing: bool = False
    """Whether it is of a standing index, and not of the document that is read."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt that is tokenised by itself."""

    kind: SegmentKind
    text: str
    trusted: bool = False
    """Only trusted segments (ours) may hold the model's special tokens; in others they are text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Header, document spans, instructions, question, invocation: always in this order.

    Everything before `instructions` is the same for every skill and question asked of one
    document; everything before `question` is the same within one skill.
    """

    header: Segment
    spans: tuple[PromptSpan, ...]
    instructions: Segment
    question: Segment
    invocation: Segment
    chosen: str | None = None
    """What the input says already of the field that the skill would choose a value of."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Limits and manner of generation."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    beams: int = 1
    """Answers that are written side by side, of which the likeliest is given; 1 is greedy."""
    beams_if_stuck: int = 1
    """By how many a greedy answer is written again once its schema leaves no likely token; 1 never
    does. Until then none of its text is told to `on_text`."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written; `cached_tokens` of the prompt came from a prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids, with the positions that sharing, heads and activation need.

    `ids[:document_end]` is the same for every skill and question over one document;
    `ids[:question_start]` is the same for every question within one skill; an activated adapter
    acts from `invocation_start` on.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    document_end: int
    question_start: int
    invocation_start: int
    span_ends: tuple[int, ...]
    """Index in `ids` of the token that closes each of `prompt.spans`: where heads read a span."""
    token_offsets: tuple[tuple[int, int, int], ...]
    """`(index in ids, start, end)` of every token of document text, offsets in the document."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a task head says of one prompt, as probabilities; unset parts are not in the head."""

    span_labels: NDArray[np.float32] | None = None
    """`(spans, sentence labels)`."""
    token_labels: NDArray[np.float32] | None = None
    """`(document tokens, token labels)`, rows as `EncodedPrompt.token_offsets`."""
    span_cuts: NDArray[np.float32] | None = None
    """`(sentence labels,)`: from which probability on the head gives each; None is a half."""
    token_cuts: NDArray[np.float32] | None = None
    """`(token labels,)`, likewise."""
    choices: NDArray[np.float32] | None = None
    """`(choices,)`, sums to one."""
    evidence: NDArray[np.float32] | None = None
    """`(spans,)`: how much each span carries the choice."""
    question: NDArray[np.float32] | None = None
    """`(2 * hidden,)`: the features by which a choice head knows a question from others."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the backbone with the active adapter answered, before validation.

    Exactly one of `text` (generated), `choices` (scored by likelihood, by name) and `reading`
    (a task head's) is set, but for a text of which a head chose a part: that has its reading too.
    """

    usage: Usage
    text: str | None = None
    choices: Mapping[str, float] | None = None
    reading: Reading | None = None
    finish: Literal["stop", "length", "schema", "head"] = "stop"


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to ask of the engine."""

    prompt: EncodedPrompt
    adapter: str | None = None
    """Digest of a loaded skill; None is the bare backbone."""
    generation: Generation = Generation()
    schema: Mapping[str, Json] | None = None
    """JSON Schema that the generated text must meet."""
    choice_field: str | None = None
    """A property of the schema, an enum of texts, that the skill's head or probe chooses before the
    rest is written. A skill without one, and the bare backbone, write it themselves."""
    choices: tuple[str, ...] | None = None
    """Score these answers by their likelihood instead of generating."""
    read: bool = False
    """Read the skill's task head instead of generating."""
    on_text: Callable[[str], None] | None = None
    """Called with each new piece of text, from the engine's thread."""


# ---------------------------------------------------------------- steps and runs

OnUncertain: TypeAlias = str
"""`base`, `human`, `fail`, or the name of a skill."""


@dataclass(frozen=True, slots=True)
class ContextSpec:
    """What a step is to be shown beside its own input."""

    index: str | tuple[str, ...] | None = None
    """Standing indexes, by name or path, that are searched beside the step input's document.

    `document` stands for that document, which is shown in any case unless `mode` is `none`. None
    means the skill's own."""
    query: str | None = None
    """The rendered query text; None means the step's question."""
    top_k: int | None = None
    budget: int | None = None
    """Tokens."""
    mode: Literal["auto", "whole", "windows", "excerpts", "none"] = "auto"
    filters: Mapping[str, Json] = field(default_factory=dict)
    """Which chunks may be found: `document`, `source`, `page`, `heading`."""
    spans: tuple[tuple[int, int], ...] | None = None
    """Of the document, show exactly the sentences that these stretches (start, end) touch."""


@dataclass(frozen=True, slots=True)
class StepCall:
    """One thing to do: a step of a workflow, or one item of its `for_each`."""

    step: str
    instruction: str
    input: Mapping[str, Json]
    skill: str = "auto"
    """`auto`, `base` (no adapter), or a skill's name."""
    context: ContextSpec | None = None
    on_uncertain: OnUncertain = "base"
    threshold: float | None = None
    item: int | None = None
    """The index in `for_each`."""
    all_scores: bool = False
    """Lower every output threshold to zero, so that curves can be drawn."""
    fields: tuple[str, ...] | None = None
    """Fields of the output that are taken, where nothing else of it is: no route leads to a skill
    that gives none of them, and the bare backbone, which gives none, is not asked when the
    controller abstains (the output is None then). None: any output is of use."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a call gave, with everything needed to check it."""

    step: str
    output: Json
    route: Route
    skill: str | None
    """The skill that answered; None when the bare backbone did or nobody."""
    digest: str | None
    """Content address of the served copy of that skill."""
    citations: tuple[Citation, ...] = ()
    usage: Usage = Usage()
    seconds: float = 0.0
    item: int | None = None
    needs_human: bool = False
    """The controller abstained and the step says `human`."""
    query: Query | None = None
    """What the controller saw of the step; None where the step named its skill."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a workflow, as `agentkit runs` lists it."""

    id: str
    workflow: str
    status: Literal["running", "done", "failed", "interrupted", "waiting"]
    started: str
    """UTC, ISO 8601."""
    finished: str | None
    inputs: Mapping[str, Json]
    skills: Mapping[str, str]
    """Name to digest, as they were when the run began."""
    backbone: str
    steps: tuple[Mapping[str, Json], ...] = ()
    error: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Name to version, of the skills that came from a folder with a version."""
    encoder: str = ""
    """Digest of what routed and searched."""


# ---------------------------------------------------------------- protocols


class Encoder(Protocol):
    """Turns texts into unit vectors. Routing and retrieval share one."""

    @property
    def dimension(self) -> int: ...

    @property
    def digest(self) -> str:
        """Names the weights, so that cached vectors are never mixed up."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """`(len(texts), dimension)`, float32, rows of unit length."""
        ...


class StepRunner(Protocol):
    """What a workflow needs from below: turn calls into results, in order.

    Calls given together may be batched; one that fails has its error in its place.
    """

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]: ...


class DocumentStore(Protocol):
    """Documents by digest, so that workflow state holds references only."""

    def put(self, document: Document) -> str: ...

    def get(self, digest: str) -> Document: ...
