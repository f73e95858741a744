"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from agentkit.errors import InputError
from agentkit.settings import Settings

Skills = Annotated[
    list[Path] | None,
    typer.Option(
        "--skills",
        help="A folder of skill folders, beside the shipped ones and ./skills; of "
        "one name the later wins.",
        metavar="DIR",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, such as dtype=float32.", metavar="KEY=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def settings_from(given: Sequence[str] | None) -> Settings:
    """Settings with `key=value` pairs over the environment's. Raises `InputError`."""
    values = dict(pair(text, "--set") for text in given or ())
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        what = "no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(
            f"{key}: {what}",
            where="--set or AGENTKIT_*",
            hint=f"settings: {', '.join(sorted(Settings.model_fields))}",
        ) from error


def pair(text: str, option: str) -> tuple[str, Any]:
    """`key=value` as a pair. Raises `InputError`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"{text!r} is not KEY=VALUE", where=option)
    return key, value
