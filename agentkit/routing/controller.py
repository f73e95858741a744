"""Query -> Route: which skill does a step, or an abstention with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentkit.errors import InputError
from agentkit.routing.background import BACKGROUND
from agentkit.routing.router import Examples, Prediction, Router, fit
from agentkit.routing.thresholds import AMBIGUITY_MARGIN, needed_lead
from agentkit.routing.views import TextView, stack, views_of
from agentkit.types import Encoder, Query, Route

__all__ = ["EXCERPT_CHARACTERS", "Controller", "SkillText"]

SkillText: TypeAlias = tuple[str, Sequence[str]]
"""A skill's description and its utterances."""

EXCERPT_CHARACTERS = 400
EXCERPT_WEIGHT = 0.1
"""Share of the excerpt's vector beside the instruction's: enough to colour a vague instruction,
too little for a document to choose the skill. Chosen on the tuning half of the routing tests."""


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    router: Router
    centre: NDArray[np.float32]
    """The mean middle vector of requests of all sorts."""
    texts: tuple[tuple[str, ...], ...]
    """For each skill of the router, the text of each example."""


class Controller:
    """Stateful: holds the router fitted last. Routing from several threads, also while another
    one fits, is safe: each call uses one router from beginning to end."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._state: _State | None = None
        self._texts: dict[str, TextView] = {}
        self._examples: dict[tuple[str, ...], Examples] = {}

    @property
    def skills(self) -> tuple[str, ...]:
        """Names of the skills that it can route to, sorted."""
        state = self._state
        return () if state is None else state.router.names

    @property
    def threshold(self) -> float | None:
        """The confidence that a route needs unless its query says otherwise, over all skills; None
        before skills."""
        state = self._state
        return None if state is None else state.router.threshold

    @property
    def thresholds(self) -> Mapping[str, float]:
        """The same for each skill, which is what a route is held against."""
        state = self._state
        if state is None:
            return {}
        values = [round(float(value), 4) for value in state.router.thresholds]
        return dict(zip(state.router.names, values, strict=True))

    def fit(self, skills: Mapping[str, SkillText], *, background: Sequence[str] = ()) -> None:
        """Route to exactly these skills from now on.

        Their order does not matter. Texts that were fitted before are not embedded again. A skill
        without utterances is found by its description (or else its name), with less confidence.
        `background` are requests known to be for none of the skills; they help to tell what to
        abstain on, beside the requests of all sorts that the controller brings itself.
        """
        if not skills:
            self._state, self._texts, self._examples = None, {}, {}
            return
        texts = {name: _example_texts(name, *skills[name]) for name in sorted(skills)}
        certain = tuple(text for text in dict.fromkeys(map(_clean, sorted(background))) if text)
        others = (*certain, *(text for text in BACKGROUND if text not in set(certain)))
        known = self._embedded([*others, *BACKGROUND, *(t for own in texts.values() for t in own)])
        centre = np.stack([known[text].middle for text in BACKGROUND]).mean(axis=0)
        examples = {
            (name, *own): self._examples.get((name, *own))
            or Examples.of(name, stack([known[text] for text in own], centre))
            for name, own in texts.items()
        }
        router = fit(
            list(examples.values()),
            stack([known[text] for text in others], centre),
            certain=len(certain),
            before=None if self._state is None else self._state.router,
        )
        self._state = _State(router, centre, tuple(texts[name] for name in router.names))
        self._texts, self._examples = known, examples

    def route(self, query: Query) -> Route:
        """The route of one query. Raises InputError if its threshold is not within [0, 1]."""
        return self.route_many([query])[0]

    def route_many(self, queries: Sequence[Query]) -> list[Route]:
        """A route for each query, in order; their texts are embedded together."""
        state = self._state
        found = self._predict(state, queries)
        return [
            _decide(state, query, prediction)
            for query, prediction in zip(queries, found, strict=True)
        ]

    def explain(self, query: Query) -> dict[str, Any]:
        """Why `route` answers as it does, as plain JSON: the route, the best candidate's threshold,
        the lead over the second that it needs (`margin`), the confidence that any candidate is for
        it (`belongs`), and for each candidate its score and the example nearest to the
        instruction."""
        state = self._state
        prediction = self._predict(state, [query])[0]
        route = _decide(state, query, prediction)
        nearest: dict[str, Any] = {}
        if state is not None and prediction is not None:
            own = stack(views_of(self._encoder, [_clean(query.instruction)]), state.centre)
            for name in route.scores:
                k = state.router.names.index(name)
                cosine, row = state.router.nearest(own, k)
                nearest[name] = {
                    "text": state.texts[k][int(row[0])],
                    "cosine": round(float(cosine[0]), 6),
                }
        return {
            "instruction": query.instruction,
            "skill": route.skill,
            "score": route.score,
            "abstained": route.abstained,
            "reason": route.reason,
            "threshold": _threshold(state, query, next(iter(route.scores), None)),
            "margin": round(needed_lead(*[*route.scores.values(), 0.0, 0.0][:2]), 6),
            "belongs": None if prediction is None else round(float(prediction.belongs[0]), 6),
            "scores": dict(route.scores),
            "nearest": nearest,
        }

    def _predict(self, state: _State | None, queries: Sequence[Query]) -> list[Prediction | None]:
        for query in queries:
            if query.threshold is not None and not 0.0 <= query.threshold <= 1.0:
                raise InputError(
                    f"a threshold lies within 0 and 1, not {query.threshold}", where="query"
                )
        wanted = [_clean(query.instruction) for query in queries]
        excerpts = [_clean(query.excerpt[: 2 * EXCERPT_CHARACTERS]) for query in queries]
        excerpts = [excerpt[:EXCERPT_CHARACTERS] for excerpt in excerpts]
        if state is None or not any(wanted):
            return [None] * len(queries)
        texts = [text for text in dict.fromkeys([*wanted, *excerpts]) if text]
        views = dict(zip(texts, views_of(self._encoder, texts), strict=True))
        results: list[Prediction | None] = [None] * len(queries)
        together: dict[tuple[int, ...], list[int]] = {}
        for place, query in enumerate(queries):
            columns = tuple(_columns(state, query))
            if wanted[place] and columns:
                together.setdefault(columns, []).append(place)
        for columns, places in together.items():
            asked = [_mixed(views[wanted[k]], views.get(excerpts[k])) for k in places]
            found = state.router.predict(stack(asked, state.centre), columns)
            for row, place in enumerate(places):
                one = slice(row, row + 1)
                results[place] = Prediction(found.scores[one], found.belongs[one])
        return results

    def _embedded(self, texts: Sequence[str]) -> dict[str, TextView]:
        known = self._texts
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        fresh = dict(zip(missing, views_of(self._encoder, missing, keep=True), strict=True))
        return {text: known[text] if text in known else fresh[text] for text in texts}


def _mixed(text: TextView, excerpt: TextView | None) -> TextView:
    if excerpt is None:
        return text
    vector = text.vector + EXCERPT_WEIGHT * excerpt.vector
    length = max(float(np.linalg.norm(vector)), 1e-12)
    return replace(text, vector=(vector / length).astype(np.float32))


def _example_texts(name: str, description: str, utterances: Sequence[str]) -> tuple[str, ...]:
    head = _clean(description) or _clean(name.replace("-", " ").replace("_", " "))
    own = dict.fromkeys(_clean(utterance) for utterance in sorted(utterances))
    return (head, *(text for text in own if text))


def _clean(text: str) -> str:
    return " ".join(text.split())


def _columns(state: _State, query: Query) -> list[int]:
    names = state.router.names
    return [
        k for k, name in enumerate(names) if query.candidates is None or name in query.candidates
    ]


def _threshold(state: _State | None, query: Query, skill: str | None) -> float | None:
    if query.threshold is not None:
        return query.threshold
    if state is None:
        return None
    if skill is None:
        return state.router.threshold
    return round(float(state.router.thresholds[state.router.names.index(skill)]), 4)


def _decide(state: _State | None, query: Query, prediction: Prediction | None) -> Route:
    if state is None:
        return _abstain("no skill is installed")
    if prediction is None:
        if _clean(query.instruction):
            return _abstain("none of the candidates is installed")
        return _abstain("the step has no instruction to route by")
    columns = _columns(state, query)
    names = state.router.names
    # Rounded, so that the last bits of a batched embedding never show, nor decide.
    scored = {names[k]: round(float(prediction.scores[0, k]), 6) for k in columns}
    ranked = sorted(scored.items(), key=lambda item: (-item[1], item[0]))
    scores = dict(ranked)
    (best, score), second = ranked[0], ranked[1] if len(ranked) > 1 else None
    threshold = _threshold(state, query, best) or 0.0
    if second is not None and score - second[1] < needed_lead(score, second[1]):
        if score + second[1] >= threshold:
            reason = (
                f"ambiguous: {best} ({score:.2f}) and {second[0]} ({second[1]:.2f}) are closer "
                f"than {AMBIGUITY_MARGIN:.0%} of both"
            )
            return Route(None, score, True, reason, scores)
        return Route(None, score, True, _too_low(best, score, threshold), scores)
    if score < threshold:
        return Route(None, score, True, _too_low(best, score, threshold), scores)
    reason = f"{best} ({score:.2f}, at least {threshold:.2f} needed)"
    return Route(best, score, False, reason, scores)


def _too_low(best: str, score: float, threshold: float) -> str:
    return (
        f"no skill fits well enough: {best} comes nearest, with {score:.2f} "
        f"of the {threshold:.2f} needed"
    )


def _abstain(reason: str) -> Route:
    return Route(skill=None, score=0.0, abstained=True, reason=reason)
