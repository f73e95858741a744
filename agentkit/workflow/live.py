"""What the runs recorded so far say of each version of a skill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentkit.types import Json, RunRecord
from agentkit.workflow.store import RunStore

RUNS = 500
"""So many of the latest runs are looked at."""


@dataclass(slots=True)
class Live:
    """Stateful: sums over the recorded runs of one version; `to_json` gives their means."""

    version: str | None
    """None: the folder without a version."""
    digest: str
    runs: int = 0
    """Runs that began with it, whether or not a step came to it."""
    failed_runs: int = 0
    calls: int = 0
    """Steps and items of steps that it answered."""
    corrected: int = 0
    """Of these, those that a person gave to it or took from it."""
    tokens: int = 0
    seconds: float = 0.0
    score: float = 0.0
    scored: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    """How often each value of a field that is a single word, and how many items of each list."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one step result."""
        self.calls += 1
        usage = record["usage"]
        self.tokens += usage["prompt_tokens"] + usage["completion_tokens"]
        self.seconds += record["seconds"]
        output = record["output"]
        if not isinstance(output, Mapping):
            return
        for name, value in output.items():
            if isinstance(value, str) and value and len(value.split()) == 1:
                key = f"{name}={value}"
                self.answers[key] = self.answers.get(key, 0) + 1
            elif isinstance(value, list):
                self.answers[name] = self.answers.get(name, 0) + len(value)
        score = output.get("score")
        if isinstance(score, int | float):
            self.score += score
            self.scored += 1

    def to_json(self) -> dict[str, Json]:
        calls = self.calls or 1
        return {
            "version": self.version,
            "digest": self.digest,
            "runs": self.runs,
            "failed_runs": self.failed_runs,
            "calls": self.calls,
            "corrected": self.corrected,
            "seconds_per_call": round(self.seconds / calls, 4) if self.calls else None,
            "tokens_per_call": round(self.tokens / calls, 1) if self.calls else None,
            "mean_score": round(self.score / self.scored, 4) if self.scored else None,
            "answers_per_call": {
                name: round(count / calls, 4) for name, count in sorted(self.answers.items())
            },
        }


def live_results(
    store: RunStore,
    skill: str,
    *,
    corrected: Iterable[tuple[str, str, int | None]] = (),
    limit: int = RUNS,
) -> list[Live]:
    """What the latest runs say of each version (and digest) of a skill, the most used first.

    `corrected` holds run, step and item of the routes that people corrected.
    """
    wrong = set(corrected)
    found: dict[tuple[str | None, str], Live] = {}
    for listed in store.list(limit):
        if skill not in listed.skills:
            continue
        one = _of_run(found, listed, skill)
        one.runs += 1
        one.failed_runs += listed.status == "failed"
        for entry in store.show(listed.id).steps:
            record = entry["record"]
            if record["skill"] == skill:
                one.add(record)
                one.corrected += (listed.id, entry["step"], entry["item"]) in wrong
    return sorted(found.values(), key=lambda one: -one.runs)


def _of_run(found: dict[tuple[str | None, str], Live], run: RunRecord, skill: str) -> Live:
    key = (run.versions.get(skill), run.skills[skill])
    return found.setdefault(key, Live(*key))
