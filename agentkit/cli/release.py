"""`agentkit skills release|promote|rollback|releases`: which version serves which runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from agentkit.cli import comparison
from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table, say
from agentkit.errors import InputError
from agentkit.skill.names import split_version
from agentkit.types import Json

if TYPE_CHECKING:
    from agentkit.kit import Kit
    from agentkit.skill.folder import Skill
    from agentkit.skill.release import By, Release

_Version = Annotated[
    str, typer.Argument(help="A skill with its version, as its folder is called.", metavar="NAME@2")
]


def register(app: typer.Typer) -> None:
    app.command()(release)
    app.command()(promote)
    app.command()(rollback)
    app.command()(releases)
    app.command()(comparison.compare)


def release(
    version: _Version,
    share: Annotated[float, typer.Option(help="Of the runs, 0 to 1; 0 withdraws it.")],
    by_input: Annotated[
        bool | None,
        typer.Option(
            "--by-input/--by-run",
            help="Choose by what a run is given, so that the same document always meets the same "
            "version, or (the default) by the run.",
        ),
    ] = None,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Let another version of a skill serve a share of the runs; runs that have begun keep theirs.

    Shares of several versions may add up to 1 at most; what is left goes to the stable version.
    """
    from agentkit.kit import Kit

    name, number = _named(version, "agentkit skills release")
    by: By | None = None if by_input is None else "input" if by_input else "run"
    with Kit(settings_from(set_), skills=skills or ()) as kit:
        if share > 0:
            kit.find(version)
            if name not in kit.skills:
                raise InputError(
                    f"nothing serves the other runs: there is no folder {name!r}",
                    hint=f"agentkit skills promote {version} gives it all of them",
                )
        changed = kit.releases.change(name, lambda one: one.with_share(number, share, by))
        _tell(kit, {name: changed}, as_json)


def promote(
    version: Annotated[
        str,
        typer.Argument(
            help="A skill with its version; the name alone is the folder without one.",
            metavar="NAME@2",
        ),
    ],
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Let a version serve every run from now on; all shares of the skill end."""
    from agentkit.kit import Kit

    name, number = split_version(version, "agentkit skills promote")
    with Kit(settings_from(set_), skills=skills or ()) as kit:
        from agentkit.skill.release import find

        find(kit.registry.snapshot, version)
        changed = kit.releases.change(name, lambda one: one.promoted(number))
        _tell(kit, {name: changed}, as_json)


def rollback(
    name: Annotated[str, typer.Argument(help="A skill's name.")],
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """End every share of a skill's versions; if there is none, undo its last promotion."""
    from agentkit.kit import Kit

    name, _ = split_version(name, "agentkit skills rollback")
    with Kit(settings_from(set_), skills=skills or ()) as kit:
        changed = kit.releases.change(name, lambda one: one.rolled_back())
        _tell(kit, {name: changed}, as_json)


def releases(skills: Skills = None, set_: Set = None, as_json: AsJson = False) -> None:
    """List skills that have versions, and which share of the runs each of them serves."""
    from agentkit.kit import Kit
    from agentkit.skill.release import Release

    with Kit(settings_from(set_), skills=skills or ()) as kit:
        found = kit.releases.read()
        there = {name: found.get(name, Release()) for name in kit.registry.snapshot.versions}
        _tell(kit, {**there, **found}, as_json)


# ---------------------------------------------------------------- releases


def _named(version: str, where: str) -> tuple[str, str]:
    name, number = split_version(version, where)
    if number is None:
        raise InputError(f"{version!r} names no version", where=where, hint=f"such as {version}@2")
    return name, number


def _tell(kit: Kit, found: Mapping[str, Release], as_json: bool) -> None:
    from agentkit.skill.release import label, served

    snapshot = kit.registry.snapshot
    for note in served(snapshot, found).notes:
        say(note, label="note", style="yellow")
    lines: list[dict[str, Json]] = []
    for name, release in sorted(found.items()):
        shares = dict(release.shares)
        own: dict[str | None, Skill | None] = {None: snapshot.skills.get(name)}
        own.update(snapshot.versions.get(name, {}))
        for version in dict.fromkeys([*own, release.stable, *shares]):
            skill = own.get(version)
            if skill is None and version != release.stable and version not in shares:
                continue
            stable = version == release.stable
            left = max(0.0, 1.0 - sum(shares.values()))
            lines.append(
                {
                    "skill": name,
                    "version": version,
                    "label": label(name, version),
                    "share": round(left if stable else shares.get(version or "", 0.0), 6),
                    "by": release.by,
                    "stable": stable,
                    "digest": None if skill is None else skill.digest,
                }
            )
    if as_json:
        print_json(lines)
        return
    print_table(
        ("version", "share of runs", "by", "", "digest"),
        [
            (
                str(line["label"]),
                f"{line['share']:.0%}" if line["share"] in (0, 1) else f"{line['share']:.4g}",
                str(line["by"]),
                "stable" if line["stable"] else "",
                (line["digest"] or "(not there)")[:12],
            )
            for line in lines
        ],
    )
