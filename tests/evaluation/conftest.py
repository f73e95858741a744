"""Manifests of every way of answering, and small documents with what is right about them."""

from __future__ import annotations

from typing import Any

import pytest

from agentkit.skill.manifest import Manifest

CHOICE = {
    "kind": "choice",
    "choices": ["yes", "no", "silent"],
    "field": "verdict",
    "evidence_field": "evidence",
    "no_evidence": ["silent"],
}
MARKS = {
    "kind": "marks",
    "labels": [{"name": "duty"}, {"name": "party", "unit": "token"}],
    "fields": {
        "clauses": {"label_key": "category", "quote_key": "quote"},
        "names": {"label_key": "name", "quote_key": "value", "labels": ["party"]},
    },
}


@pytest.fixture
def choice_manifest() -> Manifest:
    return _manifest(answer=CHOICE, retrieval={"document": "document"})


@pytest.fixture
def marks_manifest() -> Manifest:
    return _manifest(answer=MARKS, retrieval={"document": "document", "mode": "windows"})


@pytest.fixture
def text_manifest() -> Manifest:
    return _manifest(
        output={
            "type": "object",
            "properties": {
                "grade": {"enum": ["good", "bad"]},
                "said": {"type": "string"},
                "pages": {"type": "array"},
            },
        }
    )


def _manifest(**parts: Any) -> Manifest:
    return Manifest.model_validate({"name": "toy", "description": "A toy."} | parts)
