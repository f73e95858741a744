"""The spine: route -> retrieve -> prompt -> generate -> validate, for one step's calls together.

Calls given together reach the engine together, so seventeen questions over one document cost one
reading of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agentkit.engine.engine import Engine
from agentkit.errors import AgentkitError, InputError, RouteError
from agentkit.output import Answered, check_input, fits, generation_schema, to_output
from agentkit.prompt import (
    build_prompt,
    number_spans,
    render,
    renumber,
    skill_prompt,
    span_lengths,
    windows,
)
from agentkit.retrieval.chunking import chunk_id
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.retriever import Retriever
from agentkit.routing.controller import Controller
from agentkit.settings import Settings
from agentkit.skill.folder import Skill
from agentkit.skill.manifest import ChoiceAnswer, GenerateAnswer, Manifest
from agentkit.types import (
    Citation,
    ContextSpec,
    Document,
    DocumentStore,
    EncodedPrompt,
    Generation,
    Json,
    Prompt,
    PromptSpan,
    Query,
    Request,
    Route,
    StepCall,
    StepResult,
    Usage,
)

BASE, AUTO, HUMAN, FAIL = "base", "auto", "human", "fail"
EXCERPT_CHARS = 400
_REFERENCE = "$document"


@dataclass(slots=True)
class _Prepared:
    """A call on its way: what was decided for it, and what the engine is to be asked."""

    call: StepCall
    route: Route
    skill: Skill | None
    encoded: list[EncodedPrompt] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    citations: tuple[Citation, ...] = ()
    waits: bool = False


class Runner:
    """Turns step calls into results with a fixed set of skills. Safe for threads.

    Stateful only in its collaborators; the skills are those of the moment it was made, so a run
    keeps what it began with.
    """

    def __init__(
        self,
        skills: Mapping[str, Skill],
        *,
        engine: Engine,
        controller: Controller,
        retriever: Retriever,
        documents: DocumentStore,
        settings: Settings,
    ) -> None:
        self._skills = dict(skills)
        self._engine = engine
        self._controller = controller
        self._retriever = retriever
        self._documents = documents
        self._settings = settings

    @property
    def skills(self) -> Mapping[str, Skill]:
        """The skills that calls may use, by name."""
        return self._skills

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]:
        """Results in the order of the calls; a call that failed has its error in its place."""
        began = time.perf_counter()
        prepared = [self._prepare(call, route) for call, route in self._routed(calls)]
        requests = [r for p in prepared if isinstance(p, _Prepared) for r in p.requests]
        completions = iter(self._engine.run(requests))
        results: list[StepResult | Exception] = []
        for one in prepared:
            if isinstance(one, Exception):
                results.append(one)
                continue
            given = [next(completions) for _ in one.requests]
            failed = next((c for c in given if isinstance(c, Exception)), None)
            if failed is not None:
                results.append(failed)
                continue
            answers = [
                (encoded, completion)
                for encoded, completion in zip(one.encoded, given, strict=True)
                if not isinstance(completion, Exception)
            ]
            results.append(self._finish(one, answers))
        share = (time.perf_counter() - began) / max(1, len(calls))
        return [
            replace(r, seconds=round(share, 4)) if isinstance(r, StepResult) else r for r in results
        ]

    # ------------------------------------------------------------ route

    def _routed(self, calls: Sequence[StepCall]) -> Iterator[tuple[StepCall, Route]]:
        auto = [call for call in calls if call.skill == AUTO]
        routes = iter(self._controller.route_many([self._query(call) for call in auto]))
        for call in calls:
            if call.skill == AUTO:
                yield call, next(routes)
            else:
                name = None if call.skill == BASE else call.skill
                yield call, Route(name, 1.0, False, "named by the step")

    def _query(self, call: StepCall) -> Query:
        return Query(
            instruction=call.instruction,
            excerpt=self._excerpt(call.input),
            candidates=self._fitting(call.input),
            threshold=call.threshold,
        )

    def _fitting(self, input: Mapping[str, Json]) -> tuple[str, ...]:
        """The skills whose input schema takes this input: a route to another could only fail."""
        words = {
            key: "" if isinstance(value, Mapping) and _REFERENCE in value else value
            for key, value in input.items()
        }
        return tuple(
            sorted(name for name, skill in self._skills.items() if fits(skill.manifest, words))
        )

    def _excerpt(self, input: Mapping[str, Json]) -> str:
        """The start of the input's own words: its texts, then its document's."""
        texts = [value for value in input.values() if isinstance(value, str)]
        for value in input.values():
            if isinstance(value, Mapping) and _REFERENCE in value:
                texts.append(self._documents.get(str(value[_REFERENCE])).text[:EXCERPT_CHARS])
        return " ".join(texts)[:EXCERPT_CHARS]

    def _decide(self, call: StepCall, route: Route) -> tuple[Skill | None, bool]:
        """The skill that answers (None: the bare backbone) and whether a person must decide."""
        if route.abstained:
            if call.on_uncertain == FAIL:
                raise RouteError(
                    f"no skill fits: {route.reason}",
                    where=f"step {call.step}",
                    hint="name a skill, or say what to do with `on_uncertain`",
                )
            if call.on_uncertain == HUMAN:
                return None, True
            name = None if call.on_uncertain == BASE else call.on_uncertain
        else:
            name = route.skill
        if name is None:
            return None, False
        if name not in self._skills:
            raise InputError(
                f"there is no skill {name!r}",
                where=f"step {call.step}",
                hint=f"installed: {', '.join(sorted(self._skills)) or 'none'}",
            )
        return self._skills[name], False

    # ------------------------------------------------------------ retrieve and prompt

    def _prepare(self, call: StepCall, route: Route) -> _Prepared | Exception:
        try:
            skill, waits = self._decide(call, route)
            one = _Prepared(call, route, skill, waits=waits)
            if waits:
                return one
            if skill is None:
                self._prepare_base(one)
            else:
                self._engine.load(skill)
                self._prepare_skill(one, skill)
        except AgentkitError as error:
            return error
        return one

    def _prepare_skill(self, one: _Prepared, skill: Skill) -> None:
        manifest, call = skill.manifest, one.call
        field = manifest.retrieval.document or _reference_field(call.input)
        document, plain = self._document(field, call.input)
        # A skill that takes a text (a bare PEFT folder does) is given the input's own words.
        takes_text = manifest.input.get("type") == "string"
        input: Json = _words(plain, without=field) if takes_text else plain
        check_input(manifest, input)
        shown: list[tuple[PromptSpan, ...]] = [()]
        if document is not None or call.context is not None:
            shown, one.citations = self._context(call, manifest, input, document)
        for spans in shown:
            prompt = skill_prompt(self._engine.frame, manifest, input, spans)
            encoded = self._encode(prompt, call)
            one.encoded.append(encoded)
            one.requests.append(_request(skill, encoded))

    def _prepare_base(self, one: _Prepared) -> None:
        """Ask the bare backbone the step's instruction about the step's input."""
        call = one.call
        field = _reference_field(call.input)
        document, plain = self._document(field, call.input)
        question = _words(plain, without=field)
        spans: tuple[PromptSpan, ...] = ()
        if document is not None:
            query = call.instruction or question or document.text[:EXCERPT_CHARS]
            spans, one.citations = self._excerpts(
                document, query, top_k=24, budget=self._settings.excerpt_budget
            )
        prompt = build_prompt(
            self._engine.frame, instructions=call.instruction, question=question, spans=spans
        )
        encoded = self._encode(prompt, call)
        one.encoded.append(encoded)
        one.requests.append(Request(encoded, generation=Generation(max_tokens=128)))

    def _encode(self, prompt: Prompt, call: StepCall) -> EncodedPrompt:
        try:
            return self._engine.encode(prompt)
        except AgentkitError as error:
            error.where = error.where or f"step {call.step}"
            raise

    def _document(
        self, field: str | None, input: Mapping[str, Json]
    ) -> tuple[Document | None, dict[str, Json]]:
        """The document that a field holds or refers to, and the input with its text in place."""
        plain = dict(input)
        value = plain.get(field) if field else None
        if isinstance(value, Mapping) and _REFERENCE in value:
            document = self._documents.get(str(value[_REFERENCE]))
        elif isinstance(value, str):
            document = document_from_text(value)
        else:
            return None, plain
        plain[str(field)] = document.text
        return document, plain

    def _context(
        self, call: StepCall, manifest: Manifest, input: Json, document: Document | None
    ) -> tuple[list[tuple[PromptSpan, ...]], tuple[Citation, ...]]:
        """The numbered spans of each prompt, and the citations that say where they come from."""
        spec = call.context or ContextSpec()
        defaults = manifest.retrieval
        mode = defaults.mode if spec.mode == "auto" else spec.mode
        query = spec.query or render(
            defaults.query or manifest.prompt.question, input, where=f"skill {manifest.name}"
        )
        top_k = spec.top_k or defaults.top_k
        budget = spec.budget or defaults.budget or self._settings.excerpt_budget
        standing = self._standing(spec, query, top_k, budget)
        if document is None or mode == "none":
            return [renumber(_spans_of(standing))], standing
        spans = number_spans(document)
        lengths = span_lengths(self._engine.tokenizer, spans)
        window = defaults.window or self._settings.document_window
        if mode == "auto":
            mode = "whole" if sum(lengths) <= window else "excerpts"
        if mode == "windows":
            shown = windows(spans, lengths, window)
            return shown or [()], tuple(_whole(document, piece) for piece in shown)
        if mode == "whole":
            chosen = spans
            citations: tuple[Citation, ...] = (_whole(document, spans),) if spans else ()
        else:
            chosen, citations = self._excerpts(document, query, top_k=top_k, budget=budget)
        return [renumber([*chosen, *_spans_of(standing)])], (*citations, *standing)

    def _standing(
        self, spec: ContextSpec, query: str, top_k: int, budget: int
    ) -> tuple[Citation, ...]:
        if spec.index == "document":
            return ()
        return self._retriever.search_index(
            spec.index,
            query,
            top_k=top_k,
            budget_tokens=budget,
            count_tokens=self._engine.count_tokens,
        )

    def _excerpts(
        self, document: Document, query: str, *, top_k: int, budget: int
    ) -> tuple[tuple[PromptSpan, ...], tuple[Citation, ...]]:
        citations = self._retriever.excerpts(
            document,
            query,
            top_k=top_k,
            budget_tokens=budget,
            count_tokens=self._engine.count_tokens,
        )
        return renumber(_spans_of(citations)), citations

    # ------------------------------------------------------------ validate

    def _finish(self, one: _Prepared, answers: Sequence[Answered]) -> StepResult | Exception:
        usage = Usage()
        for _, completion in answers:
            usage = usage + completion.usage
        try:
            output: Json = None
            if one.skill is not None:
                output = to_output(one.skill.manifest, answers, all_scores=one.call.all_scores)
            elif not one.waits:
                output = (answers[0][1].text or "").strip()
        except AgentkitError as error:
            error.where = f"step {one.call.step}, {error.where}" if error.where else one.call.step
            return error
        return StepResult(
            step=one.call.step,
            output=output,
            route=one.route,
            skill=one.skill.name if one.skill else None,
            digest=one.skill.digest if one.skill else None,
            citations=one.citations,
            usage=usage,
            item=one.call.item,
            needs_human=one.waits,
        )


def _reference_field(input: Mapping[str, Json]) -> str | None:
    """The first field that refers to a read document."""
    for key, value in input.items():
        if isinstance(value, Mapping) and _REFERENCE in value:
            return key
    return None


def _words(input: Mapping[str, Json], *, without: str | None) -> str:
    """The plain values of an input, one a line."""
    return "\n".join(
        str(value)
        for key, value in input.items()
        if key != without and isinstance(value, str | int | float)
    )


def _request(skill: Skill, encoded: EncodedPrompt) -> Request:
    manifest = skill.manifest
    answer, limits = manifest.answer, manifest.generation
    if isinstance(answer, GenerateAnswer):
        return Request(
            encoded,
            adapter=skill.digest,
            generation=Generation(
                max_tokens=limits.max_tokens,
                temperature=limits.temperature,
                top_p=limits.top_p,
                stop=limits.stop,
            ),
            schema=generation_schema(manifest, len(encoded.prompt.spans)),
        )
    if isinstance(answer, ChoiceAnswer) and answer.scoring == "likelihood":
        return Request(encoded, adapter=skill.digest, choices=answer.choices)
    return Request(encoded, adapter=skill.digest, read=True)


def _spans_of(citations: Sequence[Citation]) -> list[PromptSpan]:
    return [
        PromptSpan(number, c.document, c.start, c.end, c.text)
        for number, c in enumerate(citations, start=1)
    ]


def _whole(document: Document, spans: Sequence[PromptSpan]) -> Citation:
    """The stretch from the first of the spans to the last, as one citation."""
    start, end = spans[0].start, spans[-1].end
    return Citation(
        chunk=chunk_id(document.digest, start, end),
        document=document.digest,
        start=start,
        end=end,
        text=document.text[start:end],
        score=1.0,
        source=document.source,
    )
