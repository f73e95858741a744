"""`report.json` as frozen models: what a run said of one document, and who said it.

All offsets count Unicode code points of `document.txt`, half open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from agentkit.types import Json

Verdict: TypeAlias = Literal["entailed", "contradicted", "not_mentioned"]
Severity: TypeAlias = Literal["must", "should", "may"]
Rating: TypeAlias = Literal["good", "neutral", "bad", "blocker"]
Part: TypeAlias = Literal["facts", "clauses", "reviews", "findings", "tasks"]
Score: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Offset: TypeAlias = Annotated[int, Field(ge=0)]
Count: TypeAlias = Annotated[int, Field(ge=0)]

_DIGEST = re.compile("[0-9a-f]{64}")
PARTS: tuple[Part, ...] = ("facts", "clauses", "reviews", "findings", "tasks")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Item(_Frozen):
    """Comes out of a workflow, where it may carry more than the report takes."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DocumentInfo(_Frozen):
    source: str
    digest: str
    """SHA-256 of the text, hex."""
    characters: Count


class Fact(_Item):
    name: str
    value: str
    """Verbatim: the document's text at these offsets."""
    start: Offset
    end: Offset
    score: Score


class Clause(_Item):
    category: str
    quote: str
    start: Offset
    end: Offset
    score: Score


class Quote(_Item):
    quote: str
    start: Offset
    end: Offset


class Context(_Item):
    """A chunk that a review was shown; it may belong to a standing index."""

    chunk: str
    start: Offset
    end: Offset
    score: Score
    source: str | None = None
    """File that the chunk was cut from; in `report.json` where it is not the reviewed document."""


class RouteInfo(_Item):
    skill: str | None
    score: Score
    abstained: bool


def is_of_another(value: Json) -> bool:
    """Whether a quote says of which document it is: then it is not of the one that was read."""
    document = value.get("document") if isinstance(value, Mapping) else None
    return isinstance(document, str) and _DIGEST.fullmatch(document) is not None


class Review(_Item):
    rule: str
    verdict: Verdict
    score: Score
    evidence: tuple[Quote, ...] = ()
    context: tuple[Context, ...] = ()
    route: RouteInfo
    severity: Severity | None = Field(default=None, exclude=True)
    """The playbook's word for it. Orders the readable reports, and is no field of report.json,
    where a finding carries it."""

    @field_validator("evidence", mode="before")
    @classmethod
    def _of_the_document(cls, given: Any) -> Any:
        """Words of a standing index are no evidence in the document that was read."""
        if isinstance(given, list | tuple):
            return [one for one in given if not is_of_another(one)]
        return given


class About(_Frozen):
    """Which clause or review a finding speaks of: exactly one index is set."""

    clause: int | None = Field(default=None, ge=0)
    review: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> About:
        if (self.clause is None) == (self.review is None):
            raise ValueError('give exactly one: {"clause": index} or {"review": index}')
        return self


class Finding(_Item):
    statement: str
    rating: Rating
    severity: Severity | None = None
    about: About


class TaskResult(_Item):
    """One task of a free list, and what came of it."""

    task: str
    route: RouteInfo
    output: JsonValue = None


class Tokens(_Item):
    prompt: Count = 0
    completion: Count = 0
    cached: Count = 0


class Run(_Item):
    id: str
    workflow: str
    backbone: str
    encoder: str = ""
    """Digest of what routed and searched."""
    skills: dict[str, str] = Field(default_factory=dict)
    """Name to digest, as they were when the run began."""
    seconds: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """Per step."""
    tokens: Tokens = Tokens()


class StepRoute(_Item):
    """How the controller decided for one call of a step."""

    step: str
    item: int | None = None
    """The index in the step's `for_each`."""
    skill: str | None
    digest: str | None = None
    score: Score
    abstained: bool
    reason: str = ""
    scores: dict[str, Score] = Field(default_factory=dict)
    """Every candidate's score."""


class Report(_Frozen):
    """Everything that a run says of one document, each quote verified against its text."""

    document: DocumentInfo
    facts: tuple[Fact, ...] = ()
    clauses: tuple[Clause, ...] = ()
    reviews: tuple[Review, ...] = ()
    findings: tuple[Finding, ...] = ()
    run: Run
    warnings: tuple[str, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    routes: tuple[StepRoute, ...] = ()
    sources: dict[Part, tuple[str, ...]] = Field(default_factory=dict)
    """Which steps a part came from, where the run knows."""
    notes: dict[Part, str] = Field(default_factory=dict)
    """Why a part is missing, where the run knows."""

    def as_json(self) -> dict[str, Json]:
        """The object that `report.json` holds.

        `tasks`, `routes`, `sources` and `notes` are there only when they hold something.
        """
        data: dict[str, Any] = self.model_dump(mode="json")
        for review in data["reviews"]:
            for piece in review["context"]:
                if piece["source"] in (None, self.document.source):
                    del piece["source"]
        for finding in data["findings"]:
            finding["about"] = _without_none(finding["about"])
        return {
            key: value
            for key, value in data.items()
            if value or key not in ("tasks", "routes", "sources", "notes")
        }

    def skills_of(self, part: Part) -> tuple[tuple[str, str | None], ...]:
        """The skills, with digests, that gave a part; empty where the run does not say."""
        steps = self.sources.get(part, ())
        found = {
            (route.skill, route.digest or self.run.skills.get(route.skill))
            for route in self.routes
            if route.step in steps and route.skill is not None
        }
        return tuple(sorted(found, key=lambda pair: pair[0]))

    def severity_of(self, review: int) -> Severity | None:
        """A review's severity: its own, else that of the first finding about it."""
        if (own := self.reviews[review].severity) is not None:
            return own
        for finding in self.findings:
            if finding.about.review == review:
                return finding.severity
        return None

    def reviews_by_weight(self) -> list[int]:
        """Indices of the reviews, those to look at first in front: broken must-rules lead."""
        verdicts = ("contradicted", "not_mentioned", "entailed")
        severities = ("must", "should", "may", None)
        return sorted(
            range(len(self.reviews)),
            key=lambda index: (
                verdicts.index(self.reviews[index].verdict),
                severities.index(self.severity_of(index)),
                index,
            ),
        )

    def findings_by_weight(self) -> list[int]:
        """Indices of the findings, blockers in front, then by severity."""
        ratings = ("blocker", "bad", "neutral", "good")
        severities = ("must", "should", "may", None)
        return sorted(
            range(len(self.findings)),
            key=lambda index: (
                ratings.index(self.findings[index].rating),
                severities.index(self.findings[index].severity),
                index,
            ),
        )


def _without_none(value: Mapping[str, Json]) -> dict[str, Json]:
    return {key: item for key, item in value.items() if item is not None}
