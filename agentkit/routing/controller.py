"""Query -> Route: which skill does a step, or an abstention with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from agentkit.errors import InputError
from agentkit.routing.background import BACKGROUND
from agentkit.routing.calibration import Array, Examples, Prediction, Router, fit
from agentkit.routing.features import features
from agentkit.types import Encoder, Query, Route

__all__ = ["AMBIGUITY_MARGIN", "EXCERPT_CHARACTERS", "Controller", "SkillText"]

SkillText: TypeAlias = tuple[str, Sequence[str]]
"""A skill's description and its utterances."""

AMBIGUITY_MARGIN = 0.1
"""Confidence by which the best skill must lead the second, else the route is ambiguous."""
EXCERPT_CHARACTERS = 400
EXCERPT_WEIGHT = 0.1
"""Share of the excerpt's vector beside the instruction's: enough to colour a vague instruction,
too little for a document to choose the skill. Chosen on the tuning half of the routing tests."""


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    router: Router
    texts: tuple[tuple[str, ...], ...]
    """For each skill of the router, the text of each example."""


class Controller:
    """Stateful: holds the router fitted last. Routing from several threads, also while another
    one fits, is safe: each call uses one router from beginning to end."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._state: _State | None = None
        self._vectors: dict[str, Array] = {}

    @property
    def skills(self) -> tuple[str, ...]:
        """Names of the skills that it can route to, sorted."""
        state = self._state
        return () if state is None else state.router.names

    @property
    def threshold(self) -> float | None:
        """The confidence that a route needs unless its query says otherwise; None before skills."""
        state = self._state
        return None if state is None else state.router.threshold

    def fit(self, skills: Mapping[str, SkillText]) -> None:
        """Route to exactly these skills from now on.

        Their order does not matter. Texts that were fitted before are not embedded again. A skill
        without utterances is found by its description (or else its name), with less confidence.
        """
        if not skills:
            self._state, self._vectors = None, {}
            return
        texts = {name: _example_texts(name, *skills[name]) for name in sorted(skills)}
        vectors = self._embedded([*BACKGROUND, *(t for own in texts.values() for t in own)])
        background, background_vectors = _examples(vectors, BACKGROUND)
        examples = [Examples(name, *_examples(vectors, own)) for name, own in texts.items()]
        router = fit(examples, background, background_vectors)
        self._state = _State(router, tuple(texts[name] for name in router.names))
        self._vectors = vectors

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
        """Why `route` answers as it does, as plain JSON: the route, its threshold and margin, and
        for each candidate its score and the example nearest to the instruction."""
        state = self._state
        prediction = self._predict(state, [query])[0]
        route = _decide(state, query, prediction)
        nearest: dict[str, Any] = {}
        if state is not None and prediction is not None:
            for name in route.scores:
                k = state.router.names.index(name)
                nearest[name] = {
                    "text": state.texts[k][int(prediction.nearest_row[0, k])],
                    "cosine": round(float(prediction.nearest[0, k]), 6),
                }
        return {
            "instruction": query.instruction,
            "skill": route.skill,
            "score": route.score,
            "abstained": route.abstained,
            "reason": route.reason,
            "threshold": _threshold(state, query),
            "margin": AMBIGUITY_MARGIN,
            "near": None if state is None else round(state.router.near, 6),
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
        vectors = _encode(self._encoder, [*wanted, *excerpts])
        results: list[Prediction | None] = []
        for query, text, excerpt in zip(queries, wanted, excerpts, strict=True):
            columns = _columns(state, query)
            if not text or not columns:
                results.append(None)
                continue
            own = vectors[text]
            mixed = own + EXCERPT_WEIGHT * vectors[excerpt] if excerpt else own
            mixed = mixed / max(float(np.linalg.norm(mixed)), 1e-12)
            row = features(mixed[None].astype(np.float32), [text])
            results.append(state.router.predict(row, own[None], columns))
        return results

    def _embedded(self, texts: Sequence[str]) -> dict[str, Array]:
        known = self._vectors
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        fresh = _encode(self._encoder, missing)
        return {text: known[text] if text in known else fresh[text] for text in texts}


def _encode(encoder: Encoder, texts: Iterable[str]) -> dict[str, Array]:
    unique = [text for text in dict.fromkeys(texts) if text]
    if not unique:
        return {}
    return dict(zip(unique, encoder.encode(unique).astype(np.float64), strict=True))


def _examples(vectors: Mapping[str, Array], texts: Sequence[str]) -> tuple[Array, Array]:
    rows = np.stack([vectors[text] for text in texts])
    return features(rows.astype(np.float32), texts), rows


def _example_texts(name: str, description: str, utterances: Sequence[str]) -> tuple[str, ...]:
    head = _clean(description) or name.replace("-", " ")
    own = dict.fromkeys(_clean(utterance) for utterance in sorted(utterances))
    return (head, *(text for text in own if text))


def _clean(text: str) -> str:
    return " ".join(text.split())


def _columns(state: _State, query: Query) -> list[int]:
    names = state.router.names
    return [
        k for k, name in enumerate(names) if query.candidates is None or name in query.candidates
    ]


def _threshold(state: _State | None, query: Query) -> float | None:
    if query.threshold is not None:
        return query.threshold
    return None if state is None else state.router.threshold


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
    threshold = state.router.threshold if query.threshold is None else query.threshold
    k = names.index(best)
    if second is not None and score - second[1] < AMBIGUITY_MARGIN:
        if score + second[1] >= threshold:
            reason = (
                f"ambiguous: {best} ({score:.2f}) and {second[0]} ({second[1]:.2f}) are closer "
                f"than {AMBIGUITY_MARGIN:g}"
            )
            return Route(None, score, True, reason, scores)
        return Route(None, score, True, _too_low(best, score, threshold), scores)
    if score < threshold:
        return Route(None, score, True, _too_low(best, score, threshold), scores)
    nearest = state.texts[k][int(prediction.nearest_row[0, k])]
    reason = f"{best} ({score:.2f}, at least {threshold:.2f} needed); nearest to: {nearest}"
    return Route(best, score, False, reason, scores)


def _too_low(best: str, score: float, threshold: float) -> str:
    return (
        f"no skill fits well enough: {best} comes nearest, with {score:.2f} "
        f"of the {threshold:.2f} needed"
    )


def _abstain(reason: str) -> Route:
    return Route(skill=None, score=0.0, abstained=True, reason=reason)
