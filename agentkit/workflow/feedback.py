"""What people say of recorded routes: accepted, or another skill was right.

The routes are in the step results of the run database; what is said of them is a table of its own
in the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from agentkit.errors import CheckpointError, InputError
from agentkit.routing.changes import Probe
from agentkit.routing.learning import Lesson
from agentkit.types import Query
from agentkit.workflow.database import Table
from agentkit.workflow.steps import CHOSEN_BY_A_PERSON
from agentkit.workflow.store import RunStore

__all__ = ["Feedback", "RecordedRoute", "lessons_of", "probes_of"]

_Said: TypeAlias = tuple[Literal["accepted", "corrected"], str | None, str]
"""Outcome, the right skill, and when it was said."""

_WHOLE_STEP = -1


@dataclass(frozen=True, slots=True)
class RecordedRoute:
    """A route that a run took, with what a person said of it."""

    run: str
    step: str
    item: int | None
    query: Query
    skill: str | None
    """What the controller decided; None: it abstained."""
    score: float
    finished: str
    outcome: Literal["accepted", "corrected"] | None = None
    right: str | None = None
    """The skill that is right, where there is an outcome; None: no skill is."""
    said: str = ""
    """When there was an outcome: UTC, ISO 8601."""

    @property
    def place(self) -> str:
        item = "" if self.item is None else f" item {self.item}"
        return f"run {self.run} step {self.step}{item}"

    @property
    def probe(self) -> Probe:
        return Probe(self.query, self.place)

    @property
    def lesson(self) -> Lesson | None:
        """What can be learnt from it, where a person said something."""
        if self.outcome is None:
            return None
        return Lesson(self.query, self.right, self.place, corrected=self.outcome == "corrected")


def lessons_of(routes: Iterable[RecordedRoute]) -> list[Lesson]:
    """What people said of the routes, in the order in which they said it."""
    ordered = sorted(routes, key=lambda route: route.said)
    return [lesson for route in ordered if (lesson := route.lesson) is not None]


def probes_of(routes: Iterable[RecordedRoute]) -> list[Probe]:
    """The routes as probes, each query once, named by its last place."""
    return list({route.query: route.probe for route in routes}.values())


class Feedback(Table):
    """Stateful: what was said of routes, in the database of a run store. Safe for threads.

    A person who chose the skill of a step that waited has corrected its route by that; saying so
    again is not needed.
    """

    schema = """
        CREATE TABLE IF NOT EXISTS route_outcomes (
            run TEXT NOT NULL,
            step TEXT NOT NULL,
            item INTEGER NOT NULL,
            outcome TEXT NOT NULL CHECK (outcome IN ('accepted', 'corrected')),
            skill TEXT,
            said TEXT NOT NULL,
            PRIMARY KEY (run, step, item)
        )
    """

    def __init__(self, store: RunStore) -> None:
        super().__init__(store.path)
        self._store = store

    def accept(self, run: str, step: str, item: int | None = None) -> RecordedRoute:
        """Say that a recorded route was right. Raises `InputError` if there is no such route."""
        return self._say(run, step, item, "accepted", None)

    def correct(
        self, run: str, step: str, skill: str | None, item: int | None = None
    ) -> RecordedRoute:
        """Say which skill would have been right (None: no skill). What was said before of the same
        route is replaced; naming what the controller decided accepts it.

        Raises `InputError` if there is no such route.
        """
        return self._say(run, step, item, "corrected", skill)

    def routes(self, runs: int = 500, *, judged: bool = False) -> list[RecordedRoute]:
        """The routes of the latest `runs` runs with what was said of them, oldest first.

        With `judged`, those that something was said of come from all runs.
        """
        said = self._said()
        latest = [record.id for record in self._store.list(runs)]
        found = [route for run in latest for route in self._routes_of(run, said)]
        if judged:
            for run in sorted({run for run, _, _ in said} - set(latest)):
                with suppress(InputError):  # the run was taken away
                    found += [route for route in self._routes_of(run, said) if route.outcome]
        return sorted(found, key=lambda route: (route.finished, route.place))

    # ------------------------------------------------------------ inside

    def _say(
        self, run: str, step: str, item: int | None, outcome: str, skill: str | None
    ) -> RecordedRoute:
        route = self._find(run, step, item)
        if outcome == "corrected" and skill == route.skill:
            outcome = "accepted"
        right = route.skill if outcome == "accepted" else skill
        place = _WHOLE_STEP if route.item is None else route.item
        with self.open() as connection:
            connection.execute(
                "INSERT INTO route_outcomes (run, step, item, outcome, skill, said)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run, step, item) DO UPDATE SET"
                " outcome = excluded.outcome, skill = excluded.skill, said = excluded.said",
                (run, step, place, outcome, right, _moment()),
            )
        return self._find(run, step, route.item)

    def _find(self, run: str, step: str, item: int | None) -> RecordedRoute:
        routes = self._routes_of(run, self._said())
        own = [route for route in routes if route.step == step]
        if not own:
            steps = ", ".join(dict.fromkeys(route.step for route in routes))
            raise InputError(
                f"run {run!r} has no recorded route of a step {step!r}",
                hint=f"routed steps: {steps or 'none'}",
            )
        if item is None and len(own) > 1:
            raise InputError(
                f"step {step!r} has {len(own)} items", hint="say which with --item, from 0"
            )
        found = [route for route in own if item is None or route.item == item]
        if not found:
            items = ", ".join(str(route.item) for route in own if route.item is not None)
            raise InputError(
                f"step {step!r} has no routed item {item}", hint=f"routed items: {items or 'none'}"
            )
        return found[0]

    def _routes_of(
        self, run: str, said: Mapping[tuple[str, str, int], _Said]
    ) -> list[RecordedRoute]:
        found: list[RecordedRoute] = []
        for entry in self._store.show(run).steps:
            item = entry["item"]
            place = (run, entry["step"], _WHOLE_STEP if item is None else item)
            route = _route(run, entry, said.get(place))
            if route is not None:
                found.append(route)
        return found

    def _said(self) -> dict[tuple[str, str, int], _Said]:
        with self.open() as connection:
            rows = connection.execute(
                "SELECT run, step, item, outcome, skill, said FROM route_outcomes"
            ).fetchall()
        return {(run, step, item): tuple(outcome) for run, step, item, *outcome in rows}


def _moment() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _route(run: str, entry: Mapping[str, Any], said: _Said | None) -> RecordedRoute | None:
    """The route of a step result; None where the step named its skill."""
    record: Mapping[str, Any] = entry["record"]
    query, route = record.get("query"), record.get("route")
    if query is None or route is None:
        return None
    try:
        return _read(run, entry, query, route, said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the route of step {entry['step']!r} cannot be read: {error!r}",
            where=f"run {run}",
            hint="the database was changed by another program; take the run out of it",
        ) from error


def _read(
    run: str,
    entry: Mapping[str, Any],
    query: Mapping[str, Any],
    route: Mapping[str, Any],
    said: _Said | None,
) -> RecordedRoute:
    record: Mapping[str, Any] = entry["record"]
    decided: str | None = route["skill"]
    outcome: Literal["accepted", "corrected"] | None = None
    right: str | None = None
    moment = ""
    if route["reason"] == CHOSEN_BY_A_PERSON:
        decided, outcome, right, moment = None, "corrected", record["skill"], entry["finished"]
    if said is not None:
        outcome, right, moment = said[0], said[1], said[2]
    candidates = query["candidates"]
    return RecordedRoute(
        run=run,
        step=entry["step"],
        item=entry["item"],
        query=Query(
            query["instruction"],
            query["excerpt"],
            None if candidates is None else tuple(candidates),
            query["threshold"],
        ),
        skill=decided,
        score=float(route["score"]),
        finished=entry["finished"],
        outcome=outcome,
        right=right,
        said=moment,
    )
