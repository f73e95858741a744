"""`report.md`: the report for a terminal, and harmless wherever Markdown is rendered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from agentkit.report.build import others_in, quotes_in, scalars_in
from agentkit.report.model import Part, Report, Review, StepRoute
from agentkit.types import Json

VERDICTS = {
    "contradicted": "contradicted",
    "not_mentioned": "not mentioned",
    "entailed": "entailed",
}

_SPECIAL = re.compile(r"([\\`*_\[\]<>&|~$])")
_OPENING = re.compile(r"^(\d{0,9})([.)](?= |$)|#(?=#{0,5}(?: |$))|[+-](?= |$)|-(?=-+$))")
"""What would make a heading, a list item or a rule of a line that begins with it."""
_UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")
"""Controls that could drive a terminal or turn the reading direction."""
_LINKED = re.compile(r"\S*(?:[:/]/|@|\bwww\.|\bmailto:|\w\.[^\W\d_]{2,})\S*", re.IGNORECASE)
"""Words that some renderers turn into a link with no markup around them."""


def escape(text: str) -> str:
    """One line of Markdown that shows `text` as it is, whatever it holds.

    White space runs become one space, control characters a replacement character. Nothing in it
    is a link, HTML, emphasis or a table cell's end; words that look like an address are given as
    code, which no renderer turns into a link.
    """
    line = " ".join(_word(word) for word in _UNSEEN.sub("\ufffd", text).split())
    return _OPENING.sub(r"\1\\\2", line)


def code(text: str) -> str:
    """An inline code span of `text`, also inside a table."""
    text = " ".join(_UNSEEN.sub("\ufffd", text).split())
    if not text:
        return ""
    if "|" in text:
        # Inside a table a bar ends the cell even in code, and an escaped one shows its backslash
        # everywhere else: it stands between two spans.
        return r"\|".join(map(code, text.split("|")))
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def to_markdown(report: Report, *, mermaid: str | None = None) -> str:
    """The whole of `report.md`."""
    blocks = [
        *_head(report),
        *_reviews(report),
        *_findings(report),
        *_facts(report),
        *_clauses(report),
        *_tasks(report),
        *_routes(report),
        *_run(report),
    ]
    if mermaid:
        fence = "`" * max(3, _longest_run(mermaid) + 1)
        blocks += ["## Workflow", f"{fence}mermaid\n{mermaid.strip()}\n{fence}"]
    return "\n\n".join(blocks) + "\n"


def _head(report: Report) -> Iterator[str]:
    document = report.document
    yield f"# {escape(document.source)}"
    yield (
        f"{document.characters:,} characters, text digest {code(document.digest[:12])}; workflow "
        f"{code(report.run.workflow)}, run {code(report.run.id)}. Offsets such as {code('12:40')} "
        "count characters of document.txt."
    )
    if report.warnings:
        yield "\n".join(f"- **Warning:** {escape(warning)}" for warning in report.warnings)


def _reviews(report: Report) -> Iterator[str]:
    if report.tasks and not report.reviews and "reviews" not in report.notes:
        return
    yield "## Verdicts"
    order = report.reviews_by_weight()
    if not order:
        yield _missing(report, "reviews", "No rule was reviewed.")
        return
    counts = [
        f"{sum(review.verdict == verdict for review in report.reviews)} {word}"
        for verdict, word in VERDICTS.items()
    ]
    yield f"{', '.join(counts)}.{_said(report, 'reviews')}"
    rows = [
        (
            str(index),
            _verdict(report, index),
            report.severity_of(index) or "–",
            escape(report.reviews[index].rule),
            f"{report.reviews[index].score:.2f}",
        )
        for index in order
    ]
    yield _table(("#", "verdict", "severity", "rule", "score"), rows)
    yield "### Evidence"
    for index in order:
        yield _review(report, index, report.reviews[index])


def _verdict(report: Report, index: int) -> str:
    verdict = report.reviews[index].verdict
    word = VERDICTS[verdict]
    return f"**{word}**" if verdict == "contradicted" else word


def _review(report: Report, index: int, review: Review) -> str:
    severity = report.severity_of(index)
    lines = [
        f"- **{index}. {VERDICTS[review.verdict]}**{f' ({severity})' if severity else ''}: "
        f"{escape(review.rule)}"
    ]
    lines += [_quoted(piece.quote, piece.start, piece.end) for piece in review.evidence]
    lines.append(f"  - {_answered(report, review)}")
    return "\n".join(lines)


def _answered(report: Report, review: Review) -> str:
    route = review.route
    if route.skill is None:
        return f"no skill was picked (best score {route.score:.2f})"
    digest = report.run.skills.get(route.skill)
    by = f"by {code(route.skill)}" + (f" {code(digest[:12])}" if digest else "")
    how = f"{by}, route {route.score:.2f}" + (" (abstained)" if route.abstained else "")
    passages = len(review.context)
    return f"{how}, from {passages} passage{'s' if passages != 1 else ''}" if passages else how


def _findings(report: Report) -> Iterator[str]:
    if report.tasks and not report.findings and "findings" not in report.notes:
        return
    yield "## Findings"
    if not report.findings:
        yield _missing(report, "findings", "No finding was stated.")
        return
    lines = []
    for index in report.findings_by_weight():
        finding = report.findings[index]
        severity = f", {finding.severity}" if finding.severity else ""
        if finding.about.review is not None:
            about = f"rule {finding.about.review}"
        else:
            number = finding.about.clause or 0
            clause = report.clauses[number]
            about = f"{escape(clause.category)} `{clause.start}:{clause.end}`"
        lines.append(f"- **{finding.rating}**{severity}: {escape(finding.statement)} ({about})")
    if said := _said(report, "findings").strip():
        yield said
    yield "\n".join(lines)


def _facts(report: Report) -> Iterator[str]:
    if report.tasks and not report.facts and "facts" not in report.notes:
        return
    yield "## Facts"
    if not report.facts:
        yield _missing(report, "facts", "No fact was found.")
        return
    if said := _said(report, "facts").strip():
        yield said
    yield _table(
        ("fact", "value", "at", "score"),
        [
            (
                escape(fact.name),
                escape(fact.value),
                f"`{fact.start}:{fact.end}`",
                f"{fact.score:.2f}",
            )
            for fact in report.facts
        ],
    )


def _clauses(report: Report) -> Iterator[str]:
    if report.tasks and not report.clauses and "clauses" not in report.notes:
        return
    yield "## Clauses"
    if not report.clauses:
        yield _missing(report, "clauses", "No clause was found.")
        return
    if said := _said(report, "clauses").strip():
        yield said
    by_category: dict[str, list[str]] = {}
    for clause in report.clauses:
        lines = by_category.setdefault(clause.category, [f"- **{escape(clause.category)}**"])
        lines.append(_quoted(clause.quote, clause.start, clause.end, clause.score))
    yield "\n".join(line for lines in by_category.values() for line in lines)


def _tasks(report: Report) -> Iterator[str]:
    if not report.tasks:
        if note := report.notes.get("tasks"):
            yield f"## Tasks\n\nNo tasks: {escape(note)}"
        return
    yield "## Tasks"
    for task in report.tasks:
        route = task.route
        how = "abstained" if route.abstained else "picked"
        who = code(route.skill) if route.skill else "no skill"
        lines = [
            f"- **{escape(task.task)}**",
            f"  - {how}: {who}, route {route.score:.2f}",
        ]
        quoted = list(quotes_in(task.output))
        lines += [_quoted(quote, start, end) for _, quote, start, end in quoted]
        others = list(others_in(task.output))
        lines += [f"  - “{escape(quote)}” (of a standing index)" for quote in others]
        named = scalars_in(task.output)
        lines += [f"  - {escape(key)}: {escape(str(value))}" for key, value in named.items()]
        if not quoted and not others and not named and task.output is not None:
            lines.append(f"  - {escape(_plain(task.output))}")
        yield "\n".join(lines)


def _routes(report: Report) -> Iterator[str]:
    if not report.routes:
        return
    yield "## Routes"
    rows: list[tuple[str, ...]] = []
    for (step, skill, abstained), calls in _grouped(report.routes).items():
        scores = [call.score for call in calls]
        span = f"{min(scores):.2f}"
        if max(scores) - min(scores) >= 0.005:
            span += f" to {max(scores):.2f}"
        rows.append(
            (
                escape(step),
                escape(skill) if skill else "none",
                "yes" if abstained else "no",
                str(len(calls)),
                span,
            )
        )
    yield _table(("step", "skill", "abstained", "calls", "score"), rows)


def _plain(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _grouped(
    routes: Sequence[StepRoute],
) -> dict[tuple[str, str | None, bool], list[StepRoute]]:
    groups: dict[tuple[str, str | None, bool], list[StepRoute]] = {}
    for route in routes:
        groups.setdefault((route.step, route.skill, route.abstained), []).append(route)
    return groups


def _run(report: Report) -> Iterator[str]:
    run = report.run
    yield "## Run"
    tokens = run.tokens
    yield "\n".join(
        [
            f"- id: {code(run.id)}",
            f"- workflow: {code(run.workflow)}",
            f"- backbone: {code(run.backbone)}",
            *([f"- encoder: {code(run.encoder)}"] if run.encoder else ()),
            f"- tokens: {tokens.prompt:,} read ({tokens.cached:,} of them cached), "
            f"{tokens.completion:,} written",
        ]
    )
    if run.skills:
        yield _table(
            ("skill", "adapter digest"),
            [(escape(name), code(digest)) for name, digest in run.skills.items()],
        )
    if run.seconds:
        rows = [(escape(step), f"{seconds:.1f}") for step, seconds in run.seconds.items()]
        rows.append(("total", f"{sum(run.seconds.values()):.1f}"))
        yield _table(("step", "seconds"), rows)


def _missing(report: Report, part: Part, empty: str) -> str:
    note = report.notes.get(part)
    return f"No {part}: {escape(note)}" if note else empty


def _said(report: Report, part: Part) -> str:
    said = [
        code(skill) + (f" {code(digest[:12])}" if digest else "")
        for skill, digest in report.skills_of(part)
    ]
    return f" By {', '.join(said)}." if said else ""


def _quoted(quote: str, start: int, end: int, score: float | None = None) -> str:
    tail = f", {score:.2f}" if score is not None else ""
    return f"  - “{escape(quote)}” (`{start}:{end}`{tail})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns are padded so that it reads as a table in a terminal, except the long ones."""
    widths = []
    for column, name in enumerate(header):
        longest = max([len(name), 3, *(len(row[column]) for row in rows)])
        widths.append(longest if longest <= 40 else 0)
    lines = [
        [name.ljust(width) for name, width in zip(header, widths, strict=True)],
        ["-" * max(width, 3) for width in widths],
        *([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _word(word: str) -> str:
    if _LINKED.fullmatch(word):
        return code(word)
    return _SPECIAL.sub(r"\\\1", word)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
