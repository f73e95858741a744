"""The spine: route -> retrieve -> prompt -> generate -> validate, for one step's calls together.

Calls given together reach the engine together, so seventeen questions over one document cost one
reading of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import RLock

from agentkit.context import EXCERPT_CHARS, ContextBuilder
from agentkit.engine.engine import Engine, outcome_of
from agentkit.errors import AgentkitError, CancelledError, InputError, RouteError
from agentkit.output import Answered, check_input, fits, generation_schema, gives, to_output
from agentkit.prompt import (
    build_prompt,
    skill_prompt,
)
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.retriever import Retriever
from agentkit.routing.controller import Controller
from agentkit.settings import Settings
from agentkit.skill.folder import Skill
from agentkit.skill.manifest import ChoiceAnswer, GenerateAnswer
from agentkit.types import (
    Citation,
    Completion,
    Document,
    DocumentStore,
    EncodedPrompt,
    Generation,
    Json,
    PromptSpan,
    Query,
    Request,
    Route,
    StepCall,
    StepResult,
    Usage,
)

BASE, AUTO, HUMAN, FAIL = "base", "auto", "human", "fail"
_REFERENCE = "$document"


@dataclass(slots=True)
class _Prepared:
    """A call on its way: what was decided for it, and what the engine is to be asked."""

    call: StepCall
    route: Route
    skill: Skill | None
    query: Query | None = None
    encoded: list[EncodedPrompt] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    citations: tuple[Citation, ...] = ()
    waits: bool = False


class Runner:
    """Turns step calls into results with a fixed set of skills. Safe for threads.

    Stateful in its collaborators, and in whether it was cancelled; the skills are those of the
    moment it was made, so a run keeps what it began with.
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
        self._documents = documents
        self._context = ContextBuilder(engine, retriever, settings)
        self._under_way: set[Future[Completion]] = set()
        self._cancelled = False
        self._changing = RLock()  # a signal handler may come while this thread holds it

    @property
    def skills(self) -> Mapping[str, Skill]:
        """The skills that calls may use, by name."""
        return self._skills

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]:
        """Results in the order of the calls; a call that failed has its error in its place."""
        results = dict(self.stream(calls))
        return [results[place] for place in range(len(calls))]

    def cancel(self) -> None:
        """Withdraw every call, under way or yet to come: each ends with a `CancelledError`.

        May be called from any thread and from a signal handler.
        """
        with self._changing:
            self._cancelled = True
            under_way = tuple(self._under_way)
        for future in under_way:
            future.cancel()

    def stream(self, calls: Sequence[StepCall]) -> Iterator[tuple[int, StepResult | Exception]]:
        """Each result with its call's place, as soon as it is there."""
        began = time.perf_counter()
        waiting: dict[Future[Completion], int] = {}
        prepared: dict[int, _Prepared] = {}
        asked: dict[int, list[Future[Completion]]] = {}
        routes, queries = self._routes(calls)
        self._context.foresee([call.context for call in calls if call.context is not None])
        for place, (call, route) in enumerate(zip(calls, routes, strict=True)):
            one = route if isinstance(route, Exception) else self._prepare(call, route)
            if isinstance(one, Exception):
                yield place, one
                continue
            one.query = queries.get(place)
            prepared[place] = one
        # Given to the engine together, so that it can batch them.
        flat = [(place, r) for place, one in prepared.items() for r in one.requests]
        for (place, _), future in zip(
            flat, self._engine.submit_all([r for _, r in flat]), strict=True
        ):
            asked.setdefault(place, []).append(future)
            waiting[future] = place
        # Not `as_completed`: it would wait for the engine to notice that a future was cancelled.
        answered: SimpleQueue[Future[Completion]] = SimpleQueue()
        with self._changing:
            self._under_way.update(waiting)
            cancelled = self._cancelled
        for future in waiting:
            future.add_done_callback(answered.put)
            if cancelled:
                future.cancel()
        left = {place: len(one.requests) for place, one in prepared.items()}
        since = began
        try:
            for place in [place for place, count in left.items() if count == 0]:
                yield place, self._finish(prepared[place], [], 0.0)
            for _ in range(len(waiting)):
                place = waiting[answered.get()]
                left[place] -= 1
                if left[place] == 0:
                    now = time.perf_counter()
                    yield place, self._settle(prepared[place], asked[place], now - since)
                    since = now
        finally:
            with self._changing:
                self._under_way.difference_update(waiting)
            for future in waiting:
                future.cancel()

    # ------------------------------------------------------------ route

    def _routes(
        self, calls: Sequence[StepCall]
    ) -> tuple[list[Route | Exception], dict[int, Query]]:
        """The route of each call, or why it cannot have one, and by place the queries that were
        routed; they are embedded together."""
        routes: list[Route | Exception] = []
        queries: dict[int, Query] = {}
        for place, call in enumerate(calls):
            name = None if call.skill in (BASE, AUTO) else call.skill
            routes.append(Route(name, 1.0, False, "named by the step"))
            if call.skill == AUTO:
                try:
                    queries[place] = self._query(call)
                except AgentkitError as error:
                    routes[place] = error
        found = self._controller.route_many(list(queries.values()))
        for place, route in zip(queries, found, strict=True):
            routes[place] = route
        return routes, queries

    def _query(self, call: StepCall) -> Query:
        if call.threshold is not None and not 0.0 <= call.threshold <= 1.0:
            raise InputError(
                f"a threshold lies within 0 and 1, not {call.threshold}", where=f"step {call.step}"
            )
        return Query(
            instruction=call.instruction,
            excerpt=self._excerpt(call.input),
            candidates=self._fitting(call.input, call.fields),
            threshold=call.threshold,
        )

    def _fitting(self, input: Mapping[str, Json], fields: Sequence[str] | None) -> tuple[str, ...]:
        """The skills whose input schema takes this input and whose output schema has one of the
        fields: a route to another could only fail, or give what nothing takes."""
        words = {
            key: "" if isinstance(value, Mapping) and _REFERENCE in value else value
            for key, value in input.items()
        }
        return tuple(
            sorted(
                name
                for name, skill in self._skills.items()
                if fits(skill.manifest, words) and gives(skill.manifest, fields)
            )
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
            if self._cancelled:
                raise CancelledError("the call was withdrawn")
            skill, waits = self._decide(call, route)
            one = _Prepared(call, route, skill, waits=waits)
            if waits or (skill is None and route.abstained and call.fields is not None):
                return one
            if skill is None:
                self._prepare_base(one)
            else:
                self._engine.load(skill)
                self._prepare_skill(one, skill)
        except AgentkitError as error:
            return _at_step(error, call)
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
        if document is not None or call.context is not None or manifest.retrieval.standing:
            shown, one.citations = self._context.of_skill(manifest, input, document, call.context)
        for spans in shown:
            prompt = skill_prompt(self._engine.frame, manifest, input, spans)
            encoded = self._engine.encode(prompt)
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
            spans, one.citations = self._context.of_base(document, query, call.context)
        prompt = build_prompt(
            self._engine.frame, instructions=call.instruction, question=question, spans=spans
        )
        encoded = self._engine.encode(prompt)
        one.encoded.append(encoded)
        one.requests.append(Request(encoded, generation=Generation(max_tokens=128)))

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

    # ------------------------------------------------------------ validate

    def _settle(
        self, one: _Prepared, futures: Sequence[Future[Completion]], seconds: float
    ) -> StepResult | Exception:
        answers: list[Answered] = []
        for encoded, future in zip(one.encoded, futures, strict=True):
            outcome = outcome_of(future)
            if isinstance(outcome, Exception):
                return outcome
            answers.append((encoded, outcome))
        return self._finish(one, answers, seconds)

    def _finish(
        self, one: _Prepared, answers: Sequence[Answered], seconds: float
    ) -> StepResult | Exception:
        usage = Usage()
        for _, completion in answers:
            usage = usage + completion.usage
        try:
            output: Json = None
            if one.skill is not None:
                output = to_output(one.skill.manifest, answers, all_scores=one.call.all_scores)
            elif answers:
                output = (answers[0][1].text or "").strip()
        except AgentkitError as error:
            return _at_step(error, one.call)
        return StepResult(
            step=one.call.step,
            output=output,
            route=one.route,
            skill=one.skill.name if one.skill else None,
            digest=one.skill.digest if one.skill else None,
            citations=one.citations,
            usage=usage,
            seconds=round(seconds, 4),
            item=one.call.item,
            needs_human=one.waits,
            query=one.query,
        )


def _at_step(error: AgentkitError, call: StepCall) -> AgentkitError:
    """The error, naming its step too."""
    step = f"step {call.step}"
    if not (error.where or "").startswith(step):
        error.where = f"{step}, {error.where}" if error.where else step
    return error


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
                beams=limits.beams,
                beams_if_stuck=limits.beams_if_stuck,
            ),
            schema=generation_schema(manifest, encoded.prompt),
            choice_field=None if encoded.prompt.chosen else answer.choice_field,
        )
    if isinstance(answer, ChoiceAnswer) and answer.scoring == "likelihood":
        return Request(encoded, adapter=skill.digest, choices=answer.choices)
    return Request(encoded, adapter=skill.digest, read=True)
