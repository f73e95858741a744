"""What another fit of the controller would decide differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentkit.routing.controller import Controller, SkillText
from agentkit.types import Json, Query, Route

__all__ = ["Change", "Probe", "changes", "utterance_probes"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A query to route before and after."""

    query: Query
    source: str
    """Where it comes from: a recorded step, or the skill whose utterance it is."""
    utterance_of: str | None = None
    """The skill that names it among its utterances, if one does."""


@dataclass(frozen=True, slots=True)
class Change:
    """A query that would be decided for another skill, or for none, or no longer for none."""

    probe: Probe
    before: Route
    after: Route

    @property
    def lost(self) -> bool:
        """A skill had it and has it no longer; where an utterance is concerned, its own skill."""
        if self.probe.utterance_of is not None:
            return self.before.skill == self.probe.utterance_of
        return self.before.skill is not None

    def to_json(self) -> dict[str, Json]:
        return {
            "text": self.probe.query.instruction,
            "source": self.probe.source,
            "before": self.before.skill,
            "after": self.after.skill,
            "lost": self.lost,
            "reason": self.after.reason,
        }


def utterance_probes(skills: Mapping[str, SkillText]) -> list[Probe]:
    """Every utterance of every skill."""
    return [
        Probe(Query(text), f"utterance of {name}", name)
        for name, (_, utterances) in sorted(skills.items())
        for text in utterances
    ]


def changes(
    before: Controller,
    after: Controller,
    probes: Sequence[Probe],
    *,
    after_queries: Iterable[Query] | None = None,
) -> list[Change]:
    """The probes whose decision differs; `after_queries` are asked of `after` in their place."""
    asked = [probe.query for probe in probes]
    then = asked if after_queries is None else list(after_queries)
    return [
        Change(probe, old, new)
        for probe, old, new in zip(
            probes, before.route_many(asked), after.route_many(then), strict=True
        )
        if old.skill != new.skill
    ]
