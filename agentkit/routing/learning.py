"""What people taught the controller: utterances learnt from routes that they corrected.

They are kept in one file, keyed by skill, beside the skills and never in them. Every utterance has
the moment it was learnt at, and nothing is taken away, so the controller of any earlier moment can
be fitted again: a run goes on with what it began with.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentkit.errors import InputError
from agentkit.modelfolder import write_json
from agentkit.routing.changes import Change, Probe, changes, utterance_probes
from agentkit.routing.controller import Controller, SkillText
from agentkit.types import Encoder, Json, Query

__all__ = [
    "Learnt",
    "Lesson",
    "Plan",
    "Taught",
    "contested",
    "fit",
    "load_learnt",
    "plan_learning",
    "save_learnt",
    "taught_by",
    "teach",
]

_VERSION = 1
_OUTSIDE = "outside"
_SKILLS = "skills"
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Taught:
    """An utterance that a person taught."""

    text: str
    skill: str | None
    """The skill it is for; None: no skill."""
    at: str
    """UTC, ISO 8601."""
    source: str = ""
    """The run, step and item where it came up."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """Everything taught, in the order in which it was. Of one text, what was said last counts."""

    taught: tuple[Taught, ...] = ()

    def until(self, moment: str | None) -> Learnt:
        """What was taught before `moment` (UTC, ISO 8601); all of it if None."""
        if moment is None:
            return self
        return Learnt(tuple(one for one in self.taught if one.at < moment))

    def add(self, more: Iterable[Taught]) -> Learnt:
        return Learnt((*self.taught, *more))

    @property
    def answers(self) -> Mapping[str, Taught]:
        """What counts of each text, by the text without case or spaces that do not matter."""
        return {_key(one.text): one for one in sorted(self.taught, key=lambda one: one.at)}

    @property
    def outside(self) -> tuple[str, ...]:
        """Texts that no skill is for."""
        return tuple(one.text for one in self.answers.values() if one.skill is None)

    def applied(self, skills: Mapping[str, SkillText]) -> dict[str, SkillText]:
        """The skills with what was taught: each text is an utterance of the skill it is for, and
        of no other. What was taught of skills that are not here waits for them."""
        answers = self.answers
        applied: dict[str, SkillText] = {}
        for name, (description, utterances) in skills.items():
            kept = [u for u in utterances if _key(u) not in answers]
            own = [one.text for one in answers.values() if one.skill == name]
            applied[name] = (description, (*kept, *own))
        return applied


@dataclass(frozen=True, slots=True)
class Lesson:
    """A recorded route that a person judged."""

    query: Query
    skill: str | None
    """The skill that is right for it; None: no skill is."""
    source: str
    corrected: bool = True
    """False: the person accepted the route."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What learning would do, before it is done."""

    lessons: tuple[Lesson, ...]
    """Corrections that would become utterances."""
    conflicts: tuple[str, ...]
    """Texts that were given several answers; the last counts."""
    changes: tuple[Change, ...]
    """Routes of installed utterances and of earlier texts that would be decided differently."""
    probes: int
    judged: int
    """Recorded routes that a person accepted or corrected, each text once."""
    right_before: int
    right_after: int
    """How many of the judged are decided right, before and after."""
    right_held_out: int
    """The same after learning from other lessons only: what it does for texts like them."""
    missed: tuple[Lesson, ...] = ()
    """Lessons whose own text would be decided otherwise all the same."""

    def to_json(self) -> dict[str, Json]:
        share = max(self.judged, 1)
        return {
            "learn": [
                {"text": one.query.instruction, "skill": one.skill, "source": one.source}
                for one in self.lessons
            ],
            "conflicts": list(self.conflicts),
            "missed": [one.query.instruction for one in self.missed],
            "judged": self.judged,
            "accuracy_before": self.right_before / share if self.judged else None,
            "accuracy_after": self.right_after / share if self.judged else None,
            "accuracy_held_out": self.right_held_out / share if self.judged else None,
            "probes": self.probes,
            "changes": [change.to_json() for change in self.changes],
        }


def plan_learning(
    encoder: Encoder,
    skills: Mapping[str, SkillText],
    learnt: Learnt,
    lessons: Sequence[Lesson],
    earlier: Sequence[Probe] = (),
) -> Plan:
    """What learning from the lessons, oldest first, would change in the routes of these skills.

    Lessons for skills that are not here are left for when they are.
    """
    answers: dict[str, Lesson] = {}
    conflicts: dict[str, str] = {}
    for lesson in lessons:
        if lesson.skill is not None and lesson.skill not in skills:
            continue
        key = _key(lesson.query.instruction)
        if not key:
            continue
        if key in answers and answers[key].skill != lesson.skill:
            conflicts[key] = lesson.query.instruction
        answers[key] = lesson
    now = learnt.applied(skills)
    owners: dict[str, set[str | None]] = {_key(text): {None} for text in learnt.outside}
    for name, (_, own) in now.items():
        for key in map(_key, own):
            owners.setdefault(key, set()).add(name)
    # Known is what the text is taught for alone: one that two skills name is still to be told.
    new = [one for key, one in answers.items() if one.corrected and owners.get(key) != {one.skill}]
    before, after = fit(encoder, skills, learnt), fit(encoder, skills, _with(learnt, new))
    judged = list(answers.values())
    right_before, right_after = _right(before, judged), _right(after, judged)
    probes = [*utterance_probes(skills), *earlier]
    return Plan(
        lessons=tuple(new),
        conflicts=tuple(conflicts.values()),
        changes=tuple(changes(before, after, probes)),
        probes=len(probes),
        judged=len(judged),
        right_before=sum(right_before),
        right_after=sum(right_after),
        right_held_out=(
            _held_out(encoder, skills, learnt, judged, new) if new else sum(right_before)
        ),
        missed=tuple(
            one for one, right in zip(judged, right_after, strict=True) if one in new and not right
        ),
    )


def fit(
    encoder: Encoder,
    skills: Mapping[str, SkillText],
    learnt: Learnt,
    *,
    again: Controller | None = None,
) -> Controller:
    """A controller for the skills with what was taught: a new one, or `again`, fitted anew."""
    controller = Controller(encoder) if again is None else again
    controller.fit(learnt.applied(skills), background=learnt.outside)
    return controller


def taught_by(lessons: Iterable[Lesson], at: str) -> list[Taught]:
    """The lessons as utterances learnt at that moment (UTC, ISO 8601)."""
    return [
        Taught(" ".join(one.query.instruction.split()), one.skill, at, one.source)
        for one in lessons
    ]


def load_learnt(path: Path) -> Learnt:
    """What was taught, from its file; nothing if there is none.

    Raises `InputError` if the file is not one that `save_learnt` wrote.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r}")
        rows = [(name, row) for name, own in content[_SKILLS].items() for row in own]
        rows += [(None, row) for row in content[_OUTSIDE]]
        taught = [_taught(name, row) for name, row in rows]
    except FileNotFoundError:
        return Learnt()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"the learnt utterances cannot be read: {error}",
            where=str(path),
            hint="mend the file, or move it away to route without them",
        ) from error
    return Learnt(tuple(sorted(taught, key=lambda one: one.at)))


def teach(path: Path, taught: Iterable[Taught]) -> Learnt:
    """Add to the file, one process after the other; returns all that was taught.

    Raises `InputError` as `load_learnt` does; nothing is written then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        learnt = load_learnt(path).add(taught)
        save_learnt(path, learnt)
    return learnt


def contested(
    text: str, skill: str | None, skills: Mapping[str, SkillText], learnt: Learnt
) -> bool:
    """Whether a text was taught for something else, or is another skill's utterance."""
    said = learnt.answers.get(_key(text))
    others = {_key(u) for name, (_, own) in skills.items() if name != skill for u in own}
    return (said is not None and said.skill != skill) or _key(text) in others


def save_learnt(path: Path, learnt: Learnt) -> None:
    """Write the file, whole or not at all."""
    skills: dict[str, list[Json]] = {}
    outside: list[Json] = []
    for one in learnt.taught:
        rows = outside if one.skill is None else skills.setdefault(one.skill, [])
        rows.append({"text": one.text, "at": one.at, "source": one.source})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"version": _VERSION, _SKILLS: skills, _OUTSIDE: outside})


def _taught(skill: str | None, row: Mapping[str, Any]) -> Taught:
    text, at, source = row["text"], row["at"], row["source"]
    if not (isinstance(text, str) and isinstance(at, str) and isinstance(source, str)):
        raise ValueError("text, at and source must be texts")
    return Taught(text, skill, at, source)


def _with(learnt: Learnt, lessons: Iterable[Lesson]) -> Learnt:
    latest = max((one.at for one in learnt.taught), default="")
    return learnt.add(taught_by(lessons, latest + "~"))


def _right(controller: Controller, judged: Sequence[Lesson]) -> list[bool]:
    routes = controller.route_many([one.query for one in judged])
    return [route.skill == one.skill for route, one in zip(routes, judged, strict=True)]


def _held_out(
    encoder: Encoder,
    skills: Mapping[str, SkillText],
    learnt: Learnt,
    judged: Sequence[Lesson],
    new: Sequence[Lesson],
) -> int:
    right = 0
    controller = Controller(encoder)  # one for all: what skills have in common is not done again
    for fold in range(min(_FOLDS, len(judged))):
        held = judged[fold::_FOLDS]
        texts = {_key(one.query.instruction) for one in held}
        rest = [one for one in new if _key(one.query.instruction) not in texts]
        right += sum(_right(fit(encoder, skills, _with(learnt, rest), again=controller), held))
    return right


def _key(text: str) -> str:
    return " ".join(text.casefold().split())
