"""A second look at what a search found: the protocol of a reranker, and what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agentkit.retrieval.ranking import standardised
from agentkit.types import Chunk, Vectors

DEPTH = 50
_MAX_PATH = 200


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The passages of one document in its order, and what the first search knows of them."""

    chunks: Sequence[Chunk]
    vectors: Vectors
    """`(n, dimension)`: of each passage with its heading path."""
    query: Vectors
    """`(dimension,)`"""
    lexical: Vectors
    """`(n,)`: BM25 of the passages."""
    headed: Vectors
    """`(n,)`: BM25 of the passages with their headings."""


class Reranker(Protocol):
    """Scores passages against a query: anything that has read more than the first search."""

    def scores(self, query: str, candidates: Candidates) -> Vectors:
        """`(n,)`, float32: larger is better; comparable within one call only."""
        ...


def first_order(candidates: Candidates) -> NDArray[np.intp]:
    """The passages' numbers, best first by what the first search knows."""
    scores = standardised(candidates.vectors @ candidates.query) + standardised(candidates.headed)
    return np.argsort(-scores, kind="stable")


def with_rest(order: NDArray[np.intp], read: NDArray[np.intp], scores: Vectors) -> Vectors:
    """`(n,)`: the scores of what was read; the others below them in the first search's order."""
    result: Vectors = np.empty(len(order), dtype=np.float32)
    result[read] = scores
    rest = order[len(read) :]
    result[rest] = scores.min() - 1.0 - np.arange(len(rest), dtype=np.float32)
    return result


def headed_text(chunk: Chunk) -> str:
    """A passage as it is embedded: its heading path first, as a list item alone says little."""
    if not chunk.heading:
        return chunk.text
    path = " > ".join(chunk.heading)
    return f"{path[-_MAX_PATH:]}: {chunk.text}"
