"""What a step is shown: a document whole, by windows or in excerpts, and standing indexes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agentkit.engine.engine import Engine
from agentkit.errors import InputError
from agentkit.prompt import number_spans, render, renumber, span_lengths, windows
from agentkit.retrieval.chunking import chunk_id
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.selection import said
from agentkit.settings import Settings
from agentkit.skill.manifest import GenerateAnswer, Manifest, MarksAnswer, RetrievalDefaults
from agentkit.types import Citation, ContextSpec, Document, Json, PromptSpan

EXCERPT_CHARS = 400
"""How much of an input the controller sees."""
TOP_K = 24


class ContextBuilder:
    """Picks the spans of each prompt as skill, step and settings say. Safe for threads."""

    def __init__(self, engine: Engine, retriever: Retriever, settings: Settings) -> None:
        self._engine = engine
        self._retriever = retriever
        self._settings = settings

    def foresee(self, specs: Sequence[ContextSpec]) -> None:
        """Embed the queries that are given in words together, which takes less time than singly."""
        queries = dict.fromkeys(spec.query for spec in specs if spec.query and spec.mode != "none")
        if len(queries) > 1:
            self._retriever.embed(list(queries))

    def of_skill(
        self,
        manifest: Manifest,
        input: Json,
        document: Document | None,
        spec: ContextSpec | None,
    ) -> tuple[list[tuple[PromptSpan, ...]], tuple[Citation, ...]]:
        """The numbered spans of each prompt, and the citations that say where they come from.

        Raises `InputError` where a text would have to be written from several windows.
        """
        defaults = manifest.retrieval
        spec = _completed(spec or ContextSpec(), defaults)
        mode = defaults.mode if spec.mode == "auto" else spec.mode
        query = spec.query or render(
            defaults.query or manifest.prompt.question, input, where=f"skill {manifest.name}"
        )
        top_k = spec.top_k or defaults.top_k
        budget = spec.budget or defaults.budget or self._settings.excerpt_budget
        if document is None or mode == "none":
            standing = self._standing(spec, query, top_k, budget)
            return [renumber(_standing_spans(standing))], standing
        if spec.spans is not None:
            standing = self._standing(spec, query, top_k, budget)
            chosen, citations = self._given(document, spec.spans)
            return [renumber([*chosen, *_standing_spans(standing)])], (*citations, *standing)
        spans = number_spans(document)
        lengths = span_lengths(self._engine.tokenizer, spans)
        window = defaults.window or self._settings.document_window
        if mode == "auto":
            mode = "whole" if sum(lengths) <= window else "excerpts"
        if mode == "windows":
            pieces = windows(spans, lengths, window) or [()]
            if isinstance(manifest.answer, MarksAnswer):
                # What else were shown would be labelled as the document's.
                return pieces, _read(document, pieces)
            if defaults.windows is not None and len(pieces) > defaults.windows:
                stretches = [(piece[0].start, piece[-1].end) for piece in pieces]
                best = self._retriever.best_stretches(
                    document, query, stretches, most=defaults.windows, filters=spec.filters
                )
                pieces = [pieces[number] for number in best]
            if len(pieces) > 1 and isinstance(manifest.answer, GenerateAnswer):
                raise InputError(
                    f"the document takes {len(pieces)} windows, and a text is written from one",
                    where=f"skill {manifest.name}",
                    hint="retrieval.mode excerpts or whole, or windows: 1, the one that fits best",
                )
            read = _read(document, pieces)
            standing = self._standing(spec, query, top_k, budget)
            extra = _standing_spans(standing)
            return [renumber([*piece, *extra]) for piece in pieces], (*read, *standing)
        if mode == "whole":
            standing = self._standing(spec, query, top_k, budget)
            chosen = spans
            citations = (_whole(document, spans),) if spans else ()
        else:
            # The document is one source among the others, and has what they leave.
            share = budget // (len(_collections(spec)) + 1)
            standing = self._standing(spec, query, top_k, budget - share)
            left = budget - sum(self._engine.count_tokens(c.text) for c in standing)
            chosen, citations = self.excerpts(
                document, query, top_k=top_k, budget=left, filters=spec.filters
            )
        return [renumber([*chosen, *_standing_spans(standing)])], (*citations, *standing)

    def of_base(
        self, document: Document, query: str, spec: ContextSpec | None
    ) -> tuple[tuple[PromptSpan, ...], tuple[Citation, ...]]:
        """What the bare backbone is shown of a document: excerpts, unless the step says which."""
        if spec is not None and spec.mode == "none":
            return (), ()
        if spec is not None and spec.spans is not None:
            return self._given(document, spec.spans)
        return self.excerpts(document, query)

    @staticmethod
    def _given(
        document: Document, stretches: Sequence[tuple[int, int]]
    ) -> tuple[tuple[PromptSpan, ...], tuple[Citation, ...]]:
        """The document's sentences that given stretches touch, numbered, and their citations."""
        chosen = [
            span
            for span in number_spans(document)
            if any(span.start < end and start < span.end for start, end in stretches)
        ]
        return renumber(chosen), tuple(_whole(document, [span]) for span in chosen)

    def _standing(
        self, spec: ContextSpec, query: str, top_k: int, budget: int
    ) -> tuple[Citation, ...]:
        """The best chunks of each collection, in the step's order; what one leaves the next has."""
        names = _collections(spec)
        found: list[Citation] = []
        known: set[tuple[str, ...]] = set()
        for number, name in enumerate(names):
            share = budget // (len(names) - number)
            for citation in self._retriever.search_index(
                name,
                query,
                top_k=top_k,
                filters=spec.filters,
                budget_tokens=share,
                count_tokens=self._engine.count_tokens,
            ):
                words = said(citation.text)
                if words not in known:
                    known.add(words)
                    found.append(citation)
                    budget -= self._engine.count_tokens(citation.text)
        return tuple(found)

    def excerpts(
        self,
        document: Document,
        query: str,
        *,
        top_k: int = TOP_K,
        budget: int | None = None,
        filters: Mapping[str, Json] | None = None,
    ) -> tuple[tuple[PromptSpan, ...], tuple[Citation, ...]]:
        """The spans of a document that fit a query best, numbered, and their citations."""
        citations = self._retriever.excerpts(
            document,
            query,
            top_k=top_k,
            budget_tokens=self._settings.excerpt_budget if budget is None else budget,
            count_tokens=self._engine.count_tokens,
            filters=filters,
        )
        return renumber(_spans_of(citations)), citations


def _completed(spec: ContextSpec, defaults: RetrievalDefaults) -> ContextSpec:
    """What the step says of its sources, and where it says nothing, what the skill says."""
    return replace(
        spec,
        index=defaults.index if spec.index is None else spec.index,
        filters=spec.filters or defaults.filters,
    )


def _collections(spec: ContextSpec) -> list[str]:
    """The standing indexes that a step names, each once."""
    names = (spec.index,) if isinstance(spec.index, str) else spec.index or ()
    return [name for name in dict.fromkeys(names) if name != "document"]


def _spans_of(citations: Sequence[Citation]) -> list[PromptSpan]:
    return [
        PromptSpan(number, c.document, c.start, c.end, c.text)
        for number, c in enumerate(citations, start=1)
    ]


def _standing_spans(citations: Sequence[Citation]) -> list[PromptSpan]:
    return [replace(span, standing=True) for span in _spans_of(citations)]


def _read(document: Document, pieces: Sequence[Sequence[PromptSpan]]) -> tuple[Citation, ...]:
    return tuple(_whole(document, piece) for piece in pieces if piece)


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
