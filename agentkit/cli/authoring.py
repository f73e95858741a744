"""`agentkit skills new`: the folder of a skill that is yet to be trained."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentkit.cli.output import say


def register(app: typer.Typer) -> None:
    app.command("new")(new)


class SkillKind(StrEnum):
    """How a skill answers."""

    CHOICE = "choice"
    MARKS = "marks"
    TEXT = "text"


def new(
    name: Annotated[str, typer.Argument(help="Lowercase letters, digits and single hyphens.")],
    kind: Annotated[
        SkillKind,
        typer.Option(help="Pick one of a few answers, mark passages of documents, or write."),
    ] = SkillKind.CHOICE,
    folder: Annotated[Path, typer.Option("--in", help="Where to put it.", metavar="DIR")] = Path(
        "skills"
    ),
) -> None:
    """Lay out a skill folder and say what to fill in; nothing is ever overwritten."""
    from agentkit.skill.folder import check_name
    from agentkit.skill.manifest_files import read_manifest
    from agentkit.skill.template import new_skill, next_steps

    check_name(name, "NAME")
    for path in new_skill(folder / name, kind.value):
        typer.echo(path)
    read_manifest(folder / name)
    say("next:")
    for number, step in enumerate(next_steps(folder / name, kind.value), start=1):
        say(f"  {number}. {step}")
