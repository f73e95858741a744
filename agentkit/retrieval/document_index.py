"""Search within one document: vectors and BM25 in memory, fused, then reranked."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from agentkit.errors import InputError
from agentkit.retrieval.chunking import span_chunks
from agentkit.retrieval.filters import Filters, check_filters, matches
from agentkit.retrieval.ranking import BM25, reciprocal_rank_fusion
from agentkit.retrieval.rerank import Candidates, Reranker, headed_text
from agentkit.types import Chunk, Citation, Document, Encoder, Vectors

SearchMode: TypeAlias = Literal["hybrid", "vector", "text"]
MODES: tuple[SearchMode, ...] = ("hybrid", "vector", "text")
CACHE_BYTES = 256_000_000


def check_search(query: str, top_k: int, mode: str) -> None:
    """Refuse a search that cannot be meant.

    Raises:
        InputError: an empty query, `top_k` below 1, or an unknown mode.
    """
    if not query.strip():
        raise InputError("the query is empty", hint="say what to look for")
    if top_k < 1:
        raise InputError(f"top_k must be at least 1, not {top_k}")
    if mode not in MODES:
        raise InputError(f"unknown search mode {mode!r}", hint=f"use one of: {', '.join(MODES)}")


class VectorCache:
    """Stateful: vectors by (document digest, encoder digest, chunking), least recent out first.

    Safe for threads; two threads that miss at once both compute, and one result is kept.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._vectors: OrderedDict[tuple[str, str, str], Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str, str], compute: Callable[[], Vectors]) -> Vectors:
        """The vectors kept under `key`, else those of `compute`, which are kept from now on."""
        with self._lock:
            if key in self._vectors:
                self._vectors.move_to_end(key)
                return self._vectors[key]
        vectors = compute()
        vectors.setflags(write=False)
        with self._lock:
            if key not in self._vectors and vectors.nbytes <= self._max_bytes:
                self._vectors[key] = vectors
                self._bytes += vectors.nbytes
                while self._bytes > self._max_bytes:
                    self._bytes -= self._vectors.popitem(last=False)[1].nbytes
        return vectors

    @property
    def nbytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._vectors)


class DocumentIndex:
    """The chunks of one document, ready to be searched; by default one for each span."""

    def __init__(
        self,
        document: Document,
        encoder: Encoder,
        *,
        chunks: Sequence[Chunk] | None = None,
        cache: VectorCache | None = None,
        reranker: Reranker | None = None,
    ) -> None:
        self.document = document
        self.chunks = tuple(span_chunks(document) if chunks is None else chunks)
        self._encoder = encoder
        self._cache = cache if cache is not None and chunks is None else None
        self._reranker = reranker
        self._bm25: BM25 | None = None
        self._headed: BM25 | None = None
        self._vectors: Vectors | None = None

    def search(
        self,
        query: str,
        *,
        top_k: int,
        mode: SearchMode = "hybrid",
        filters: Filters | None = None,
    ) -> list[Citation]:
        """The best `top_k` chunks, best first.

        The score is the cosine (`vector`), BM25 (`text`), or (`hybrid`) the reranker's; without a
        reranker, the fused rank, at most 1. Chunks that share no word with the query are no
        result of `text`.

        Raises:
            InputError: an empty query, a bad `top_k`, mode or filter.
        """
        check_search(query, top_k, mode)
        checked = check_filters(filters)
        scores = self.scores(query, mode=mode)
        # Stable: equal scores stay in document order.
        order = np.argsort(-scores, kind="stable")
        found = []
        for index in order:
            chunk = self.chunks[int(index)]
            if mode == "text" and scores[index] <= 0:
                break
            if not checked or matches(chunk, self.document.source, checked):
                found.append(self.citation(int(index), float(scores[index])))
                if len(found) == top_k:
                    break
        return found

    def scores(self, query: str, *, mode: SearchMode = "hybrid") -> Vectors:
        """`(chunks,)`: the score of every chunk."""
        if not self.chunks:
            return np.zeros(0, dtype=np.float32)
        if mode == "vector":
            return self._cosines(query)
        if mode == "text":
            return self._lexical(query)
        if self._reranker is not None:
            return self._reranker.scores(query, self.candidates(query))
        cosines, lexical = self._cosines(query), self._lexical(query)
        rankings = [
            np.argsort(-cosines, kind="stable").tolist(),
            [i for i in np.argsort(-lexical, kind="stable").tolist() if lexical[i] > 0],
        ]
        fused = reciprocal_rank_fusion(rankings)
        return np.asarray([fused.get(i, 0.0) for i in range(len(self.chunks))], dtype=np.float32)

    def citation(self, index: int, score: float) -> Citation:
        """The chunk at `index` as a citation."""
        chunk = self.chunks[index]
        return Citation(
            chunk=chunk.id,
            document=chunk.document,
            start=chunk.start,
            end=chunk.end,
            text=chunk.text,
            score=score,
            source=self.document.source,
        )

    def _cosines(self, query: str) -> Vectors:
        vectors = self._chunk_vectors()
        scores: Vectors = vectors @ self._encoder.encode([query])[0]
        return scores

    def _lexical(self, query: str) -> Vectors:
        if self._bm25 is None:
            self._bm25 = BM25([chunk.text for chunk in self.chunks])
        return self._bm25.scores(query)

    def candidates(self, query: str) -> Candidates:
        """What a reranker is given for a query: every chunk, in order."""
        if self._headed is None:
            self._headed = BM25([f"{' '.join(c.heading)} {c.text}" for c in self.chunks])
        return Candidates(
            chunks=self.chunks,
            vectors=self._chunk_vectors(),
            query=self._encoder.encode([query])[0],
            lexical=self._lexical(query),
            headed=self._headed.scores(query),
        )

    def _chunk_vectors(self) -> Vectors:
        if self._vectors is None:
            texts = [headed_text(chunk) for chunk in self.chunks]
            if self._cache is None:
                self._vectors = self._encoder.encode(texts)
            else:
                key = (self.document.digest, self._encoder.digest, "headed spans")
                self._vectors = self._cache.get(key, lambda: self._encoder.encode(texts))
        return self._vectors
