"""Step records: what a run's state and its database hold of each result. Plain JSON only.

A document appears as a reference, `{"$document": digest, "source": name}`, and a citation without
its text: the text is found again in the document store by digest and offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol, TypeAlias

from agentkit.errors import (
    AgentkitError,
    CancelledError,
    CheckpointError,
    InputError,
    RouteError,
    RunError,
)
from agentkit.types import Document, Json, Query, StepResult

DOCUMENT = "$document"

Record: TypeAlias = dict[str, Any]
"""output, route, query, skill, digest, citations, usage, seconds, error; in a for_each also item
and index."""


def document_reference(document: Document) -> dict[str, str]:
    """How state speaks of a document."""
    return {DOCUMENT: document.digest, "source": document.source}


def is_document_reference(value: Json) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get(DOCUMENT), str)


def record_of(result: StepResult) -> Record:
    """A step's result as state holds it."""
    return {
        "output": result.output,
        "route": {
            "skill": result.route.skill,
            "score": float(result.route.score),
            "abstained": result.route.abstained,
            "reason": result.route.reason,
            "scores": {name: float(score) for name, score in result.route.scores.items()},
        },
        "query": None if result.query is None else _query_of(result.query),
        "skill": result.skill,
        "digest": result.digest,
        "citations": [
            {
                "chunk": citation.chunk,
                "document": citation.document,
                "start": citation.start,
                "end": citation.end,
                "score": float(citation.score),
                "source": citation.source,
            }
            for citation in result.citations
        ],
        "usage": asdict(result.usage),
        "seconds": result.seconds,
        "needs_human": result.needs_human,
        "error": None,
    }


def _query_of(query: Query) -> dict[str, Json]:
    """What the controller saw, so that its decision can be judged, and made again, later."""
    return {
        "instruction": query.instruction,
        "excerpt": query.excerpt,
        "candidates": None if query.candidates is None else list(query.candidates),
        "threshold": query.threshold,
    }


def bare_record(output: Json = None, *, error: str | None = None) -> Record:
    """The record of a result that no skill gave."""
    return {
        "output": output,
        "route": None,
        "query": None,
        "skill": None,
        "digest": None,
        "citations": [],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0},
        "seconds": 0.0,
        "needs_human": False,
        "error": error,
    }


class Recorder(Protocol):
    """Keeps each result of a run once."""

    def done(self, step: str) -> Mapping[int | None, Record]:
        """Records of a step that are there already, by item."""
        ...

    def add(self, step: str, item: int | None, record: Record) -> Record:
        """Keep a record unless there is one; return the one that is kept."""
        ...


class MemoryRecorder:
    """Stateful: keeps records for as long as it lives."""

    def __init__(self) -> None:
        self._records: dict[str, dict[int | None, Record]] = {}

    def done(self, step: str) -> Mapping[int | None, Record]:
        return dict(self._records.get(step, {}))

    def add(self, step: str, item: int | None, record: Record) -> Record:
        return self._records.setdefault(step, {}).setdefault(item, record)


def may_be_retried(error: Exception) -> bool:
    """Whether trying again can help: not when the input, the route or the caller is the cause."""
    if isinstance(error, (InputError, RouteError, CancelledError, CheckpointError)):
        return False
    if type(error) is RunError and error.__cause__ is not None:
        return isinstance(error.__cause__, OSError)
    return isinstance(error, (AgentkitError, OSError))


def at_step(error: Exception, step: str) -> AgentkitError:
    """The error as agentkit's own, naming its step."""
    if isinstance(error, AgentkitError):
        if error.where is None:
            error.where = f"step {step!r}"
        return error
    wrapped = RunError(f"{type(error).__name__}: {error}", where=f"step {step!r}")
    wrapped.__cause__ = error
    return wrapped
