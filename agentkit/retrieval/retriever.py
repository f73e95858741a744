"""What a step is shown: the best spans of its document, or chunks of a standing index."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentkit.errors import DocumentError, InputError
from agentkit.retrieval.document_index import (
    DocumentIndex,
    SearchMode,
    VectorCache,
    check_search,
)
from agentkit.retrieval.filters import Filters, check_filters, matches
from agentkit.retrieval.index import Index
from agentkit.retrieval.loaders import load_document
from agentkit.settings import Settings
from agentkit.types import Citation, Document, DocumentStore, Encoder

CountTokens = Callable[[str], int]
_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
_MAX_NAME = 64
_OPEN_DOCUMENTS = 32


@dataclass(frozen=True, slots=True)
class IndexBuild:
    """What `build_index` did; one bad file does not harm the others."""

    path: Path
    documents: Mapping[str, str]
    """Digest to source of the documents that are in the index now, of those given."""
    chunks: int
    """Chunks that were added."""
    failed: Mapping[str, DocumentError]
    """Path to error."""


class Retriever:
    """Stateful: keeps the search structures of the documents in use. Safe for threads."""

    def __init__(self, encoder: Encoder, settings: Settings, documents: DocumentStore) -> None:
        self._encoder = encoder
        self._settings = settings
        self._documents = documents
        self._vectors = VectorCache()
        self._open: OrderedDict[str, DocumentIndex] = OrderedDict()
        self._indexes: dict[Path, Index] = {}
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
        what is left of the budget; a span that does not fit is passed over. With `neighbours`,
        what is left then goes to the spans beside them under the same heading, the best span's
        first, because a clause's condition often stands in the next sentence. Each span is one
        citation with its own score.

        Raises:
            InputError: an empty query, a bad `top_k`, mode or filter.
            DocumentError: the digest is not in the store.
        """
        index = self.document_index(document)
        found = index.search(query, top_k=top_k, mode=mode, filters=filters)
        at = {chunk.id: number for number, chunk in enumerate(index.chunks)}
        hits = [at[citation.chunk] for citation in found]
        taken: set[int] = set()
        left = _take(hits, index, taken, budget_tokens, count_tokens)
        if neighbours:
            checked = check_filters(filters)
            beside = [
                number
                for hit in hits
                if hit in taken
                for number in (hit + 1, hit - 1)
                if 0 <= number < len(index.chunks)
                and index.chunks[number].heading == index.chunks[hit].heading
                and matches(index.chunks[number], index.document.source, checked)
            ]
            _take(beside, index, taken, left, count_tokens)
        scores = {citation.chunk: citation.score for citation in found}
        if taken - set(hits):
            every = index.scores(query, mode=mode)
            for number in taken:
                scores.setdefault(index.chunks[number].id, float(every[number]))
        return tuple(
            index.citation(number, scores[index.chunks[number].id]) for number in sorted(taken)
        )

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
                index = DocumentIndex(document, self._encoder, cache=self._vectors)
            self._open[document.digest] = index
            while len(self._open) > _OPEN_DOCUMENTS:
                self._open.popitem(last=False)
        return index

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
        found = self._index(name, create=False).search(
            query, top_k=top_k, mode=mode, filters=filters
        )
        if budget_tokens is None or count_tokens is None:
            return tuple(found)
        kept = []
        for citation in found:
            cost = count_tokens(citation.text)
            if cost <= budget_tokens:
                kept.append(citation)
                budget_tokens -= cost
        return tuple(kept)

    def build_index(self, paths: Sequence[Path], name: str | Path) -> IndexBuild:
        """Read the files, store the documents and add their chunks to the index of that name.

        Folders are read through, in order of their paths, without hidden files. A file that
        cannot be read is in `failed`. A document that is in the index already is not added again.

        Raises:
            InputError: a bad name, an index of another encoder, or no file at all.
        """
        files = _files(paths)
        if not files:
            raise InputError("no file to index", hint="give documents or folders of documents")
        index = self._index(name, create=True)
        documents: dict[str, str] = {}
        failed: dict[str, DocumentError] = {}
        chunks = 0
        for path in files:
            try:
                document = load_document(path, settings=self._settings)
            except DocumentError as error:
                failed[str(path)] = error
                continue
            self._documents.put(document)
            chunks += index.add(document)
            documents[document.digest] = document.source
        return IndexBuild(index.path, documents, chunks, failed)

    def _index(self, name: str | Path, *, create: bool) -> Index:
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


def _take(
    numbers: Sequence[int],
    index: DocumentIndex,
    taken: set[int],
    budget: int,
    count_tokens: CountTokens,
) -> int:
    """Add to `taken`, in order, what fits the budget; returns what is left of it."""
    for number in numbers:
        if budget <= 0:
            break
        if number not in taken:
            cost = count_tokens(index.chunks[number].text)
            if cost <= budget:
                taken.add(number)
                budget -= cost
    return budget


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files.extend(
                item
                for item in sorted(path.rglob("*"))
                if item.is_file()
                and not any(part.startswith(".") for part in item.relative_to(path).parts)
            )
        else:
            files.append(path)
    return files
