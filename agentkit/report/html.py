"""`report.html`: one self-contained page, the summary beside the document's full text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from agentkit.report.build import quotes_in, scalars_in
from agentkit.report.highlight import Mention, Place, places, render
from agentkit.report.model import Context, Part, Report, StepRoute
from agentkit.types import Document, Json, Section

VERDICT_WORDS = {
    "contradicted": "Contradicted",
    "not_mentioned": "Not mentioned",
    "entailed": "Entailed",
}


@dataclass(frozen=True, slots=True)
class RouteGroup:
    """The calls of one step that the controller answered alike."""

    step: str
    skill: str | None
    digest: str | None
    abstained: bool
    calls: tuple[StepRoute, ...]

    @property
    def low(self) -> float:
        return min(call.score for call in self.calls)

    @property
    def high(self) -> float:
        return max(call.score for call in self.calls)


@dataclass(frozen=True, slots=True)
class Tick:
    """A quoted place's mark beside the document pane."""

    place: Place
    top: float
    """Percent of the text's length."""


def to_html(report: Report, document: Document, *, graph_svg: str | None = None) -> str:
    """The whole of `report.html`.

    Nothing in it is fetched: styles and script stand inline, and its content security policy
    allows that one script, by its hash, and no connection. All text is escaped. `graph_svg` is
    shown as an image, in which a browser runs no script and follows no reference.
    """
    quoted = places(_mentions(report))
    starts = {piece.start for piece in _contexts(report) if _is_of(piece, document)}
    pane = render(
        document.text,
        quoted.values(),
        headings=_headings(document),
        pages=document.pages,
        anchors=starts,
    )
    script = resources.files("agentkit.report").joinpath("templates/report.js").read_text("utf-8")
    length = max(len(document.text), 1)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            document=document,
            pane=pane,
            quoted=quoted,
            ticks=[Tick(place, 100 * place.start / length) for place in quoted.values()],
            anchor_of=lambda piece: f"o{piece.start}" if _is_of(piece, document) else None,
            quotes_in=lambda value: [
                (quote, start, end) for _, quote, start, end in quotes_in(value)
            ],
            scalars_in=scalars_in,
            plain=_plain,
            verdict_words=VERDICT_WORDS,
            verdict_counts=_verdict_counts(report),
            rating_counts=_rating_counts(report),
            clause_groups=_clause_groups(report),
            route_groups=_route_groups(report),
            shown=_shown(report),
            total_seconds=sum(report.run.seconds.values()),
            graph=_data_uri(graph_svg) if graph_svg else None,
            # Trusted: a file of this package.
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("agentkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _mentions(report: Report) -> Iterator[Mention]:
    for index, review in enumerate(report.reviews):
        label = f"{VERDICT_WORDS[review.verdict]} (rule {index}): {review.rule}"
        kind = "clause" if review.verdict == "not_mentioned" else review.verdict
        for piece in review.evidence:
            yield Mention(piece.start, piece.end, kind, label)
    for clause in report.clauses:
        yield Mention(clause.start, clause.end, "clause", clause.category)
    for fact in report.facts:
        yield Mention(fact.start, fact.end, "fact", fact.name)
    for task in report.tasks:
        for _, _, start, end in quotes_in(task.output):
            yield Mention(start, end, "task", task.task)


def _contexts(report: Report) -> Iterator[Context]:
    for review in report.reviews:
        yield from review.context


def _is_of(piece: Context, document: Document) -> bool:
    """Whether a chunk was cut from this document, and not from a standing index."""
    named = piece.chunk.startswith(f"{document.digest[:12]}:")
    return named and piece.start < piece.end <= len(document.text)


def _headings(document: Document) -> Iterator[tuple[int, int]]:
    """Where the text itself shows a section's heading."""
    for section in document.sections:
        if section.heading and (found := _heading(document.text, section)):
            yield found


def _heading(text: str, section: Section) -> tuple[int, int] | None:
    title = section.heading[-1]
    start = text.find(title, section.start, min(section.end, section.start + len(title) + 32))
    if start < 0 or any(char.isalpha() for char in text[section.start : start]):
        return None
    return start, start + len(title)


def _verdict_counts(report: Report) -> dict[str, dict[str, int]]:
    """Per verdict, how many reviews there are of each severity, `""` where it is not known."""
    counts: dict[str, dict[str, int]] = {verdict: {} for verdict in VERDICT_WORDS}
    for index in report.reviews_by_weight():
        severity = report.severity_of(index) or ""
        row = counts[report.reviews[index].verdict]
        row[severity] = row.get(severity, 0) + 1
    return counts


def _rating_counts(report: Report) -> dict[str, int]:
    ratings = [report.findings[index].rating for index in report.findings_by_weight()]
    return {rating: ratings.count(rating) for rating in dict.fromkeys(ratings)}


def _clause_groups(report: Report) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, clause in enumerate(report.clauses):
        groups.setdefault(clause.category, []).append(index)
    return groups


def _route_groups(report: Report) -> list[RouteGroup]:
    groups: dict[tuple[str, str | None, bool], list[StepRoute]] = {}
    for route in report.routes:
        groups.setdefault((route.step, route.skill, route.abstained), []).append(route)
    return [
        RouteGroup(step, skill, calls[0].digest, abstained, tuple(calls))
        for (step, skill, abstained), calls in groups.items()
    ]


def _shown(report: Report) -> list[Part]:
    """The parts that have a heading: a list of free tasks has no empty verdict table."""
    held: Mapping[Part, tuple[object, ...]] = {
        "tasks": report.tasks,
        "reviews": report.reviews,
        "findings": report.findings,
        "facts": report.facts,
        "clauses": report.clauses,
    }
    return [
        part
        for part, items in held.items()
        if items or part in report.notes or (part != "tasks" and not report.tasks)
    ]


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _plain(value: Json) -> str:
    """A task's output in words: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
