from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentkit.types import Vectors


class WordEncoder:
    """An encoder of bags of words: texts that share words lie close. It counts what it embeds."""

    dimension = 128

    def __init__(self) -> None:
        self.embedded: list[str] = []

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"bag of words").hexdigest()

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.embedded += texts
        rows = np.full((len(texts), self.dimension), 1e-3, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.strip(".,?!").encode()) % self.dimension] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture(scope="session")
def tasks() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(__file__).parent / "tasks.json").read_text())
    return content


@pytest.fixture(scope="session")
def skills(tasks: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    return {
        name: (skill["description"], skill["utterances"]) for name, skill in tasks["skills"].items()
    }
