"""What the retrieval benchmarks ask, and when an answer counts as found."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agentkit.retrieval.loaders import document_from_text
from agentkit.training.datasets import load_dataset
from agentkit.training.jsonl import read_jsonl
from agentkit.types import Document

LONGEST = 60_000
"""Characters of the longest contract that is searched."""
Place = tuple[int, int]


@dataclass(frozen=True)
class Question:
    name: str
    text: str
    gold: tuple[Place, ...]


@dataclass(frozen=True)
class Task:
    """A document, and the places that answer each question."""

    document: Document
    questions: tuple[Question, ...]


class Counts:
    """Gold spans found and asked for, by document, so that documents can be resampled."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = defaultdict(list)
        self.asked: list[int] = []

    def mean(self, name: str) -> float:
        return sum(self.found[name]) / max(sum(self.asked), 1)

    def interval(self, name: str, less: str | None = None) -> tuple[float, float]:
        """Of the share found, or of how far it exceeds that of another system."""
        found = np.array(self.found[name]) - (np.array(self.found[less]) if less else 0)
        asked = np.array(self.asked)
        random = np.random.default_rng(7)
        rows = random.integers(0, len(asked), (2000, len(asked)))
        low, high = np.percentile(found[rows].sum(1) / asked[rows].sum(1), (2.5, 97.5))
        return float(low), float(high)


def contract_nli(folder: Path, split: str) -> list[Task]:
    base = folder / "contract_nli"
    hypotheses = json.loads((base / "hypotheses.json").read_text("utf-8"))
    tasks = []
    for row in read_jsonl(base / f"{split}.jsonl.gz"):
        document = document_from_text(row["text"])
        if document.text != row["text"]:
            raise ValueError("offsets would differ: the text was changed when it was read")
        questions = tuple(
            Question(
                key,
                hypotheses[key]["hypothesis"],
                tuple(places(row["text"], (row["spans"][i] for i in annotation["spans"]))),
            )
            for key, annotation in row["annotations"].items()
        )
        tasks.append(Task(document, questions))
    return tasks


def cuad(folder: Path) -> list[Task]:
    tasks = []
    for record in load_dataset("cuad", folder):
        if len(record["document"]) > LONGEST:
            continue
        gold: dict[str, list[Place]] = defaultdict(list)
        for label in record["labels"]:
            gold[label["category"]].append((label["start"], label["end"]))
        document = document_from_text(record["document"])
        if document.text == record["document"]:
            asked = (
                Question(name, name, tuple(places(document.text, p))) for name, p in gold.items()
            )
            tasks.append(Task(document, tuple(asked)))
    random.Random(7).shuffle(tasks)
    return tasks


def places(text: str, spans) -> Iterator[Place]:  # noqa: ANN001
    """The spans without the white space at their ends."""
    for start, end in spans:
        piece = text[start:end]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())


def found(text: str, gold: Sequence[Place], shown: Sequence[Place]) -> int:
    """How many of the gold spans are covered in full by what is shown."""
    covered = np.zeros(len(text), dtype=bool)
    for start, end in shown:
        covered[start:end] = True
    return sum(
        all(covered[at] or text[at].isspace() for at in range(start, end)) for start, end in gold
    )
