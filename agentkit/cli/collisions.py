"""What `agentkit skills check` says of the requests that a skill competes for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from agentkit import models
from agentkit.cli.learning import show_changes
from agentkit.cli.output import print_table, say
from agentkit.errors import ModelError
from agentkit.skill.folder import Skill

if TYPE_CHECKING:
    from agentkit.kit import Kit
    from agentkit.routing.changes import Probe
    from agentkit.routing.collisions import Collisions
    from agentkit.routing.controller import SkillText

_SHOWN = 5


class Competition:
    """Stateful: the skills that are installed, and those that were checked before."""

    def __init__(self, kit: Kit, *, needed: bool) -> None:
        """With `needed`, the encoder is fetched if need be; else, without it, nothing is said."""
        self._kit = kit
        self._skills: dict[str, SkillText] | None = None
        self._earlier: list[Probe] = []
        self._missing: ModelError | None = None
        if not needed:
            self._missing = _missing_encoder(kit)

    def of(self, skill: Skill) -> Collisions | None:
        """What adding a skill would mean; it counts as added from then on."""
        from agentkit.routing.collisions import find_collisions

        if self._missing is not None:
            say(f"collisions were not looked for: {self._missing}", label="note")
            return None
        if self._skills is None:
            self._skills = self._kit.learnt.applied(self._kit.skill_texts())
            self._earlier = _earlier(self._kit)
        own = self._kit.learnt.applied(self._kit.skill_texts({skill.name: skill}))[skill.name]
        found = find_collisions(
            self._kit.encoder,
            self._skills,
            skill.name,
            own,
            self._earlier,
            self._kit.learnt.outside,
        )
        self._skills[skill.name] = own
        return found


def show(found: Collisions) -> None:
    """Print it: competitors with the utterances that clash, then what would change."""
    if not found.competitors:
        typer.echo("  competes with no installed skill")
    for one in found.competitors:
        verdict = ", collides" if one.collides else ""
        typer.echo(
            f"  competes with {one.name}: {one.competition:.0%} of their requests clash{verdict}"
        )
        for text in one.duplicates:
            typer.echo(f"    both name the utterance: {text}")
        if one.clashes:
            print_table(
                ("text", "of", "score", "rival", "score of rival", "its nearest", "cosine"),
                [
                    (
                        clash.text,
                        clash.skill,
                        f"{clash.score:.2f}",
                        clash.rival,
                        f"{clash.rival_score:.2f}",
                        clash.nearest,
                        f"{clash.cosine:.2f}",
                    )
                    for clash in one.clashes[:_SHOWN]
                ],
            )
        if len(one.clashes) > _SHOWN:
            say(f"and {len(one.clashes) - _SHOWN} more with {one.name}")
    if found.probes:
        show_changes(found.changes, found.probes)


def _missing_encoder(kit: Kit) -> ModelError | None:
    name = kit.settings.encoder
    try:
        if name in models.EMBEDDED:
            models.path(name, kit.settings)
        else:
            models.resolve(name, kit.settings, "encoder")
    except ModelError as error:
        return error
    return None


def _earlier(kit: Kit) -> list[Probe]:
    """The routes of earlier runs; a database is not made where there is none."""
    from agentkit.workflow.feedback import Feedback, probes_of

    if not kit.settings.runs_db.exists():
        return []
    with Feedback(kit.runs) as feedback:
        return probes_of(feedback.routes())
