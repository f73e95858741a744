"""What a step is shown: the best spans of its document, or chunks of a standing index."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from agentkit.errors import InputError
from agentkit.retrieval.document_index import (
    DocumentIndex,
    SearchMode,
    VectorCache,
    check_search,
)
from agentkit.retrieval.filters import Filters, check_filters, matches
from agentkit.retrieval.index import Index
from agentkit.retrieval.index_build import IndexBuild, OnFile, build_index
from agentkit.retrieval.rerank import Reranker
from agentkit.retrieval.rerankers import open_reranker
from agentkit.retrieval.selection import CountTokens, said, select
from agentkit.settings import Settings
from agentkit.types import Citation, Document, DocumentStore, Encoder

_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
_MAX_NAME = 64
_OPEN_DOCUMENTS = 32


class Retriever:
    """Stateful: keeps the search structures of the documents in use. Safe for threads."""

    def __init__(
        self,
        encoder: Encoder,
        settings: Settings,
        documents: DocumentStore,
        *,
        reranker: Reranker | None = None,
    ) -> None:
        """`reranker` takes the place of the one that the settings name."""
        self._encoder = encoder
        self._settings = settings
        self._documents = documents
        self._vectors = VectorCache()
        self._open: OrderedDict[str, DocumentIndex] = OrderedDict()
        self._indexes: dict[Path, Index] = {}
        self._reranker = reranker
        self._reranks = reranker is not None
        self._lock = threading.Lock()

    def excerpts(
        self,
        document: Document | str,
        query: str,
        *,
        top_k: int,
        budget_tokens: int,
        count_tokens: CountTokens,
        mode: SearchMode = "hybrid",
        filters: Filters | None = None,
        neighbours: bool = True,
    ) -> tuple[Citation, ...]:
        """Spans of the document (or of the stored one with that digest), in document order.

        The best `top_k` spans are taken in order of their score while `count_tokens` of each fits
        what is left of the budget; a span that does not fit is passed over, and one that says what
        another said is dropped. With `neighbours`, a list item brings its lead-in, and what is left
        goes to the spans beside those taken under the same heading, the best span's first, because
        a clause's condition often stands in the next sentence. Each span is one citation with its
        own score.

        Raises:
            InputError: an empty query, a bad `top_k`, mode or filter.
            DocumentError: the digest is not in the store.
        """
        index = self.document_index(document)
        found = index.search(query, top_k=top_k, mode=mode, filters=filters)
        at = {chunk.id: number for number, chunk in enumerate(index.chunks)}
        checked = check_filters(filters)
        taken = select(
            index.chunks,
            [at[citation.chunk] for citation in found],
            budget=budget_tokens,
            count_tokens=count_tokens,
            allowed=lambda number: matches(index.chunks[number], index.document.source, checked),
            neighbours=neighbours,
        )
        scores = {at[citation.chunk]: citation.score for citation in found}
        if set(taken) - set(scores):
            every = index.scores(query, mode=mode)
            scores |= {n: float(every[n]) for n in taken if n not in scores}
        return tuple(index.citation(number, scores[number]) for number in sorted(taken))

    def embed(self, queries: Sequence[str]) -> None:
        """Have the encoder remember the vectors of queries that will be searched for."""
        self._encoder.encode(queries)

    def best_stretches(
        self,
        document: Document | str,
        query: str,
        stretches: Sequence[tuple[int, int]],
        *,
        most: int,
        filters: Filters | None = None,
    ) -> list[int]:
        """Which stretches (start, end) of a document to read for a query: numbers, ascending.

        The `most` that hold the best hits, each stretch by its best; a stretch in which the
        filters let nothing be found is left out, unless that leaves none: then the first is read.

        Raises:
            InputError: an empty query or a bad filter.
            DocumentError: the digest is not in the store.
        """
        index = self.document_index(document)
        best: list[int] = []
        for hit in index.search(query, top_k=max(1, len(index.chunks)), filters=filters):
            holder = next((n for n, (a, b) in enumerate(stretches) if a <= hit.start < b), None)
            if holder is not None and holder not in best:
                best.append(holder)
                if len(best) == most:
                    break
        return sorted(best or range(len(stretches[:1])))

    def document_index(self, document: Document | str) -> DocumentIndex:
        """The search structures of one document, kept while it is among the last ones used.

        Raises:
            DocumentError: the digest is not in the store.
        """
        if isinstance(document, str):
            with self._lock:
                index = self._open.get(document)
            if index is not None:
                return index
            document = self._documents.get(document)
        with self._lock:
            index = self._open.pop(document.digest, None)
            # The same text may have been read under another name.
            if index is None or index.document != document:
                index = DocumentIndex(
                    document, self._encoder, cache=self._vectors, reranker=self._second_look()
                )
            self._open[document.digest] = index
            while len(self._open) > _OPEN_DOCUMENTS:
                self._open.popitem(last=False)
        return index

    def _second_look(self) -> Reranker | None:
        # Opened at the first document: reading the encoder's digest takes a while.
        if not self._reranks:
            self._reranker = open_reranker(self._settings, self._encoder)
            self._reranks = True
        return self._reranker

    def search_index(
        self,
        name: str | Path,
        query: str,
        *,
        top_k: int,
        mode: SearchMode = "hybrid",
        filters: Filters | None = None,
        budget_tokens: int | None = None,
        count_tokens: CountTokens | None = None,
    ) -> tuple[Citation, ...]:
        """The best chunks of a standing index, best first, within the budget if there is one.

        Raises:
            InputError: no such index, one of another encoder, or a bad query or filter.
        """
        check_search(query, top_k, mode)
        check_filters(filters)
        found = self.open_index(name).search(query, top_k=top_k, mode=mode, filters=filters)
        if budget_tokens is None or count_tokens is None:
            return tuple(found)
        kept = []
        known: set[tuple[str, ...]] = set()
        for citation in found:
            cost, words = count_tokens(citation.text), said(citation.text)
            if cost <= budget_tokens and words not in known:
                kept.append(citation)
                known.add(words)
                budget_tokens -= cost
        return tuple(kept)

    def build_index(
        self, paths: Sequence[Path], name: str | Path, *, on_file: OnFile | None = None
    ) -> IndexBuild:
        """Bring the index of that name, made if need be, up to date with files and folders.

        See `agentkit.retrieval.index_build.build_index`.

        Raises:
            InputError: a bad name, an index of another encoder, or nothing to index.
        """
        return build_index(
            self.open_index(name, create=True),
            paths,
            store=self._documents,
            settings=self._settings,
            on_file=on_file,
        )

    def open_index(self, name: str | Path, *, create: bool = False) -> Index:
        """The standing index of that name or path.

        Raises:
            InputError: a bad name, an index of another encoder, or none while `create` is false.
        """
        path = self._index_path(name)
        with self._lock:
            index = self._indexes.get(path)
            if index is None or not (path / "index.json").is_file():
                index = Index.open(path, self._encoder, create=create)
                self._indexes[path] = index
        return index

    def _index_path(self, name: str | Path) -> Path:
        """A plain name lies in the settings' folder of indexes; anything else is a path."""
        if isinstance(name, Path) or "/" in name:
            return Path(name).expanduser().resolve()
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
            raise InputError(
                f"{name[:80]!r} is not an index's name",
                hint="use lowercase letters, digits, - and _, or a path with a slash",
            )
        return (self._settings.indexes_dir / name).resolve()
