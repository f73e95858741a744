"""A deterministic encoder, settings and files for the tests of retrieval."""

import hashlib
import re

import numpy as np
import pytest

from agentkit.settings import Settings


class HashingEncoder:
    """Bags of hashed words: texts that share words are near, the same on every machine."""

    def __init__(self, dimension=64, salt="a"):
        self.dimension = dimension
        self.digest = hashlib.sha256(f"{salt}{dimension}".encode()).hexdigest()
        self.calls = 0

    def encode(self, texts):
        self.calls += 1
        vectors = np.full((len(texts), self.dimension), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                at = int(hashlib.md5(word.encode()).hexdigest(), 16) % self.dimension
                vectors[row, at] += 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def make_encoder():
    return HashingEncoder


@pytest.fixture
def encoder():
    return HashingEncoder()


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


AGREEMENT = """\
SERVICES AGREEMENT

This agreement is made between Acme Ltd. and Beta Inc. on 3 May 2024.

1. Confidentiality

1.1 The Receiving Party shall keep the Confidential Information secret and shall not disclose it.
1.2 It may disclose the information to its advisers, if they are bound by secrecy.

2. Governing Law

This agreement is governed by the laws of the State of New York.

3. Term

The term of this agreement is two years; it ends on 3 May 2026. Either party may end it earlier.
"""


@pytest.fixture
def agreement():
    return AGREEMENT
