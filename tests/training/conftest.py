"""Toy skills that a tiny backbone learns in a second, one for each way of answering."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentkit.settings import Settings
from agentkit.testing import TinyBackbone
from agentkit.training.train import Trained, train_skill

COLOURS = ("red", "blue")
THINGS = ("gate", "wall", "roof", "door", "shed", "barn")


def _document(n: int) -> tuple[str, dict[str, str]]:
    colours = {thing: COLOURS[(n >> at) & 1] for at, thing in enumerate(THINGS[:3])}
    text = " ".join(f"The {thing} is {colour}." for thing, colour in colours.items())
    return f"{text} Deed {n}.", colours


def _place(text: str, words: str) -> dict[str, int]:
    return {"start": text.index(words), "end": text.index(words) + len(words)}


def _choice_rows() -> list[dict[str, Any]]:
    rows = []
    for n in range(8):
        text, colours = _document(n)
        for thing in ("gate", "shed"):
            expected: dict[str, Any] = {"answer": colours.get(thing, "silent"), "evidence": []}
            if thing in colours:
                expected["evidence"] = [_place(text, f"The {thing} is {colours[thing]}.")]
            rows.append({"input": {"thing": thing, "document": text}, "expected": expected})
    return rows


def _marks_rows() -> list[dict[str, Any]]:
    rows = []
    for n in range(16):
        text, colours = _document(n)
        marks = [
            {"label": colour, **_place(text, f"The {thing} is {colour}.")}
            for thing, colour in colours.items()
        ]
        marks += [{"label": "deed", **_place(text, f"Deed {n}")}]
        rows.append({"input": {"document": text}, "expected": {"marks": marks}})
    return rows


def _text_rows() -> list[dict[str, Any]]:
    return [
        {"input": {"thing": thing}, "expected": {"said": COLOURS[at % 2]}}
        for at, thing in enumerate(THINGS * 3)
    ]


def _chosen_rows() -> list[dict[str, Any]]:
    return [
        {
            "input": {"thing": thing},
            "expected": {"colour": COLOURS[at % 2], "said": COLOURS[at % 2]},
        }
        for at, thing in enumerate(THINGS * 3)
    ]


def _likelihood_rows() -> list[dict[str, Any]]:
    return [
        {"input": {"thing": thing}, "expected": {"colour": COLOURS[at % 2]}}
        for at, thing in enumerate(THINGS * 3)
    ]


DOCUMENT = {"document": {"type": "string"}}
THING = {"thing": {"type": "string"}}
KINDS: dict[str, tuple[dict[str, Any], Callable[[], list[dict[str, Any]]]]] = {
    "choice": (
        {
            "input": {"type": "object", "properties": DOCUMENT | THING, "required": ["document"]},
            "output": {"type": "object", "required": ["answer", "evidence", "score"]},
            "prompt": {"question": "Colour of the {{ thing }}?"},
            "answer": {
                "kind": "choice",
                "choices": [*COLOURS, "silent"],
                "evidence_field": "evidence",
                "no_evidence": ["silent"],
            },
            "retrieval": {"document": "document"},
        },
        _choice_rows,
    ),
    "marks": (
        {
            "input": {"type": "object", "properties": DOCUMENT, "required": ["document"]},
            "output": {"type": "object", "required": ["marks"]},
            "prompt": {"question": ""},
            "answer": {
                "kind": "marks",
                "labels": [*({"name": c} for c in COLOURS), {"name": "deed", "unit": "token"}],
                "fields": {"marks": {"label_key": "label", "quote_key": "quote"}},
            },
            "retrieval": {"document": "document", "mode": "windows"},
        },
        _marks_rows,
    ),
    "generate": (
        {
            "input": {"type": "object", "properties": THING, "required": ["thing"]},
            "output": {
                "type": "object",
                "properties": {"said": {"type": "string", "maxLength": 20}},
                "required": ["said"],
                "additionalProperties": False,
            },
            "prompt": {"question": "{{ thing }}"},
            "generation": {"max_tokens": 60},
        },
        _text_rows,
    ),
    "chosen": (
        {
            "input": {"type": "object", "properties": THING, "required": ["thing"]},
            "output": {
                "type": "object",
                "properties": {
                    "colour": {"enum": [*COLOURS]},
                    "said": {"type": "string", "maxLength": 20},
                    "score": {"type": "number"},
                },
                "required": ["colour", "said", "score"],
            },
            "prompt": {"question": "{{ thing }}"},
            "answer": {"kind": "generate", "choice_field": "colour"},
            "generation": {"max_tokens": 60},
        },
        _chosen_rows,
    ),
    "likelihood": (
        {
            "input": {"type": "object", "properties": THING, "required": ["thing"]},
            "output": {"type": "object", "required": ["colour", "score"]},
            "prompt": {"question": "{{ thing }}"},
            "answer": {
                "kind": "choice",
                "choices": [*COLOURS],
                "field": "colour",
                "scoring": "likelihood",
            },
        },
        _likelihood_rows,
    ),
}
_CHOSEN, _ROWS = KINDS["chosen"]
KINDS["probed"] = (
    _CHOSEN | {"answer": {"kind": "generate", "choice_field": "colour", "choice_by": "probe"}},
    _ROWS,
)
TRAIN = {
    "layers": "2-3",
    "rank": 4,
    "alpha": 8,
    "learning_rate": 0.01,
    "head_learning_rate": 0.01,
    "packs_per_step": 2,
    "pack_tokens": 256,
    "dtype": "float32",
}


@dataclass(frozen=True)
class Toy:
    """A skill folder that can be trained, and with what."""

    kind: str
    folder: Path
    settings: Settings
    rows: list[dict[str, Any]]

    def train(self) -> tuple[Trained, str]:
        """The training's results and what it printed."""
        said = StringIO()
        trained = train_skill(
            self.folder,
            settings=self.settings,
            data_dir=self.folder,
            console=Console(file=said, width=200),
        )
        return trained, said.getvalue()


@pytest.fixture(scope="session")
def make_toy(tiny_backbone: TinyBackbone) -> Callable[..., Toy]:
    def make(kind: str, at: Path, *, steps: int = 40, **train: Any) -> Toy:
        manifest, make_rows = KINDS[kind]
        rows = make_rows()
        folder = at / "toy-skill"
        folder.mkdir(parents=True)
        (folder / "SKILL.md").write_text(
            "---\nname: toy-skill\ndescription: Knows colours.\n---\nAnswer.\n"
        )
        (folder / "skill.yaml").write_text(json.dumps(manifest))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = TRAIN | {"epochs": _epochs(kind, steps), "data": [{"path": "rows.jsonl"}]} | train
        (folder / "train.yaml").write_text(json.dumps(spec))
        settings = Settings(
            home=at / "home", backbone=str(tiny_backbone.path), dtype="float32", threads=1
        )
        return Toy(kind, folder, settings, rows)

    return make


def _epochs(kind: str, steps: int) -> float:
    """Roughly so many steps; packs of texts hold several rows."""
    packs = {"choice": 8, "marks": 16, "generate": 3, "chosen": 3, "probed": 3, "likelihood": 2}[
        kind
    ]
    return steps / -(-packs // 2)
