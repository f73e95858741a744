"""Which installed skills a new one competes with, by how much, and what would change.

Competition is measured on held-out utterances: each of the two skills' utterances is routed by a
controller that was fitted without it, so what counts is how requests like it will be decided, not
that two texts are about the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agentkit.routing.changes import Change, Probe, changes, utterance_probes
from agentkit.routing.controller import Controller, SkillText
from agentkit.routing.thresholds import needed_lead
from agentkit.types import Encoder, Json, Query, Route, Vectors

__all__ = ["COLLIDES", "Clash", "Collisions", "Competitor", "find_collisions"]

COLLIDES = 0.2
"""Share of two skills' requests that may go to the wrong one of them, or to neither for being
claimed by both, before the two collide."""
SAME_REQUEST = 0.9
"""Cosine from which two utterances are one request in other words, whatever small thing a fitted
controller may tell them apart by."""
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Clash:
    """A request of one skill that the other would take, or that both claim, or that is the same
    request as one of the other's."""

    text: str
    """An utterance (or the description, of a skill that has none) of `skill`."""
    skill: str
    rival: str
    score: float
    """`skill`'s own score for it, held out."""
    rival_score: float
    nearest: str
    """The rival's utterance that is nearest to it."""
    cosine: float


@dataclass(frozen=True, slots=True)
class Competitor:
    """An installed skill that requests are shared with."""

    name: str
    competition: float
    """Mean of the two skills' shares of requests that clash with the other, in [0, 1]."""
    clashes: tuple[Clash, ...]
    """Closest call last."""
    duplicates: tuple[str, ...] = ()
    """Texts that both name as utterances."""

    @property
    def collides(self) -> bool:
        """Whether they compete too much. One clash alone may be chance where utterances are few."""
        return bool(self.duplicates) or (self.competition >= COLLIDES and len(self.clashes) > 1)


@dataclass(frozen=True, slots=True)
class Collisions:
    """What adding a skill means for those that are there."""

    skill: str
    competitors: tuple[Competitor, ...]
    """Those with a clash, the strongest first."""
    changes: tuple[Change, ...]
    """Installed utterances and earlier routes that would be decided differently."""
    probes: int
    """How many were tried."""

    @property
    def lost(self) -> tuple[Change, ...]:
        """The changes that take something away from a skill that had it."""
        return tuple(change for change in self.changes if change.lost)

    @property
    def collides(self) -> bool:
        """Whether a strict check fails."""
        return bool(self.lost) or any(one.collides for one in self.competitors)

    def to_json(self) -> dict[str, Json]:
        return {
            "skill": self.skill,
            "collides": self.collides,
            "competitors": [
                {
                    "skill": one.name,
                    "competition": round(one.competition, 4),
                    "collides": one.collides,
                    "duplicates": list(one.duplicates),
                    "clashes": [
                        {
                            "text": clash.text,
                            "of": clash.skill,
                            "rival": clash.rival,
                            "score": clash.score,
                            "rival_score": clash.rival_score,
                            "nearest": clash.nearest,
                            "cosine": clash.cosine,
                        }
                        for clash in one.clashes
                    ],
                }
                for one in self.competitors
            ],
            "probes": self.probes,
            "changes": [change.to_json() for change in self.changes],
        }


def find_collisions(
    encoder: Encoder,
    installed: Mapping[str, SkillText],
    name: str,
    text: SkillText,
    earlier: Sequence[Probe] = (),
    background: Sequence[str] = (),
) -> Collisions:
    """What adding the skill `name` to the installed ones would mean.

    An installed skill of that name is taken as the version that it replaces. `earlier` are routes
    of the past; each is tried with the new skill as a further candidate, since whether it takes
    that step's input is not known any more. `background` are texts that were taught as no skill's.
    """
    others = {other: own for other, own in installed.items() if other != name}
    together = {**others, name: text}
    before, after = Controller(encoder), Controller(encoder)
    before.fit(installed, background=background)
    after.fit(together, background=background)
    probes = [*utterance_probes(others), *earlier]
    widened = [_with_candidate(probe.query, name) for probe in probes]
    changed = changes(before, after, probes, after_queries=widened) if others else []
    return Collisions(
        name,
        tuple(_competitors(encoder, together, name, after.threshold or 0.0, background))
        if others
        else (),
        tuple(sorted(changed, key=lambda change: not change.lost)),
        len(probes),
    )


def _with_candidate(query: Query, name: str) -> Query:
    if query.candidates is None or name in query.candidates:
        return query
    return replace(query, candidates=(*query.candidates, name))


def _competitors(
    encoder: Encoder,
    skills: Mapping[str, SkillText],
    name: str,
    threshold: float,
    background: Sequence[str],
) -> list[Competitor]:
    requests = {other: _requests(other, own) for other, own in skills.items()}
    routes = _held_out(encoder, skills, requests, background)
    vectors = {other: encoder.encode(own) for other, own in requests.items()}
    own_texts = _keys(skills[name])
    competitors: list[Competitor] = []
    for other in sorted(set(skills) - {name}):
        clashes: list[Clash] = []
        shares: list[float] = []
        for skill, rival in ((name, other), (other, name)):
            nearest = _nearest(vectors[skill], vectors[rival], requests[rival])
            found = [
                clash
                for text, near in zip(requests[skill], nearest, strict=True)
                if (clash := _clash(text, skill, rival, routes[skill, text], near, threshold))
            ]
            shares.append(len(found) / len(requests[skill]))
            clashes += found
        duplicates = tuple(sorted(t for k, t in _keys(skills[other]).items() if k in own_texts))
        if clashes or duplicates:
            clashes.sort(key=lambda clash: (clash.score - clash.rival_score, clash.text))
            competitors.append(Competitor(other, sum(shares) / 2, tuple(clashes), duplicates))
    return sorted(competitors, key=lambda one: (-one.competition, one.name))


def _nearest(own: Vectors, rival: Vectors, texts: Sequence[str]) -> list[tuple[str, float]]:
    """For each of a skill's requests, the rival's nearest one, and the cosine."""
    cosines = own @ rival.T
    best = cosines.argmax(axis=1)
    return [(texts[k], round(float(row[k]), 6)) for k, row in zip(best, cosines, strict=True)]


def _clash(
    text: str, skill: str, rival: str, route: Route, near: tuple[str, float], threshold: float
) -> Clash | None:
    """The clash over a held-out request, if the rival would be chosen for it or comes too close to
    being so, or if it is the same request as one of the rival's."""
    score, other = route.scores[skill], route.scores[rival]
    close = score - other < needed_lead(score, other)
    claimed = close and score + other >= threshold and other >= threshold / 2
    if not claimed and near[1] < SAME_REQUEST:
        return None
    return Clash(text, skill, rival, score, other, *near)


def _held_out(
    encoder: Encoder,
    skills: Mapping[str, SkillText],
    requests: Mapping[str, Sequence[str]],
    background: Sequence[str],
) -> dict[tuple[str, str], Route]:
    """The route of each skill's requests by a controller that was fitted without them."""
    routes: dict[tuple[str, str], Route] = {}
    controller = Controller(encoder)  # one for all: what texts have in common is not done again
    for fold in range(_FOLDS):
        held = {other: own[fold::_FOLDS] for other, own in requests.items()}
        controller.fit(
            {
                other: (text, [u for u in utterances if u not in held[other]])
                for other, (text, utterances) in skills.items()
            },
            background=background,
        )
        asked = [(other, request) for other, own in held.items() for request in own]
        found = controller.route_many([Query(request) for _, request in asked])
        routes.update(zip(asked, found, strict=True))
    return routes


def _requests(name: str, skill: SkillText) -> list[str]:
    """What stands for the requests that a skill is for; it has one at least."""
    description, utterances = skill
    found = [text for text in dict.fromkeys(utterances) if text.strip()]
    return found or [description if description.strip() else name.replace("-", " ")]


def _keys(skill: SkillText) -> dict[str, str]:
    """A skill's utterances by what makes two the same: words, not case nor spaces."""
    return {" ".join(text.casefold().split()): text for text in skill[1]}
