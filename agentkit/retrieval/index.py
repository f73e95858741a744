"""A standing index of many documents: LanceDB in a folder, vectors and full text."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from agentkit.errors import InputError
from agentkit.retrieval.chunking import MAX_CHUNK_CHARS, chunk_document
from agentkit.retrieval.document_index import SearchMode, check_search
from agentkit.retrieval.filters import Filters, check_filters, where_clause
from agentkit.retrieval.ranking import reciprocal_rank_fusion
from agentkit.retrieval.store import write_atomically
from agentkit.types import Citation, Document, Encoder

_TABLE = "chunks"
_META = "index.json"
_LOCK = ".write-lock"
_FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Candidates of each kind of search that the fusion sees, at least.
_CANDIDATES = 50
_BATCH = 256


class Index:
    """Stateful on disk: chunks with vectors in a folder, safe for threads and processes."""

    def __init__(self, path: Path, encoder: Encoder, table: Any, max_chars: int) -> None:
        self.path = path
        self._encoder = encoder
        self._table = table
        self._max_chars = max_chars

    @classmethod
    def open(
        cls,
        path: Path,
        encoder: Encoder,
        *,
        create: bool = True,
        max_chars: int = MAX_CHUNK_CHARS,
    ) -> Index:
        """Open the index in the folder `path`, or make an empty one there.

        `max_chars` is the length of the chunks of a new index; an existing one keeps its own.

        Raises:
            InputError: the folder holds something else, an index of another encoder, or nothing
                while `create` is false.
        """
        import lancedb

        meta_path = path / _META
        if not meta_path.is_file():
            if not create:
                raise InputError(
                    "there is no index here", where=str(path), hint="build it first from documents"
                )
            if path.exists() and not (path.is_dir() and _is_free(path)):
                raise InputError(
                    "not an index, and not an empty folder",
                    where=str(path),
                    hint="name another folder",
                )
            path.mkdir(parents=True, exist_ok=True)
        with _writing(path):
            if not meta_path.is_file():
                meta: dict[str, Any] = {
                    "format": _FORMAT,
                    "encoder": encoder.digest,
                    "dimension": encoder.dimension,
                    "max_chars": max_chars,
                }
                write_atomically(meta_path, json.dumps(meta).encode())
            meta = _read_meta(meta_path)
            if meta["encoder"] != encoder.digest or meta["dimension"] != encoder.dimension:
                raise InputError(
                    f"this index was built with another encoder ({meta['encoder'][:12]}, "
                    f"not {encoder.digest[:12]})",
                    where=str(path),
                    hint="open it with that encoder or build it anew",
                )
            database = lancedb.connect(str(path))
            table = database.create_table(_TABLE, schema=_schema(encoder.dimension), exist_ok=True)
        return cls(path, encoder, table, meta["max_chars"])

    def add(self, document: Document) -> int:
        """Add the document's chunks; returns how many were new, 0 if it was there already."""
        chunks = chunk_document(document, max_chars=self._max_chars)
        if not chunks or self._count(document.digest) == len(chunks):
            return 0
        rows: list[dict[str, Any]] = []
        for at in range(0, len(chunks), _BATCH):
            batch = chunks[at : at + _BATCH]
            vectors = self._encoder.encode([chunk.text for chunk in batch])
            rows.extend(
                {
                    "id": chunk.id,
                    "document": chunk.document,
                    "source": document.source,
                    "start": chunk.start,
                    "end": chunk.end,
                    "heading": list(chunk.heading),
                    "page": chunk.page,
                    "text": chunk.text,
                    "vector": vector.tolist(),
                }
                for chunk, vector in zip(batch, vectors, strict=True)
            )
        with _writing(self.path):
            self._table.checkout_latest()
            result = self._table.merge_insert("id").when_not_matched_insert_all().execute(rows)
            self._refresh()
        return int(result.num_inserted_rows)

    def remove(self, digest: str) -> int:
        """Remove a document's chunks; returns how many there were.

        Raises:
            InputError: `digest` is not a document's digest.
        """
        with _writing(self.path):
            self._table.checkout_latest()
            count = self._count(digest)
            if count:
                self._table.delete(f"document = '{digest}'")
                self._table.optimize()
        return count

    def documents(self) -> dict[str, str]:
        """Digest to source of every document in the index."""
        rows = self._table.search().select(["document", "source"]).limit(len(self) or 1).to_list()
        return {row["document"]: row["source"] for row in rows}

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def search(
        self,
        query: str,
        *,
        top_k: int,
        mode: SearchMode = "hybrid",
        filters: Filters | None = None,
    ) -> list[Citation]:
        """The best `top_k` chunks, best first.

        The score is the cosine (`vector`), BM25 (`text`), or the fused rank, at most 1 (`hybrid`:
        reciprocal rank fusion of both).

        Raises:
            InputError: an empty query, a bad `top_k`, mode or filter.
        """
        check_search(query, top_k, mode)
        where = where_clause(check_filters(filters))
        self._table.checkout_latest()
        if not len(self):
            return []
        if mode == "vector":
            return [_citation(row, score) for row, score in self._by_vector(query, top_k, where)]
        if mode == "text":
            return [_citation(row, score) for row, score in self._by_text(query, top_k, where)]
        depth = max(_CANDIDATES, 2 * top_k)
        ranked = [self._by_vector(query, depth, where), self._by_text(query, depth, where)]
        rows = {row["id"]: row for ranking in ranked for row, _ in ranking}
        fused = reciprocal_rank_fusion([[row["id"] for row, _ in ranking] for ranking in ranked])
        return [_citation(rows[key], score) for key, score in list(fused.items())[:top_k]]

    def _by_vector(
        self, query: str, limit: int, where: str | None
    ) -> list[tuple[Mapping[str, Any], float]]:
        vector = self._encoder.encode([query])[0].astype(np.float32)
        search = self._table.search(vector, query_type="vector").distance_type("dot")
        # Lance's dot distance is 1 - cosine for unit vectors.
        return [(row, 1.0 - row["_distance"]) for row in _run(search, limit, where)]

    def _by_text(
        self, query: str, limit: int, where: str | None
    ) -> list[tuple[Mapping[str, Any], float]]:
        search = self._table.search(query, query_type="fts", fts_columns="text")
        return [(row, row["_score"]) for row in _run(search, limit, where)]

    def _count(self, digest: str) -> int:
        if not _DIGEST.fullmatch(digest):
            raise InputError(
                f"{digest[:80]!r} is not a document's digest",
                hint="a digest is 64 hexadecimal digits",
            )
        return int(self._table.count_rows(f"document = '{digest}'"))

    def _refresh(self) -> None:
        """Bring the full-text index up to date."""
        from lancedb.index import FTS

        if self._table.list_indices():
            self._table.optimize()
        else:
            self._table.create_index("text", config=FTS())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Hold the folder's lock: Lance's own commits would let two writers insert the same rows."""
    with (path / _LOCK).open("ab") as file:
        # The lock goes with the file's descriptor, so it holds between threads too.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_free(path: Path) -> bool:
    """Nothing but what another process may be writing at this moment."""
    return all(
        item.name.startswith((_LOCK, f".{_META}")) or item.name == _META for item in path.iterdir()
    )


def _run(search: Any, limit: int, where: str | None) -> list[dict[str, Any]]:
    if where is not None:
        search = search.where(where, prefilter=True)
    rows: list[dict[str, Any]] = search.limit(limit).to_list()
    return rows


def _citation(row: Mapping[str, Any], score: float) -> Citation:
    return Citation(
        chunk=row["id"],
        document=row["document"],
        start=row["start"],
        end=row["end"],
        text=row["text"],
        score=float(score),
        source=row["source"],
    )


def _schema(dimension: int) -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("document", pa.string(), nullable=False),
            pa.field("source", pa.string()),
            pa.field("start", pa.int64()),
            pa.field("end", pa.int64()),
            pa.field("heading", pa.list_(pa.string())),
            pa.field("page", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dimension)),
        ]
    )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(
            f"damaged: {error}", where=str(path), hint="build the index anew"
        ) from error
    kinds = {"format": int, "encoder": str, "dimension": int, "max_chars": int}
    if not isinstance(meta, dict) or any(
        not isinstance(meta.get(key), kind) for key, kind in kinds.items()
    ):
        raise InputError("damaged", where=str(path), hint="build the index anew")
    if meta["format"] != _FORMAT:
        raise InputError(
            f"an index of format {meta['format']}; this version reads {_FORMAT}",
            where=str(path),
            hint="build the index anew",
        )
    return meta
