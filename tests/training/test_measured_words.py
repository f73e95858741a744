"""Words that a benchmark asks in are nobody's training words."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "benchmarks" / "new_words.jsonl"
TRAINED = sorted((ROOT / "skills" / "compliance-review" / "training").rglob("*.jsonl"))


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def test_new_words_are_near_to_none_that_were_trained_on() -> None:
    trained = [words(row["text"]) for path in TRAINED for row in rows(path) if "text" in row]
    assert len(trained) > 500
    for row in rows(MEASURED):
        asked = words(row["text"])
        nearest = max(len(asked & other) / len(asked | other) for other in trained)
        assert nearest < 0.5, row["text"]


def test_every_hypothesis_is_asked_stated_and_negated() -> None:
    asked = Counter((row["hypothesis"], row["negated"]) for row in rows(MEASURED))
    assert set(asked.values()) == {1}
    assert len(asked) == 2 * len({hypothesis for hypothesis, _ in asked}) == 34
