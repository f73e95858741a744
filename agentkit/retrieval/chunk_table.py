"""The LanceDB table of an index: its columns, chunks to rows and rows to citations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentkit.errors import InputError
from agentkit.retrieval.rerank import headed_text
from agentkit.types import Chunk, Citation, Document, Vectors

_TABLE = "chunks"
TABLE_FOLDER = f"{_TABLE}.lance"
CITED = ["id", "document", "source", "start", "end", "passage", "lead"]
"""The columns that a citation is made of."""


def create_table(folder: Path, dimension: int) -> None:
    """An empty table with its full-text index; one that is there, by a crash, is kept."""
    import lancedb
    from lancedb.index import FTS

    table = lancedb.connect(str(folder)).create_table(
        _TABLE, schema=_schema(dimension), exist_ok=True
    )
    if not table.list_indices():
        table.create_index("passage", config=FTS())


def open_table(folder: Path) -> Any:
    """The table in the folder. Raises `InputError` if it cannot be opened."""
    import lancedb

    try:
        return lancedb.connect(str(folder)).open_table(_TABLE)
    except (ValueError, OSError, RuntimeError) as error:
        raise InputError(
            f"damaged: {str(error)[:200]}", where=str(folder), hint="build the index anew"
        ) from error


def partitions(dimension: int) -> Any:
    """The index on the vectors: partitions of about equal size, so that a search reads as much of
    a large index as of a small one, and in them a bit for each dimension (RaBitQ, Gao and Long,
    2024), which takes a twentieth of the room that the vectors take."""
    from lancedb.index import IvfFlat, IvfRq

    return (IvfFlat if dimension % 8 else IvfRq)(distance_type="dot")


def row_table(documents: Sequence[tuple[Document, Sequence[Chunk]]], vectors: Vectors) -> Any:
    """An Arrow table of the documents' chunks; `vectors` is `(chunks, dimension)`, in order."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in (*CITED, "heading", "page")}
    for document, chunks in documents:
        for chunk in chunks:
            passage = headed_text(chunk)
            values = (chunk.id, chunk.document, document.source, chunk.start, chunk.end, passage)
            for name, value in zip(CITED, values, strict=False):
                columns[name].append(value)
            columns["lead"].append(len(passage) - len(chunk.text))
            columns["heading"].append(list(chunk.heading))
            columns["page"].append(chunk.page)
    dimension = vectors.shape[1]
    flat = pa.array(vectors.astype("float32", copy=False).ravel())
    return pa.table(
        {**columns, "vector": pa.FixedSizeListArray.from_arrays(flat, dimension)},
        schema=_schema(dimension),
    )


def citation(row: Mapping[str, Any], score: float) -> Citation:
    """A row as the citation that it stands for."""
    return Citation(
        chunk=row["id"],
        document=row["document"],
        start=row["start"],
        end=row["end"],
        text=row["passage"][row["lead"] :],
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
            # The heading path, then the chunk's own text, which begins at character `lead`: one
            # column is embedded, searched as text and cited.
            pa.field("passage", pa.string()),
            pa.field("lead", pa.int32()),
            pa.field("heading", pa.list_(pa.string())),
            pa.field("page", pa.int32()),
            # Half precision would take half the room, and ten times as long to search.
            pa.field("vector", pa.list_(pa.float32(), dimension)),
        ]
    )
