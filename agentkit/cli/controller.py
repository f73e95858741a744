"""`agentkit route`: one decision of the controller, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table


def register(app: typer.Typer) -> None:
    app.command()(route)


def route(
    text: Annotated[str, typer.Argument(help="What a step would say.")],
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Print which skill the controller picks for a text, every score, and why."""
    from agentkit.kit import Kit
    from agentkit.types import Query

    with Kit(settings_from(set_), skills=skills or ()) as kit:
        explained = kit.controller().explain(Query(instruction=text))
    if as_json:
        print_json(explained)
        return
    scores = explained.get("scores", {})
    print_table(("skill", "score"), [(name, f"{score:.3f}") for name, score in scores.items()])
    typer.echo(f"-> {explained.get('skill') or 'abstains'}: {explained.get('reason', '')}")
