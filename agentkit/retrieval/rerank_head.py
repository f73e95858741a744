"""The tuned reranker: a head of some hundred kilobytes over the encoder's vectors, in numpy.

A passage's score is `w . x + s (Up)' (Vq) + s (b . p)` with the passage's vector `p`, the query's
`q`, and features `x` that know no word of either: standardised cosine and BM25 of the passage, of
its neighbours and of its section, and its place and shape. The bilinear part has learnt what
evidence for a kind of question looks like; the scale `s` is small enough that it does no harm to a
question of another kind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agentkit.errors import ModelError
from agentkit.retrieval.ranking import standardised
from agentkit.retrieval.rerank import Candidates
from agentkit.types import Vectors

HEAD_FILE = Path(__file__).parent / "tuned" / "reranker.safetensors"
SCALE = 10.0
"""Products of unit vectors are small; this brings them to the size of the features."""
_MAX_BYTES = 50_000_000
_SHORT, _LEAD_IN = 60, ":"

# fmt: off
FEATURES = (
    "cosine", "bm25", "bm25_headed", "cosine_before", "cosine_after", "bm25_before", "bm25_after",
    "section_mean", "section_best", "log_length", "short", "place", "first_tenth", "last_part",
    "lead_in", "capitals",
)
# fmt: on


def features(candidates: Candidates) -> NDArray[np.float32]:
    """`(n, len(FEATURES))`: what is known of each passage beside its words."""
    chunks = candidates.chunks
    count = len(chunks)
    cosine = standardised(candidates.vectors @ candidates.query)
    lexical, headed = standardised(candidates.lexical), standardised(candidates.headed)
    section = np.unique([" > ".join(chunk.heading) for chunk in chunks], return_inverse=True)[1]
    best = np.full(section.max(initial=-1) + 1, -np.inf, dtype=np.float32)
    np.maximum.at(best, section, cosine)
    mean = np.bincount(section, cosine) / np.maximum(np.bincount(section), 1)
    lengths = np.array([len(chunk.text) for chunk in chunks], dtype=np.float32)
    place = np.arange(count, dtype=np.float32) / max(count, 1)
    columns = [
        cosine,
        lexical,
        headed,
        *_beside(cosine),
        *_beside(headed),
        mean[section],
        best[section],
        np.log1p(lengths) - 4.5,
        lengths < _SHORT,
        place,
        place < 0.1,
        place > 0.85,
        [chunk.text.rstrip().endswith(_LEAD_IN) for chunk in chunks],
        [chunk.text.isupper() for chunk in chunks],
    ]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)


def _beside(scores: Vectors) -> tuple[Vectors, Vectors]:
    """The scores of the passages before and after; an end stands beside itself."""
    padded = np.pad(scores, 1, mode="edge")
    return padded[:-2], padded[2:]


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The weights; `left` and `right` are `(dimension, rank)`."""

    weights: NDArray[np.float32]
    left: NDArray[np.float32]
    right: NDArray[np.float32]
    bias: NDArray[np.float32]
    """`(dimension,)`: what evidence looks like whatever the question."""
    encoder: str
    """Digest of the encoder whose vectors it reads."""

    def scores(self, candidates: Candidates) -> NDArray[np.float32]:
        """`(n,)`: logarithms of the passages' shares of the evidence, up to a constant."""
        known = features(candidates) @ self.weights
        return np.asarray(known + self.learnt(candidates.query, candidates.vectors), np.float32)

    def learnt(self, query: Vectors, vectors: Vectors) -> NDArray[np.float32]:
        """`(n,)`: the bilinear part of the score of each passage."""
        asked = self.left @ (self.right.T @ query) + self.bias
        return np.asarray(SCALE * (vectors @ asked), dtype=np.float32)

    def to_bytes(self) -> bytes:
        tensors: dict[str, NDArray[Any]] = {
            "weights": self.weights.astype(np.float32),
            "left": self.left.astype(np.float16),
            "right": self.right.astype(np.float16),
            "bias": self.bias.astype(np.float16),
        }
        # One entry: the order of several would change from one process to the next.
        about = json.dumps({"encoder": self.encoder, "features": FEATURES})
        return save(tensors, metadata={"head": about})


class TunedReranker:
    """Scores passages with a `Head`; the scores sum to one over the passages."""

    def __init__(self, head: Head) -> None:
        self.head = head

    @classmethod
    def load(cls, path: Path, encoder: str) -> TunedReranker:
        """Raises ModelError: no head, one of another format, or of another encoder."""
        head = _read(path)
        if head.encoder != encoder:
            raise ModelError(
                f"this reranker was tuned on another encoder ({head.encoder[:12]}, "
                f"not {encoder[:12]})",
                where=str(path),
                hint="tune one with `agentkit tune-reranker`, or set AGENTKIT_RERANKER=none",
            )
        return cls(head)

    @classmethod
    def of_package(cls, encoder: str) -> TunedReranker | None:
        """The one that ships with the package; None if it belongs to another encoder."""
        head = _read(HEAD_FILE) if HEAD_FILE.is_file() else None
        return cls(head) if head is not None and head.encoder == encoder else None

    def scores(self, query: str, candidates: Candidates) -> Vectors:
        """`(n,)`: the share of the evidence that each passage is expected to hold."""
        if not len(candidates.chunks):
            return np.zeros(0, dtype=np.float32)
        scores = self.head.scores(candidates)
        shares = np.exp(scores - scores.max())
        return np.asarray(shares / shares.sum(), dtype=np.float32)


@lru_cache(maxsize=4)
def _read(path: Path) -> Head:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError("too large for a reranker's head", where=str(path))
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["head"])
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
        if tuple(about["features"]) != FEATURES:
            raise ModelError(
                "this reranker reads other features", where=str(path), hint="tune it anew"
            )
        head = Head(
            weights=tensors["weights"],
            left=tensors["left"],
            right=tensors["right"],
            bias=tensors["bias"],
            encoder=str(about["encoder"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"not a reranker's head: {error}",
            where=str(path),
            hint="make one with `agentkit tune-reranker`",
        ) from error
    dimension = head.bias.shape[0] if head.bias.ndim == 1 else -1
    rank = head.left.shape[-1]
    shapes = (head.left.shape, head.right.shape, head.weights.shape)
    if shapes != ((dimension, rank), (dimension, rank), (len(FEATURES),)):
        raise ModelError("the tensors of this reranker do not fit each other", where=str(path))
    return head
