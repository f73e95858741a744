"""`agentkit skills`: what is installed, and whether a folder is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from agentkit.cli import merge, release
from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table, say
from agentkit.errors import SkillError

app = typer.Typer(help="Installed skills and skill folders.", no_args_is_help=True)
app.command()(merge.merge)


@app.command("ls")
def list_(skills: Skills = None, set_: Set = None, as_json: AsJson = False) -> None:
    """List the skills, and the folders that were set aside with the reason."""
    from agentkit.kit import Kit

    with Kit(settings_from(set_), skills=skills or ()) as kit:
        snapshot = kit.registry.snapshot
    for path, reason in snapshot.rejected.items():
        say(reason if str(path) in reason else f"{path}: {reason}", label="set aside")
    for note in snapshot.notes:
        say(note, label="note")
    if as_json:
        print_json(
            {
                "skills": [
                    {
                        "name": s.name,
                        "description": s.manifest.description,
                        "version": s.manifest.version,
                        "digest": s.digest,
                    }
                    for s in snapshot.skills.values()
                ],
                "rejected": {str(path): reason for path, reason in snapshot.rejected.items()},
            }
        )
        return
    print_table(
        ("name", "answers by", "digest", "description"),
        [
            (s.name, s.manifest.answer.kind, s.digest[:12], s.manifest.description)
            for s in snapshot.skills.values()
        ],
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A skill's name, or NAME@VERSION.")],
    skills: Skills = None,
    set_: Set = None,
) -> None:
    """Print a skill's manifest, digest and measured figures as JSON."""
    from agentkit.kit import Kit

    with Kit(settings_from(set_), skills=skills or ()) as kit:
        skill = kit.named(name)
    path = skill.path / "metrics.json"
    metrics = None
    if path.is_file():
        try:
            metrics = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            say(f"{path} cannot be read: {error}", label="warning", style="yellow")
    print_json(
        {
            **skill.manifest.model_dump(mode="json", exclude_defaults=True),
            "digest": skill.digest,
            "warnings": list(skill.warnings),
            "metrics": metrics,
        }
    )


@app.command()
def check(
    folders: Annotated[list[Path], typer.Argument(help="Skill folders.")],
    load: Annotated[
        bool, typer.Option(help="Also load the adapter onto the backbone and try it.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if a skill collides with an installed one.")
    ] = False,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check skill folders: names, schemas, adapter files, and with --load the adapter at work.

    Says too with which installed skills each competes for requests, by how much, and which
    utterances and earlier routes would be decided differently with it.
    """
    from agentkit.adapters.weights import check_adapter
    from agentkit.cli import collisions
    from agentkit.kit import Kit
    from agentkit.skill.folder import load_skill

    bad = 0
    checked: list[dict[str, Any]] = []
    with Kit(settings_from(set_), skills=skills or ()) as kit:
        competition = collisions.Competition(kit, needed=strict)
        for folder in folders:
            try:
                skill = load_skill(folder)
                check_adapter(skill)
                if load:
                    kit.engine.load(skill)
            except SkillError as error:
                bad += 1
                say(str(error), label="bad", style="red")
                checked.append({"folder": str(folder), "error": str(error)})
                continue
            for warning in skill.warnings:
                say(f"{folder}: {warning}", label="warning", style="yellow")
            found = competition.of(skill)
            if as_json:
                checked.append(
                    {
                        "folder": str(folder),
                        "skill": skill.name,
                        "digest": skill.digest,
                        "warnings": list(skill.warnings),
                        "collisions": None if found is None else found.to_json(),
                        "error": None,
                    }
                )
            else:
                typer.echo(f"{folder}: {skill.name} is sound, digest {skill.digest[:12]}")
                if found is not None:
                    collisions.show(found)
            if strict and found is not None and found.collides:
                bad += 1
                say(f"{folder}: {skill.name} collides", label="bad", style="red")
    if as_json:
        print_json(checked)
    if bad:
        raise typer.Exit(SkillError.exit_code)


release.register(app)
