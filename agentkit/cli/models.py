"""`agentkit models`: the embedded backbone and encoder."""

from __future__ import annotations

from typing import Annotated

import typer

from agentkit import models
from agentkit.cli.options import Set, settings_from
from agentkit.cli.output import print_table, stderr

app = typer.Typer(help="The embedded backbone and encoder.", no_args_is_help=True)


@app.command("ls")
def list_(set_: Set = None) -> None:
    """List the embedded models and whether they are in the cache."""
    rows = [
        (info.name, info.kind, "yes" if info.fetched else "no", info.license, str(info.path))
        for info in models.list_models(settings_from(set_))
    ]
    print_table(("name", "kind", "fetched", "licence", "path"), rows)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models to fetch; all of them by default.")
    ] = None,
    set_: Set = None,
) -> None:
    """Fetch models into the cache, checked against their pinned hashes."""
    settings = settings_from(set_)
    for name in names or [info.name for info in models.list_models(settings)]:
        with stderr.status(f"{name} ...") as status:
            folder = models.fetch(name, settings, lambda text: status.update(text))
        typer.echo(folder)


@app.command()
def path(name: Annotated[str, typer.Argument(help="A model's name.")], set_: Set = None) -> None:
    """Print the folder of a fetched model."""
    typer.echo(models.path(name, settings_from(set_)))
