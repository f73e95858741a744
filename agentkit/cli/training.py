"""`agentkit train`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from agentkit.cli.options import Set, settings_from
from agentkit.cli.output import print_json, say, stderr


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(rows)


Folder: TypeAlias = Annotated[Path, typer.Argument(help="A skill folder with a train.yaml.")]
DataDir: TypeAlias = Annotated[
    Path, typer.Option(help="Folder of the public data sets that train.yaml names.")
]


class Part(StrEnum):
    """Which rows of a split."""

    TRAIN = "train"
    TUNING = "tuning"
    HOLDOUT = "holdout"


def train(
    folder: Folder,
    data_dir: DataDir = Path("data"),
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


def rows(
    folder: Folder,
    part: Annotated[
        Part, typer.Option(help="Those trained on, tuned on, or kept out of both.")
    ] = Part.HOLDOUT,
    data_dir: DataDir = Path("data"),
) -> None:
    """Print the rows that a train.yaml makes of its data, as JSONL that `agentkit eval` takes."""
    from agentkit.training.rows import load_rows
    from agentkit.training.spec import load_train_spec

    split = load_rows(load_train_spec(folder / "train.yaml"), skill=folder, data_dir=data_dir)
    chosen = {
        Part.TRAIN: split.train,
        Part.TUNING: split.tuning,
        Part.HOLDOUT: split.holdout,
    }[part]
    for row in chosen:
        typer.echo(json.dumps({"input": row.input, "expected": row.expected}, ensure_ascii=False))
    say(f"{len(chosen)} rows")
