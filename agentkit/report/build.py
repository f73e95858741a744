"""A finished run's outputs become a `Report`, and every quote is held against the document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from agentkit.errors import OutputError
from agentkit.report.model import PARTS, Part, Report, is_of_another
from agentkit.types import Document, Json

_HINT = "check the workflow's outputs: expressions and the output schema of the skill"


def build_report(
    outputs: Mapping[str, Json], document: Document, run: Mapping[str, Json]
) -> Report:
    """The report of one run over one document.

    `outputs` is what the workflow's `outputs:` gave: `facts`, `clauses`, `reviews`, `findings`
    and `tasks` are taken, each a list; one that is absent or null is an empty part. Null items
    (a step's item that gave nothing) are left out, and the findings' `about` follows.

    `run` needs `id`, `workflow` and `backbone`, and may give `skills` {name: digest}, `seconds`
    {step: seconds}, `tokens` {prompt, completion, cached}, `warnings`, `routes` (one per call),
    `sources` {part: [step]} and `notes` {part: why it is missing}.

    Raises OutputError when an item has another shape, a quote is not the document's text at its
    offsets, or a finding is about an item that is not there.
    """
    parts = {part: _part(outputs, part) for part in PARTS}
    kept = {
        "clause": _renumber(parts["clauses"]),
        "review": _renumber(parts["reviews"]),
    }
    data: dict[str, Json] = {
        part: [item for item in items if item is not None] for part, items in parts.items()
    }
    data["findings"] = [
        _follow(finding, kept, f"findings[{index}]")
        for index, finding in enumerate(parts["findings"])
        if finding is not None
    ]
    data["document"] = {
        "source": document.source,
        "digest": document.digest,
        "characters": len(document.text),
    }
    data["run"] = run
    data["warnings"] = [*document.warnings, *(run.get("warnings") or ())]
    for key, empty in (("routes", []), ("sources", {}), ("notes", {})):
        data[key] = run.get(key) or empty
    try:
        report = Report.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise OutputError(
            f"{first['msg']}{more}", where=_where(first["loc"]), hint=_HINT
        ) from error
    verify(report, document)
    return report


def verify(report: Report, document: Document) -> None:
    """Raise OutputError unless the report is of this document and each quote is its text."""
    if (report.document.digest, report.document.characters) != (
        document.digest,
        len(document.text),
    ):
        raise OutputError(
            f"the report is of another document ({report.document.digest[:12]})",
            where=document.source,
            hint="give the document that the run read",
        )
    for where, quote, start, end in quotes(report):
        if not (0 <= start < end <= len(document.text)) or document.text[start:end] != quote:
            raise OutputError(
                f"the quote is not the document's text at {start}:{end}: {_short(quote)!r}",
                where=where,
                hint="offsets count code points of the document's text, half open",
            )
    for index, finding in enumerate(report.findings):
        for kind, number, items in (
            ("clause", finding.about.clause, report.clauses),
            ("review", finding.about.review, report.reviews),
        ):
            if number is not None and number >= len(items):
                raise OutputError(
                    f"it is about {kind} {number}, and there are {len(items)}",
                    where=f"findings[{index}]",
                    hint=_HINT,
                )


def quotes(report: Report) -> Iterator[tuple[str, str, int, int]]:
    """`(where, quote, start, end)` of everything that claims to be the document's words."""
    for index, fact in enumerate(report.facts):
        yield f"facts[{index}]", fact.value, fact.start, fact.end
    for index, clause in enumerate(report.clauses):
        yield f"clauses[{index}]", clause.quote, clause.start, clause.end
    for index, review in enumerate(report.reviews):
        for number, piece in enumerate(review.evidence):
            yield f"reviews[{index}].evidence[{number}]", piece.quote, piece.start, piece.end
    for index, task in enumerate(report.tasks):
        for path, quote, start, end in quotes_in(task.output):
            yield f"tasks[{index}].output{path}", quote, start, end


def quotes_in(value: Json, path: str = "") -> Iterator[tuple[str, str, int, int]]:
    """`(path, quote, start, end)` of each object in a JSON value that has a quote's fields.

    One that names the digest of its `document` is quoted from a standing index.
    """
    if isinstance(value, Mapping):
        start, end = value.get("start"), value.get("end")
        text = value.get("quote", value.get("value"))
        if isinstance(text, str) and type(start) is int and type(end) is int:
            if is_of_another(value):
                return
            yield path, text, start, end
        for key, item in value.items():
            yield from quotes_in(item, f"{path}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from quotes_in(item, f"{path}[{index}]")


def others_in(value: Json) -> Iterator[str]:
    """The quotes that `quotes_in` leaves out, for they are of a standing index."""
    if isinstance(value, Mapping):
        if is_of_another(value) and isinstance(quote := value.get("quote"), str):
            yield quote
        for item in value.values():
            yield from others_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from others_in(item)


def scalars_in(value: Json) -> dict[str, Json]:
    """The named plain values of a JSON object, without those that make up a quote."""
    if not isinstance(value, Mapping):
        return {}
    quoted = ("quote", "value", "start", "end") if {"start", "end"} <= value.keys() else ()
    return {
        key: item
        for key, item in value.items()
        if isinstance(item, str | int | float) and key not in quoted
    }


def _part(outputs: Mapping[str, Json], part: Part) -> Sequence[Json]:
    value = outputs.get(part)
    if value is None:
        return ()
    if isinstance(value, Mapping | str) or not isinstance(value, Sequence):
        raise OutputError(f"a list is wanted, not {type(value).__name__}", where=part, hint=_HINT)
    return value


def _renumber(items: Sequence[Json]) -> dict[int, int]:
    """Index among all items to index among those that are not null."""
    kept = (index for index, item in enumerate(items) if item is not None)
    return {old: new for new, old in enumerate(kept)}


def _follow(finding: Json, kept: Mapping[str, Mapping[int, int]], where: str) -> Json:
    about = finding.get("about") if isinstance(finding, Mapping) else None
    if not isinstance(about, Mapping):
        return finding
    moved = dict(about)
    for kind, numbers in kept.items():
        number = about.get(kind)
        if type(number) is not int:
            continue
        if number not in numbers:
            raise OutputError(
                f"it is about {kind} {number}, which is not there", where=where, hint=_HINT
            )
        moved[kind] = numbers[number]
    return {**finding, "about": moved}


def _where(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "report"


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
