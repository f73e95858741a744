"""`agentkit eval`: a skill over many rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agentkit.cli.options import Set, Skills, settings_from
from agentkit.cli.output import say, stderr
from agentkit.errors import InputError
from agentkit.types import Json, StepCall, StepResult

_TOGETHER = 32


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    skill: Annotated[str, typer.Argument(help="A skill's name.")],
    data: Annotated[Path, typer.Option(help='JSONL rows: {"input": {...}, "expected": {...}}.')],
    predictions: Annotated[
        Path, typer.Option(help="Where to write one prediction per row, in order.")
    ],
    all_scores: Annotated[
        bool, typer.Option(help="Lower thresholds to zero, so that curves can be drawn.")
    ] = False,
    skills: Skills = None,
    set_: Set = None,
) -> None:
    """Run a skill over rows and write its outputs, one JSON object per row."""
    from agentkit.kit import Kit
    from agentkit.training.rows import rows_from_jsonl

    try:
        rows = rows_from_jsonl(data)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read it", where=str(data)) from error
    if not rows:
        raise InputError("no rows", where=str(data))
    if not predictions.absolute().parent.is_dir():
        raise InputError("no such folder", where=str(predictions.parent), hint="make it first")
    failed = 0
    with Kit(settings_from(set_), skills=skills or ()) as kit:
        if skill not in kit.skills:
            raise InputError(
                f"there is no skill {skill!r}", hint=f"installed: {', '.join(kit.skills)}"
            )
        runner = kit.runner()
        fresh = predictions.with_name(predictions.name + ".part")
        calls = [
            StepCall(
                step=skill,
                instruction="",
                skill=skill,
                input=row.input if isinstance(row.input, dict) else {"input": row.input},
                all_scores=all_scores,
            )
            for row in rows
        ]
        with fresh.open("w", encoding="utf-8") as out, _progress() as progress:
            task = progress.add_task(skill, total=len(calls))
            for batch in _batches(calls):
                for result in runner.run(batch):
                    failed += isinstance(result, Exception)
                    out.write(json.dumps(_prediction(result), ensure_ascii=False) + "\n")
                progress.advance(task, len(batch))
        fresh.replace(predictions)
    say(f"{len(rows)} rows, {failed} failed -> {predictions}")
    if failed:
        raise typer.Exit(1 if failed == len(rows) else 3)


def _prediction(result: StepResult | Exception) -> Json:
    if isinstance(result, Exception):
        return {"output": None, "error": str(result)}
    return {"output": result.output}


def _batches(calls: Sequence[StepCall]) -> Iterator[list[StepCall]]:
    """Calls over the same document stay together as long as they stand together."""
    for start in range(0, len(calls), _TOGETHER):
        yield list(calls[start : start + _TOGETHER])


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=stderr,
    )
