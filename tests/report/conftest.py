from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from agentkit.types import Document, Json

TEXT = (
    "SUPPLY AGREEMENT\n\n"
    "This agreement is made on 3 May 2025 between Tarnwick Ltd and Ostrelle GmbH.\n\n"
    "1. Price\n\n"
    "The supplier may raise the price at any time. The buyer may end the agreement then.\n\n"
    "2. Law\n\n"
    "Norwegian law governs this agreement.\n"
)


def document_of(text: str, **fields: Any) -> Document:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Document(
        **{"digest": digest, "source": "supply.md", "media_type": "text/markdown", "text": text}
        | fields
    )


@pytest.fixture
def document() -> Document:
    return document_of(TEXT, warnings=("tracked changes were accepted",))


@pytest.fixture
def at() -> Callable[[str], dict[str, Json]]:
    """The quote's fields for words of the document."""

    def quote(words: str) -> dict[str, Json]:
        start = TEXT.index(words)
        return {"quote": words, "start": start, "end": start + len(words)}

    return quote


@pytest.fixture
def outputs(document: Document, at: Callable[[str], dict[str, Json]]) -> dict[str, Json]:
    route = {"skill": "rule-checker", "score": 0.8, "abstained": False}
    party = at("Tarnwick Ltd")
    return {
        "facts": [
            {"name": "seller", "value": party["quote"], "score": 0.9}
            | {"start": party["start"], "end": party["end"]}
        ],
        "clauses": [
            {"category": "Price change", "score": 0.7}
            | at("The supplier may raise the price at any time."),
            {"category": "Law", "score": 0.95} | at("Norwegian law governs this agreement."),
        ],
        "reviews": [
            {
                "rule": "The law of a country is named.",
                "severity": "should",
                "verdict": "entailed",
                "score": 0.9,
                "evidence": [at("Norwegian law")],
                "context": [
                    {
                        "chunk": f"{document.digest[:12]}:0-40",
                        "document": document.digest,
                        "start": 0,
                        "end": 40,
                        "text": TEXT[:40],
                        "score": 0.5,
                    }
                ],
                "route": {**route, "reason": "nearest", "scores": {"rule-checker": 0.8}},
            },
            {
                "rule": "Deliveries are insured.",
                "severity": "must",
                "verdict": "not_mentioned",
                "score": 0.6,
                "evidence": [],
                "context": [],
                "route": route,
            },
            {
                "rule": "Prices are fixed.",
                "severity": "must",
                "verdict": "contradicted",
                "score": 0.8,
                "evidence": [
                    at("may raise the price at any time. The buyer"),
                ],
                "context": [],
                "route": route,
            },
        ],
        "findings": [
            {
                "statement": "The law of Norway applies.",
                "rating": "neutral",
                "severity": None,
                "about": {"clause": 1},
            },
            {
                "statement": "The price can go up whenever the supplier likes.",
                "rating": "blocker",
                "severity": "must",
                "about": {"review": 2},
            },
        ],
    }


@pytest.fixture
def run() -> dict[str, Json]:
    return {
        "id": "r-1",
        "workflow": "supply-review",
        "backbone": "tiny",
        "encoder": "words",
        "skills": {"rule-checker": "ab" * 32, "clause-finder": "cd" * 32},
        "seconds": {"find": 1.5, "check": 2.25},
        "tokens": {"prompt": 900, "completion": 30, "cached": 600},
        "routes": [
            {
                "step": "find",
                "item": None,
                "skill": "clause-finder",
                "digest": "cd" * 32,
                "score": 0.9,
                "abstained": False,
                "reason": "nearest",
                "scores": {"clause-finder": 0.9, "rule-checker": 0.1},
            }
        ],
        "sources": {"clauses": ["find"]},
    }
