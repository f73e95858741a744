"""`agentkit runs`: what was run, and what another choice would have changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table, say
from agentkit.errors import InputError
from agentkit.types import Json

if TYPE_CHECKING:
    from agentkit.kit import Kit
    from agentkit.types import RunRecord
    from agentkit.workflow.whatif import WhatIf

app = typer.Typer(help="Runs of workflows.", no_args_is_help=True)

_CELL = 400
"""Characters of a value in a table; --json has all of it."""
_Run = Annotated[str, typer.Argument(help="A run's id.")]


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
        told = [asdict(record) for record in records]  # `show` has a run's steps
        print_json([{key: value for key, value in one.items() if key != "steps"} for one in told])
        return
    print_table(
        ("run", "workflow", "status", "started", "error"),
        [(r.id, r.workflow, r.status, r.started, (r.error or "")[:80]) for r in records],
    )


@app.command()
def show(run: _Run, set_: Set = None) -> None:
    """Print a run with every step's record, and what was tried on it, as JSON."""
    from agentkit.kit import Kit
    from agentkit.workflow.whatif import WhatIfs

    with Kit(settings_from(set_)) as kit, WhatIfs(kit.runs) as tried:
        record = asdict(kit.runs.show(run))
        print_json(record | {"what_ifs": [one.to_json() for one in tried.of(run)]})


@app.command()
def resume(
    run: _Run,
    decide: Annotated[
        str | None,
        typer.Option(
            help="For a run that waits: a skill's name, or JSON such as "
            '{"output": ...}, {"items": {"0": SKILL}} or {"steps": {STEP: SKILL}}.',
            metavar="DECISION",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that waits for a person, failed, or was interrupted or killed.

    It keeps the skills and the controller that it began with; steps that are done stay done.
    """
    from agentkit.cli import job
    from agentkit.kit import Kit

    with Kit(settings_from(set_), skills=skills or ()) as kit:
        report, files = job.resumed(kit, run, _decision(decide), out)
    if as_json or not files:
        print_json(report)
    else:
        for path in files.values():
            typer.echo(path)


def _decision(text: str | None) -> Json:
    if text is None or not text.lstrip().startswith(("{", "[", '"')):
        return text
    try:
        value: Json = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", where="--decide") from error
    return value


@app.command()
def whatif(
    run: _Run,
    step: Annotated[str, typer.Option(help="The step to do again.")],
    item: Annotated[
        int | None, typer.Option(help="Which item of a for_each, from 0.", min=0)
    ] = None,
    skill: Annotated[
        str | None,
        typer.Option(help="Let this skill do it: a name, or NAME@VERSION.", metavar="SKILL"),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Let the bare backbone do it.")] = False,
    no_context: Annotated[
        bool, typer.Option("--no-context", help="Show it nothing beside its own input.")
    ] = False,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Do one step of a run again with another choice, and show what that changes.

    The step is given what the run gave it, and skills as they were when the run began. The run
    stays as it is; what was tried is kept beside it (agentkit runs show).
    """
    from agentkit.kit import Kit
    from agentkit.workflow.program import Program
    from agentkit.workflow.spec import parse_spec
    from agentkit.workflow.whatif import BASE, Choice, WhatIfs, what_if

    if base and skill is not None:
        raise InputError("--base does not go with --skill", where="agentkit runs whatif")
    choice = Choice(BASE if base else skill, no_context)
    with Kit(settings_from(set_), skills=skills or ()) as kit, WhatIfs(kit.runs) as kept:
        record = kit.runs.show(run)
        program = Program.of(parse_spec(kit.runs.spec(run)[0], name=f"run {run}"))
        runner = kit.runner(_digests(kit, record, choice.skill), as_of=record.started)
        found = what_if(program, runner, record, step, choice, item=item)
        kept.keep(found)
        if kit.engine.fingerprint != record.backbone:
            say(
                "the run was made with another backbone, which may account for differences",
                label="note",
                style="yellow",
            )
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)


def _digests(kit: Kit, record: RunRecord, chosen: str | None) -> dict[str, str]:
    """The run's own copies of skills, and the chosen one, where the run did not have it."""
    from agentkit.workflow.whatif import BASE

    digests = dict(record.skills)
    if chosen is None or chosen == BASE or chosen in digests:
        return digests
    skill = kit.find(chosen)
    return digests | {chosen: skill.digest}


def _show(found: WhatIf) -> None:
    recorded, instead = found.recorded, found.instead
    place = f"{found.step}" if found.item is None else f"{found.step} item {found.item}"
    print_table(
        (place, "recorded", "what if"),
        [
            (name, told(recorded), told(instead))
            for name, told in (
                ("skill", _skill),
                ("route", lambda one: one["route"]["reason"] if one["route"] else ""),
                ("context", _context),
                ("tokens read", lambda one: str(one["usage"]["prompt_tokens"])),
                ("tokens written", lambda one: str(one["usage"]["completion_tokens"])),
                ("seconds", lambda one: f"{one['seconds']:.2f}"),
            )
        ],
    )
    typer.echo()
    different = found.differences
    if not different:
        typer.echo("the outputs are the same")
        return
    print_table(
        ("output", "recorded", "what if"),
        [
            (
                one.path or "(all of it)",
                "" if one.kind == "added" else _cell(one.recorded),
                "" if one.kind == "removed" else _cell(one.instead),
            )
            for one in different
        ],
    )
    say(f"kept as {found.id} beside run {found.run}")


def _skill(record: Mapping[str, Any]) -> str:
    if record["skill"] is None:
        return "(the bare backbone)" if record["error"] is None else "(failed)"
    return f"{record['skill']} {record['digest'][:12]}"


def _context(record: Mapping[str, Any]) -> str:
    count = len(record["citations"])
    characters = sum(one["end"] - one["start"] for one in record["citations"])
    return f"{count} excerpts, {characters:,} characters" if count else "none"


def _cell(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
