"""What the router sees of a text: its sentence vector, the encoder's middle, and its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agentkit.routing.lexical import Terms, letter_terms, word_terms
from agentkit.types import Encoder, Vectors

Array = NDArray[np.float64]

_MIDDLE_WEIGHT = 0.5
"""Length of the middle layer's part beside a sentence vector of length one."""


@runtime_checkable
class MiddleEncoder(Protocol):
    """An encoder that shows a middle layer too, from the same pass."""

    def encode_with_middle(
        self, texts: Sequence[str], *, keep: bool = False
    ) -> tuple[Vectors, NDArray[np.float32]]:
        """`(len(texts), dimension)`, rows of unit length, and `(len(texts), any width)`; `keep`
        says that they will be wanted again, by other processes too."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TextView:
    """One text, as it was embedded."""

    vector: NDArray[np.float32]
    """`(dimension,)`, of unit length."""
    middle: NDArray[np.float32]
    """`(middle dimension,)`, of any length; empty where the encoder shows none."""
    words: Terms
    letters: Terms


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """`n` texts, as the router takes them."""

    dense: NDArray[np.float32]
    """`(n, dimension + middle dimension)`."""
    vectors: NDArray[np.float32]
    """`(n, dimension)`, rows of unit length: cosines are taken between these."""
    words: tuple[Terms, ...]
    letters: tuple[Terms, ...]

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows: NDArray[np.intp]) -> Views:
        return Views(
            self.dense[rows],
            self.vectors[rows],
            tuple(self.words[k] for k in rows),
            tuple(self.letters[k] for k in rows),
        )


def views_of(encoder: Encoder, texts: Sequence[str], *, keep: bool = False) -> list[TextView]:
    """Each text as the encoder and its words show it; `keep` is for texts that stay, as a skill's
    utterances do."""
    if not texts:
        return []
    if isinstance(encoder, MiddleEncoder):
        vectors, middle = encoder.encode_with_middle(texts, keep=keep)
    else:
        vectors = encoder.encode(texts)
        middle = np.zeros((len(texts), 0), np.float32)
    # Copies, so that one remembered text does not keep its whole batch alive.
    return [
        TextView(vector.copy(), own.copy(), word_terms(text), letter_terms(text))
        for text, vector, own in zip(texts, vectors, middle, strict=True)
    ]


def stack(texts: Sequence[TextView], centre: NDArray[np.float32]) -> Views:
    """Of at least one text; `centre` is the middle vector of a text about anything.

    What an encoder's layers before its last know of word and phrase adds to its sentence vector
    (Tenney et al., "BERT Rediscovers the Classical NLP Pipeline", ACL 2019; Wang and Kuo,
    "SBERT-WK", 2020), at the cost of one average.
    """
    vectors = np.stack([text.vector for text in texts])
    middle = np.stack([text.middle for text in texts]) - centre
    length = np.linalg.norm(middle, axis=1, keepdims=True) if middle.size else 1.0
    middle = _MIDDLE_WEIGHT * middle / np.maximum(length, 1e-12)
    return Views(
        np.hstack([vectors, middle.astype(np.float32)]),
        vectors,
        tuple(text.words for text in texts),
        tuple(text.letters for text in texts),
    )


def join(parts: Sequence[Views]) -> Views:
    """The texts of all parts, in order."""
    return Views(
        np.vstack([part.dense for part in parts]),
        np.vstack([part.vectors for part in parts]),
        tuple(terms for part in parts for terms in part.words),
        tuple(terms for part in parts for terms in part.letters),
    )
