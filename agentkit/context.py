"""What a step is shown: a document whole, by windows or in excerpts, and standing indexes."""

from __future__ import annotations

from collections.abc import Sequence

from agentkit.engine.engine import Engine
from agentkit.prompt import number_spans, render, renumber, span_lengths, windows
from agentkit.retrieval.chunking import chunk_id
from agentkit.retrieval.retriever import Retriever
from agentkit.settings import Settings
from agentkit.skill.manifest import Manifest
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

    def of_skill(
        self,
        manifest: Manifest,
        input: Json,
        document: Document | None,
        spec: ContextSpec | None,
    ) -> tuple[list[tuple[PromptSpan, ...]], tuple[Citation, ...]]:
        """The numbered spans of each prompt, and the citations that say where they come from."""
        spec = spec or ContextSpec()
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
            chosen, citations = self.excerpts(document, query, top_k=top_k, budget=budget)
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

    def excerpts(
        self, document: Document, query: str, *, top_k: int = TOP_K, budget: int | None = None
    ) -> tuple[tuple[PromptSpan, ...], tuple[Citation, ...]]:
        """The spans of a document that fit a query best, numbered, and their citations."""
        citations = self._retriever.excerpts(
            document,
            query,
            top_k=top_k,
            budget_tokens=budget or self._settings.excerpt_budget,
            count_tokens=self._engine.count_tokens,
        )
        return renumber(_spans_of(citations)), citations


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
