"""`agentkit advise`: which way of training suits rows, machine and use."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentkit.cli.options import AsJson
from agentkit.cli.output import print_json, print_table, say
from agentkit.errors import InputError


def register(app: typer.Typer) -> None:
    app.command()(advise)


class Updates(StrEnum):
    """How often a skill is trained again."""

    RARELY = "rarely"
    MONTHLY = "monthly"
    WEEKLY = "weekly"
    DAILY = "daily"


class Deployment(StrEnum):
    """What will serve the skill."""

    AGENTKIT = "agentkit"
    VLLM = "vllm"


class Answer(StrEnum):
    """How the skill answers."""

    CHOICE = "choice"
    MARKS = "marks"
    TEXT = "text"


_TOKEN_CHARACTERS = 4.5
"""Of English in a usual vocabulary."""


def advise(
    rows: Annotated[int | None, typer.Option(help="Labelled rows.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSONL rows, to be counted instead of --rows.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(help="Different documents among the rows.")
    ] = None,
    document_tokens: Annotated[int | None, typer.Option(help="Tokens of a usual document.")] = None,
    answer: Annotated[Answer, typer.Option(help="How the skill answers.")] = Answer.CHOICE,
    tasks: Annotated[int, typer.Option(help="Skills that share the backbone.")] = 1,
    memory: Annotated[float, typer.Option(help="Gigabytes that training may take.")] = 16.0,
    gpu: Annotated[bool, typer.Option(help="Train on a GPU.")] = False,
    updates: Annotated[
        Updates, typer.Option(help="How often it is trained again.")
    ] = Updates.RARELY,
    deployment: Annotated[
        Deployment, typer.Option(help="What will serve it.")
    ] = Deployment.AGENTKIT,
    parameters: Annotated[float, typer.Option(help="Of the backbone.")] = 135e6,
    layers: Annotated[int, typer.Option(help="Of the backbone.")] = 30,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files or folders of figures (metrics.json, benchmarks' JSON) beside those of "
            "the installed skills and those that agentkit brings of the ways to train.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how to train: method, layers and settings, each with its reason and what was measured."""
    from agentkit.advise.measured import METHODS
    from agentkit.advise.measured import measured as figures_in
    from agentkit.advise.rules import advise as decide
    from agentkit.advise.situation import Situation
    from agentkit.advise.train_yaml import train_settings
    from agentkit.skill.registry import default_folders

    if (rows is None) == (data is None):
        raise InputError("it depends on the rows", hint="give --rows NUMBER or --data FILE")
    if data is not None:
        rows, counted, tokens = _counted(data)
        documents = counted if documents is None else documents
        document_tokens = tokens if document_tokens is None else document_tokens
    situation = Situation(
        rows=rows or 0,
        documents=documents,
        document_tokens=500 if document_tokens is None else document_tokens,
        tasks=tasks,
        memory=memory,
        gpu=gpu,
        updates=updates.value,
        deployment=deployment.value,
        answer=answer.value,
        parameters=parameters,
        layers=layers,
    )
    advice = decide(situation)
    settings = train_settings(advice)
    own = [METHODS] if METHODS.is_file() else []
    places = [*default_folders(), *own, *(measured or ())]
    figures = figures_in(places, str(settings["method"]))
    if gpu:
        say("training on a GPU is written for, and nobody has run it yet", label="note")
    if as_json:
        print_json(
            {
                "situation": asdict(situation),
                "advice": [asdict(one) for one in advice],
                "train.yaml": settings,
                "measured": [asdict(one) for one in figures],
            }
        )
        return
    print_table(
        ("setting", "value", "reason"),
        [(one.setting, str(one.value), one.reason) for one in advice],
    )
    if figures:
        typer.echo()
        print_table(("measured", "figures"), [(one.what, one.value) for one in figures])
    else:
        say(f"no figures of {settings['method']} were found; --measured takes more")


def _counted(data: Path) -> tuple[int, int, int]:
    """Rows, different documents, and tokens of the middle one by length, roughly."""
    from agentkit.training.rows import rows_from_jsonl

    found = rows_from_jsonl(data)
    if not found:
        raise InputError("no rows", where=str(data))
    lengths = {row.group: _longest(row.input) for row in found}
    middle = sorted(lengths.values())[len(lengths) // 2]
    return len(found), len(lengths), max(1, round(middle / _TOKEN_CHARACTERS))


def _longest(input: object) -> int:
    texts = input.values() if isinstance(input, dict) else [input]
    return max((len(text) for text in texts if isinstance(text, str)), default=0)
