"""A standing index of many documents: LanceDB in a folder, vectors and full text.

Every change is one commit of Lance's, so a reader, and a crash, sees the chunks before it or after
it and nothing between. Searches take no lock; writers take turns.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from agentkit.errors import InputError
from agentkit.retrieval.chunk_table import (
    CITED,
    TABLE_FOLDER,
    citation,
    create_table,
    open_table,
    partitions,
    row_table,
)
from agentkit.retrieval.chunking import MAX_CHUNK_CHARS, chunk_document
from agentkit.retrieval.document_index import SearchMode, check_search
from agentkit.retrieval.filters import Filters, check_filters, where_clause
from agentkit.retrieval.ledger import IndexedFile, read_ledger, write_ledger
from agentkit.retrieval.ranking import reciprocal_rank_fusion
from agentkit.retrieval.rerank import headed_text
from agentkit.retrieval.store import write_atomically
from agentkit.types import Chunk, Citation, Document, Encoder, Vectors

_Chunked: TypeAlias = tuple[Document, Sequence[Chunk]]

_META = "index.json"
_LOCK = ".write-lock"
_FORMAT = 2
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Candidates of each kind of search, at least: the fusion sees them, and partitions are approximate.
_CANDIDATES = 50
_BATCH = 256
# Below so many chunks every vector is compared; from then on those of the nearest partitions.
PARTITIONED_FROM = 10_000
_PROBES = 20
# Of the approximate nearest, so many times what is asked for are compared exactly.
_REFINE = 10
# So many chunks, or pieces of the table, may wait to be taken into Lance's indices: searching them
# one by one takes less than a millisecond, taking them in takes seconds in a large index.
_MAX_WAITING = 1000
_MAX_FRAGMENTS = 32
_MAX_DELTAS = 16
# A search that began on an older version has so long to end; one that takes longer begins anew.
_GRACE = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class IndexStats:
    """What an index holds."""

    path: Path
    documents: int
    chunks: int
    files: int
    """Files that it follows; documents that were added from memory have none."""
    bytes: int
    """On disk, with what the next compaction frees."""
    waiting: int
    """Chunks that are found by comparing them one by one, until the next compaction."""
    partitioned: bool
    """Vectors are searched by partitions rather than all of them."""
    encoder: str
    """Digest of the encoder that made the vectors."""


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
                    # The table first: where index.json is, the index is whole.
                    create_table(path, encoder.dimension)
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
        return cls(path, encoder, open_table(path), meta["max_chars"])

    def add(self, document: Document) -> int:
        """Add the document's chunks; returns how many were new, 0 if it was there already."""
        added = self.exchange((document,))
        self.compact()
        return added

    def exchange(
        self,
        documents: Sequence[Document],
        *,
        files: Mapping[str, IndexedFile] | None = None,
        gone: Collection[str] = (),
    ) -> int:
        """Add documents and let go of others in one commit; returns how many chunks were new.

        `files` are the files that hold the documents, by their absolute paths; a file that was
        recorded with another document lets go of that one. The files `gone` are forgotten. A
        document leaves the index when no file holds it any more.
        """
        distinct = {document.digest: document for document in documents}.values()
        chunked = [(d, chunk_document(d, max_chars=self._max_chars)) for d in distinct]
        self._table.checkout_latest()
        new = self._missing(chunked)
        rows = self._rows(new)
        with _writing(self.path):
            self._table.checkout_latest()
            late = [pair for pair in self._missing(chunked) if pair not in new]
            if late:  # another process has let go of them in the meantime
                rows = self._rows([*new, *late])
            before = read_ledger(self.path)
            after = {path: file for path, file in before.items() if path not in gone}
            after.update(files or {})
            held = {file.document for file in after.values()}
            dropped = {file.document for file in before.values()} - held
            added = self._commit(rows, dropped)
            # A crash before this leaves old entries: the next build reads those files again and
            # finds their chunks in place.
            if after != before:
                write_ledger(self.path, after)
        return added

    def remove(self, digest: str) -> int:
        """Remove a document's chunks; returns how many there were.

        Raises:
            InputError: `digest` is not a document's digest.
        """
        with _writing(self.path):
            self._table.checkout_latest()
            count = self._count(digest)
            self._commit(None, {digest} if count else set())
            before = read_ledger(self.path)
            after = {path: file for path, file in before.items() if file.document != digest}
            if after != before:
                write_ledger(self.path, after)
        self.compact()
        return count

    def compact(self) -> None:
        """Take what waits into the indices, and free what older versions hold.

        Does nothing while little waits: that is searched as fast without.
        """
        with _writing(self.path):
            self._table.checkout_latest()
            waiting = self._waiting()
            fragments = self._table.stats()["fragment_stats"]["num_small_fragments"]
            if waiting < _MAX_WAITING and fragments < _MAX_FRAGMENTS:
                return
            # First the vectors, so that the older index goes with the older versions.
            if self._needs_partitions():
                self._table.create_index("vector", config=partitions(self._encoder.dimension))
            self._table.optimize(cleanup_older_than=_GRACE)

    def files(self) -> dict[str, IndexedFile]:
        """The files that the index follows, by absolute path."""
        return read_ledger(self.path)

    def documents(self) -> dict[str, str]:
        """Digest to source of every document in the index."""
        self._table.checkout_latest()
        rows = self._table.search().select(["document", "source"]).limit(len(self) or 1).to_arrow()
        columns = rows.to_pydict()
        return dict(zip(columns["document"], columns["source"], strict=True))

    def stats(self) -> IndexStats:
        """What the index holds now."""
        documents = self.documents()
        return IndexStats(
            path=self.path,
            documents=len(documents),
            chunks=len(self),
            files=len(self.files()),
            bytes=sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file()),
            waiting=self._waiting(),
            partitioned=self._statistics("vector") is not None,
            encoder=self._encoder.digest,
        )

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
            InputError: an empty query, a bad `top_k`, mode or filter, or a damaged index.
        """
        check_search(query, top_k, mode)
        where = where_clause(check_filters(filters))
        vector = None if mode == "text" else self._encoder.encode([query])[0]
        for last in (False, True):
            self._table.checkout_latest()
            try:
                return self._search(query, vector, top_k, mode, where) if len(self) else []
            except (OSError, RuntimeError) as error:
                # A compaction frees the version that a search is on, if the search takes very long.
                if last:
                    raise InputError(
                        f"the index cannot be read: {str(error)[:200]}",
                        where=str(self.path),
                        hint="build the index anew",
                    ) from error
        return []

    def _search(
        self, query: str, vector: Vectors | None, top_k: int, mode: SearchMode, where: str | None
    ) -> list[Citation]:
        depth = max(_CANDIDATES, 2 * top_k)
        rankings: list[list[tuple[Mapping[str, Any], float]]] = []
        if vector is not None:
            search = self._table.search(vector.astype(np.float32), query_type="vector")
            search = search.distance_type("dot").nprobes(_PROBES).refine_factor(_REFINE)
            # Lance's dot distance is 1 - cosine for unit vectors.
            found = _run(search, depth, where, "_distance")
            rankings.append([(row, 1.0 - row["_distance"]) for row in found])
        if mode != "vector":
            search = self._table.search(query, query_type="fts", fts_columns="passage")
            found = _run(search, depth, where, "_score")
            rankings.append([(row, row["_score"]) for row in found])
        if mode != "hybrid":
            return [citation(row, score) for row, score in rankings[0][:top_k]]
        rows = {row["id"]: row for ranking in rankings for row, _ in ranking}
        fused = reciprocal_rank_fusion([[row["id"] for row, _ in ranking] for ranking in rankings])
        return [citation(rows[key], score) for key, score in list(fused.items())[:top_k]]

    def _missing(self, chunked: Sequence[_Chunked]) -> list[_Chunked]:
        return [pair for pair in chunked if self._count(pair[0].digest) != len(pair[1])]

    def _rows(self, chunked: Sequence[_Chunked]) -> Any | None:
        """The chunks as rows, each embedded with its heading path; None if there are none."""
        texts = [headed_text(chunk) for _, chunks in chunked for chunk in chunks]
        if not texts:
            return None
        batches = range(0, len(texts), _BATCH)
        vectors = [self._encoder.encode(texts[at : at + _BATCH]) for at in batches]
        return row_table(chunked, np.concatenate(vectors))

    def _commit(self, rows: Any | None, dropped: Collection[str]) -> int:
        """One commit of both; returns how many rows are new."""
        gone = f"document IN ({', '.join(repr(digest) for digest in sorted(dropped))})"
        if rows is None:
            if dropped:
                self._table.delete(gone)
            return 0
        merge = self._table.merge_insert("id").when_not_matched_insert_all()
        if dropped:
            merge = merge.when_not_matched_by_source_delete(gone)
        return int(merge.execute(rows).num_inserted_rows)

    def _count(self, digest: str) -> int:
        if not _DIGEST.fullmatch(digest):
            raise InputError(
                f"{digest[:80]!r} is not a document's digest",
                hint="a digest is 64 hexadecimal digits",
            )
        return int(self._table.count_rows(f"document = '{digest}'"))

    def _statistics(self, column: str) -> Any | None:
        """Of Lance's index on that column, if there is one."""
        for index in self._table.list_indices():
            if index.columns == [column]:
                return self._table.index_stats(index.name)
        return None

    def _waiting(self) -> int:
        statistics = self._statistics("passage")
        return len(self) if statistics is None else int(statistics.num_unindexed_rows)

    def _needs_partitions(self) -> bool:
        """Enough chunks for partitions, and none, or too many afterthoughts to the ones there."""
        if len(self) < PARTITIONED_FROM:
            return False
        statistics = self._statistics("vector")
        return (
            statistics is None
            or statistics.num_unindexed_rows > statistics.num_indexed_rows
            or statistics.num_indices > _MAX_DELTAS
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Hold the folder's lock: Lance's own commits would let two writers insert the same rows."""
    with (path / _LOCK).open("ab") as file:
        # The lock goes with the file's descriptor, so it holds between threads too.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_free(path: Path) -> bool:
    """Nothing but what another process may be writing at this moment, or left when it died."""
    return all(
        item.name.startswith((_LOCK, f".{_META}")) or item.name in (_META, TABLE_FOLDER)
        for item in path.iterdir()
    )


def _run(search: Any, limit: int, where: str | None, score: str) -> list[dict[str, Any]]:
    if where is not None:
        search = search.where(where, prefilter=True)
    rows: list[dict[str, Any]] = search.select([*CITED, score]).limit(limit).to_list()
    return rows


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
