"""`agentkit runs`: what was run, and going on with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from agentkit.cli.options import AsJson, Set, settings_from
from agentkit.cli.output import print_json, print_table

app = typer.Typer(help="Runs of workflows.", no_args_is_help=True)


@app.command("ls")
def list_(
    limit: Annotated[int, typer.Option(help="At most so many, the latest first.", min=1)] = 20,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """List runs, the latest first."""
    from agentkit.kit import Kit

    with Kit(settings_from(set_)) as kit:
        records = kit.runs.list(limit)
    if as_json:
        print_json([asdict(record) | {"steps": len(record.steps)} for record in records])
        return
    print_table(
        ("run", "workflow", "status", "started", "error"),
        [(r.id, r.workflow, r.status, r.started, (r.error or "")[:80]) for r in records],
    )


@app.command()
def show(run: Annotated[str, typer.Argument(help="A run's id.")], set_: Set = None) -> None:
    """Print a run with every step's record as JSON."""
    from agentkit.kit import Kit

    with Kit(settings_from(set_)) as kit:
        print_json(asdict(kit.runs.show(run)))
