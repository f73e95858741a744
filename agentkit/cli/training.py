"""`agentkit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentkit.cli.options import Set, settings_from
from agentkit.cli.output import print_json, stderr


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    folder: Annotated[Path, typer.Argument(help="A skill folder with a train.yaml.")],
    data_dir: Annotated[
        Path, typer.Option(help="Folder of the public data sets that train.yaml names.")
    ] = Path("data"),
    work: Annotated[
        Path | None, typer.Option(help="Where to keep checkpoints; by default in the cache.")
    ] = None,
    set_: Set = None,
) -> None:
    """Train a skill's adapter as its train.yaml says; killed and called again, it goes on.

    Writes the adapter, metrics.json, a model card and the loss curve into the folder.
    """
    from agentkit.training.train import train_skill

    trained = train_skill(
        folder, settings=settings_from(set_), data_dir=data_dir, work=work, console=stderr
    )
    print_json(trained.metrics["tuning"])
