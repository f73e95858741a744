"""A standing index as it grows: query time, size on disk, adding while others query.

The texts come from a generator (words by Zipf's law, in numbered clauses) and the vectors from a
mixture of Gaussians, because embedding 100,000 chunks would take the most of an hour and changes
nothing of what is measured: everything beside the one pass of the encoder for the query.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from common import Metric, arguments, at_least, at_most, finish

from agentkit.errors import ModelError
from agentkit.retrieval.chunk_table import open_table
from agentkit.retrieval.index import Index
from agentkit.retrieval.loaders import document_from_text
from agentkit.types import Document, Vectors

DIMENSION = 384
CENTRES = 500
VOCABULARY = 20_000
SIZES = (1_000, 10_000, 100_000)
# Larger than what waits uncompacted in any index, so that compaction is part of what is measured.
STEP = 10_000
CLAUSES = 400
QUERIES = 60
QUERY_WORDS = 12
MAX_QUERY_MS = 50.0
MAX_MB = 5.0
LEAST_RECALL = 0.95


class SyntheticEncoder:
    """Unit vectors around fixed centres; which one a text gets depends on the text alone."""

    dimension = DIMENSION
    digest = "0" * 64

    def __init__(self) -> None:
        self._centres = np.random.default_rng(1).normal(size=(CENTRES, DIMENSION))

    def encode(self, texts: Sequence[str]) -> Vectors:
        seeds = np.asarray([zlib.crc32(text.encode()) for text in texts])
        noise = np.random.default_rng(seeds).normal(size=(len(texts), DIMENSION))
        vectors = self._centres[seeds % CENTRES] + 0.7 * noise
        unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
            np.float32
        )
        return unit


class Texts:
    """Stateful: documents and queries from one stream of random words."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        weights = 1 / np.arange(1, VOCABULARY + 1)
        self._weights = np.cumsum(weights / weights.sum())
        letters = np.asarray(list("aeioubcdfglmnprst"))
        self._vocabulary = [
            "".join(np.random.default_rng([2, rank]).choice(letters, 3 + rank % 8)) + f"{rank:x}"
            for rank in range(VOCABULARY)
        ]

    def words(self, count: int) -> list[str]:
        ranks = np.searchsorted(self._weights, self._random.random(count))
        return [self._vocabulary[min(rank, VOCABULARY - 1)] for rank in ranks]

    def query(self) -> str:
        return " ".join(self.words(QUERY_WORDS))

    def document(self, number: int) -> Document:
        """About as many chunks as it has clauses, each near the longest that a chunk may be."""
        words = iter(self.words(CLAUSES * 100))
        clauses = []
        for clause in range(1, CLAUSES + 1):
            sentences = [
                " ".join(next(words) for _ in range(25)).capitalize() + "." for _ in range(4)
            ]
            clauses.append(f"{clause}. Clause {clause}\n\n" + " ".join(sentences))
        return document_from_text("\n\n".join(clauses), source=f"contract-{number}.txt")


def grow(index: Index, texts: Texts, size: int, first: int) -> int:
    """Add documents until the index holds `size` chunks; returns the next document's number."""
    waiting: list[Document] = []
    held = len(index)
    while held < size:
        waiting.append(texts.document(first))
        held += CLAUSES
        first += 1
        if len(waiting) * CLAUSES >= STEP or held >= size:
            index.exchange(waiting)
            index.compact()
            waiting.clear()
    return first


def query_times(index: Index, queries: Sequence[str]) -> list[float]:
    """Milliseconds of each hybrid search, sorted, once pages and indices are in memory."""
    for query in queries[:5]:
        index.search(query, top_k=10)
    times = []
    for query in queries:
        start = time.perf_counter()
        index.search(query, top_k=10)
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)


def recall(index: Index, queries: Sequence[str], encoder: SyntheticEncoder) -> float:
    """Share of the ten nearest chunks, by all vectors, that a search by partitions finds."""
    table = open_table(index.path)
    shares = []
    for query in queries:
        search = table.search(encoder.encode([query])[0], query_type="vector")
        exact = search.distance_type("dot").bypass_vector_index().limit(10).select(["id"]).to_list()
        found = {c.chunk for c in index.search(query, top_k=10, mode="vector")}
        shares.append(len(found & {row["id"] for row in exact}) / 10)
    return float(np.mean(shares))


def add_until(path: Path, started: Event, stop: Event) -> None:
    """What the other process does: adds a document, compacts, and so on."""
    index = Index.open(path, SyntheticEncoder(), create=False)
    texts = Texts(seed=3)
    number = 1_000_000
    while not stop.is_set():
        index.add(texts.document(number))
        started.set()
        number += 1


def times_while_adding(index: Index, queries: Sequence[str]) -> list[float]:
    context = multiprocessing.get_context("spawn")
    started, stop = context.Event(), context.Event()
    other = context.Process(target=add_until, args=(index.path, started, stop))
    other.start()
    try:
        if not started.wait(timeout=120):
            raise SystemExit("the adding process did not start")
        return query_times(index, queries)
    finally:
        stop.set()
        other.join()


def encoder_pass(queries: Sequence[str]) -> float | None:
    """Milliseconds of the real encoder for one query; None where its model is not there."""
    from agentkit.kit import Kit

    try:
        with Kit() as kit:
            encoder = kit.encoder
            encoder.encode([queries[0]])
            start = time.perf_counter()
            for query in queries:
                encoder.encode([query])
            return 1000 * (time.perf_counter() - start) / len(queries)
    except ModelError as error:
        sys.stderr.write(f"the encoder's pass is not measured: {error}\n")
        return None


def measure(folder: Path, sizes: Sequence[int]) -> list[Metric]:
    encoder = SyntheticEncoder()
    texts = Texts(seed=0)
    queries = [texts.query() for _ in range(QUERIES)]
    index = Index.open(folder / "index", encoder)
    metrics: list[Metric] = []
    medians: dict[int, float] = {}
    number = 0
    for size in sizes:
        start = time.perf_counter()
        number = grow(index, texts, size, number)
        metrics.append(Metric(f"seconds_to_grow_to_{size}", time.perf_counter() - start, "s"))
        times = query_times(index, queries)
        medians[size] = times[len(times) // 2]
        metrics.append(at_most(f"query_ms_at_{size}", medians[size], MAX_QUERY_MS, "ms"))
        metrics.append(Metric(f"query_ms_p95_at_{size}", times[int(0.95 * len(times))], "ms"))
        stats = index.stats()
        megabytes = stats.bytes / 1e6 / (stats.chunks / 1000)
        metrics.append(at_most(f"mb_per_1000_chunks_at_{size}", megabytes, MAX_MB, "MB"))
    first, last = sizes[0], sizes[-1]
    metrics.append(Metric(f"query_time_{last}_to_{first}", medians[last] / medians[first], "ratio"))
    metrics.append(
        at_least(
            f"recall_at_10_of_partitions_{last}", recall(index, queries, encoder), LEAST_RECALL
        )
    )
    start = time.perf_counter()
    index.add(texts.document(number))
    metrics.append(Metric(f"seconds_to_add_a_document_at_{last}", time.perf_counter() - start, "s"))
    busy = times_while_adding(index, queries)
    metrics.append(Metric(f"query_ms_while_adding_at_{last}", busy[len(busy) // 2], "ms"))
    one_pass = encoder_pass(queries)
    if one_pass is not None:
        metrics.append(Metric("encoder_pass_ms", one_pass, "ms"))
        metrics.append(
            Metric(f"query_time_{last}_to_encoder_pass", medians[last] / one_pass, "ratio")
        )
    return metrics


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="chunks, rising")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentkit-index-") as folder:
        return finish("index", measure(Path(folder), options.sizes), options.json)


if __name__ == "__main__":
    sys.exit(main())
