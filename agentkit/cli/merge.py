"""`agentkit skills merge`: a skill as a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from agentkit import models
from agentkit.cli.options import Set, Skills, settings_from
from agentkit.cli.output import say, stderr
from agentkit.errors import InputError


def merge(
    name: Annotated[str, typer.Argument(help="A skill's name, or NAME@VERSION.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must be new or empty.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Type of the written weights; float32 rounds nothing."),
    ] = "float32",
    skills: Skills = None,
    set_: Set = None,
) -> None:
    """Write the backbone with a skill's LoRA or DoRA in its weights, for use without agentkit.

    Refused for adapters that are no change of weights: activated ones, bottlenecks, hybrids and
    prefixes. A task head and the skill's prompt are no part of the model.
    """
    from agentkit.engine.merge import merge as write
    from agentkit.kit import Kit

    settings = settings_from(set_)
    with Kit(settings, skills=skills or ()) as kit:
        skill = kit.named(name)
        if not skill.adapter:
            raise InputError(
                f"{name} has a task head alone, which is no part of a plain model",
                hint="nothing is to be merged: the backbone serves it as it is",
            )
        with stderr.status(f"{name} ...") as status:
            folder = models.resolve(
                settings.backbone, settings, "backbone", lambda text: status.update(text)
            )
            write(skill, folder, out, dtype=dtype)
    if skill.head_weights is not None:
        say("its task head is no part of a plain model", label="note")
    typer.echo(out)
