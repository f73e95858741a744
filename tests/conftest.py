"""Tiny real models and a small document, shared by the tests of the modules above the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from agentkit.retrieval.loaders import document_from_text
from agentkit.settings import Settings
from agentkit.types import Document

# A busy machine is no failure: no test is timed against the clock.
hypothesis.settings.register_profile("agentkit", deadline=None)
hypothesis.settings.load_profile("agentkit")

AGREEMENT = """\
SERVICES AGREEMENT

This agreement is made between Acme Ltd. and Beta Inc. on 3 May 2024.

1. Secrecy

1.1 Each party shall keep the other party's information confidential.
1.2 A party may show it to its advisers.

2. Law

This agreement is governed by the laws of Norway.
"""


@pytest.fixture(scope="session")
def agreement_text() -> str:
    return AGREEMENT


@pytest.fixture(scope="session")
def agreement_document() -> Document:
    return document_from_text(AGREEMENT)


@pytest.fixture(scope="session")
def single_thread() -> None:
    """Tiny matrices take longer on several threads than on one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from agentkit.testing import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory, single_thread: None):
    """A random backbone with room for the small document and its questions."""
    from agentkit.testing import TinyBackbone

    return TinyBackbone.create(tmp_path_factory.mktemp("backbone") / "tiny", context=2048)


@pytest.fixture
def tiny_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with a home of the test's own, exact numbers and one thread."""

    def make(**values) -> Settings:
        return Settings(**{"home": tmp_path / "home", "dtype": "float32", "threads": 1} | values)

    return make
