"""What the router sees of a text: its sentence vector, and the words it is asked in."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEXICAL_DIMENSION = 1024
LEXICAL_WEIGHT = 0.7
"""Length of the lexical part beside a sentence vector of length one."""
_WORD = re.compile(r"\w+")
_MAX_WORDS = 64


def features(vectors: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float64]:
    """`(n, dimension + 1024)`: the vectors, then the lexical part of each text.

    Sentence vectors are led by the subject matter (`liability`), while what tells skills of one
    field apart is the way of asking (`find`, `does it`, `explain`), which words show.
    """
    words = np.array([lexical(text) for text in texts]).reshape(len(texts), LEXICAL_DIMENSION)
    return np.hstack([vectors.astype(np.float64), LEXICAL_WEIGHT * words])


def lexical(text: str) -> NDArray[np.float64]:
    """`(1024,)`, of unit length or zero: hashed words and pairs of the text's beginning, and its
    first words once more, each by the square root of its count."""
    words = _WORD.findall(text[:2000].casefold())[:_MAX_WORDS]
    terms = [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]
    if words:
        terms += [f"^{words[0]}", f"^{' '.join(words[:2])}"]
    counts = np.zeros(LEXICAL_DIMENSION)
    for term in terms:
        counts[zlib.crc32(term.encode("utf-8", "surrogatepass")) % LEXICAL_DIMENSION] += 1
    roots = np.sqrt(counts)
    length = float(np.linalg.norm(roots))
    return roots / length if length else roots
