"""`agentkit controller routes|accept|correct|learn`: what people say of routes, and its use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table, say
from agentkit.errors import InputError

if TYPE_CHECKING:
    from agentkit.kit import Kit
    from agentkit.routing.changes import Change
    from agentkit.routing.learning import Lesson, Plan
    from agentkit.workflow.feedback import RecordedRoute

_SHOWN = 20

_Run = Annotated[str, typer.Argument(help="A run's id.")]
_Step = Annotated[str, typer.Option(help="The step that was routed.")]
_Item = Annotated[int | None, typer.Option(help="Which item of a for_each, from 0.", min=0)]
_Runs = Annotated[int, typer.Option(help="Look at so many of the latest runs.", min=1, max=10**9)]


def register(app: typer.Typer) -> None:
    app.command()(routes)
    app.command()(accept)
    app.command()(correct)
    app.command()(learn)


def routes(runs: _Runs = 20, set_: Set = None, as_json: AsJson = False) -> None:
    """List recorded routes, with what people said of them."""
    from agentkit.kit import Kit
    from agentkit.workflow.feedback import Feedback

    with Kit(settings_from(set_)) as kit, Feedback(kit.runs) as feedback:
        found = feedback.routes(runs)
    if as_json:
        print_json([_as_json(one) for one in found])
        return
    print_table(
        ("run", "step", "item", "text", "decided", "score", "said"),
        [
            (
                one.run,
                one.step,
                "" if one.item is None else str(one.item),
                one.query.instruction,
                one.skill or "(none)",
                f"{one.score:.3f}",
                _said(one),
            )
            for one in found
        ],
    )


def accept(
    run: _Run, step: _Step, item: _Item = None, set_: Set = None, as_json: AsJson = False
) -> None:
    """Say that a run's route was right."""
    from agentkit.kit import Kit
    from agentkit.workflow.feedback import Feedback

    with Kit(settings_from(set_)) as kit, Feedback(kit.runs) as feedback:
        _tell(feedback.accept(run, step, item), as_json)


def correct(
    run: _Run,
    step: _Step,
    skill: Annotated[str, typer.Option(help="The skill that is right, or none.")],
    item: _Item = None,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say which skill a run's step should have been routed to."""
    from agentkit.kit import Kit
    from agentkit.workflow.feedback import Feedback

    with Kit(settings_from(set_), skills=skills or ()) as kit, Feedback(kit.runs) as feedback:
        known = {*kit.skills, *kit.runs.show(run).skills}
        if skill != "none" and skill not in known:
            raise InputError(
                f"there is no skill {skill!r}",
                hint=f"installed: {', '.join(sorted(known))}; or none, where no skill is right",
            )
        _tell(feedback.correct(run, step, None if skill == "none" else skill, item), as_json)


def learn(
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    into_skill: Annotated[
        bool,
        typer.Option(
            "--into-skill",
            help="Write utterances into each skill's own skill.yaml, where its folder may be "
            "written to, instead of beside the skills.",
        ),
    ] = False,
    runs: _Runs = 500,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Turn corrected routes into utterances, once a person has seen what that changes.

    Prints the corrections, which routes of the skills' own utterances and of earlier runs would
    change, and how many of the judged routes are right before and after; then asks. Runs that
    have begun keep the controller that they began with.
    """
    from agentkit.kit import Kit
    from agentkit.routing.learning import plan_learning
    from agentkit.workflow.feedback import Feedback, lessons_of, probes_of

    with Kit(settings_from(set_), skills=skills or ()) as kit, Feedback(kit.runs) as feedback:
        recorded = feedback.routes(runs, judged=True)
        plan = plan_learning(
            kit.encoder,
            kit.skill_texts(),
            kit.learnt,
            lessons_of(recorded),
            probes_of(recorded),
        )
        written: list[str] = []
        if as_json and not yes:
            print_json({**plan.to_json(), "written": written})
        elif not as_json:
            _show(plan)
        if plan.lessons:
            _confirm(plan, yes=yes, as_json=as_json)
            written = _teach(kit, plan.lessons, into_skill=into_skill)
    if as_json and yes:
        print_json({**plan.to_json(), "written": written})
    for place in written:
        say(place, label="written")


def _teach(kit: Kit, lessons: Sequence[Lesson], *, into_skill: bool) -> list[str]:
    """Write the lessons as utterances; returns the files that were written."""
    from agentkit.routing.learning import contested, taught_by, teach
    from agentkit.skill.release import label, served
    from agentkit.skill.utterances import append_utterances, source_folder
    from agentkit.workflow.store import now

    written: list[str] = []
    own: dict[str, list[str]] = {}
    beside: list[Lesson] = []
    texts_of = kit.skill_texts()
    for lesson in lessons:
        text = lesson.query.instruction
        into = into_skill and lesson.skill is not None
        if into and lesson.skill is not None:
            own.setdefault(lesson.skill, []).append(text)
        # A skill's own file cannot take a text from another skill, or from what was taught before.
        if not into or contested(text, lesson.skill, texts_of, kit.learnt):
            beside.append(lesson)
    versions = served(kit.registry.snapshot, kit.releases.read()).versions
    folders = {
        name: source_folder(kit.registry.folders, label(name, versions.get(name))) for name in own
    }
    for name, texts in own.items():
        written.append(str(append_utterances(folders[name], texts)))
    if beside:
        path = kit.settings.learnt_file
        teach(path, taught_by(beside, now()))
        written.append(str(path))
    return written


def _confirm(plan: Plan, *, yes: bool, as_json: bool) -> None:
    """Raises `InputError` where nobody can be asked, `typer.Abort` when the answer is no."""
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise InputError(
            "nothing was learnt: there is nobody to ask",
            where="agentkit controller learn",
            hint="confirm with --yes",
        )
    typer.confirm(f"Learn {len(plan.lessons)} utterances?", abort=True, err=True)


def _show(plan: Plan) -> None:
    if not plan.lessons:
        typer.echo("nothing to learn: no correction that is not known already")
    else:
        print_table(
            ("learn", "for", "from"),
            [(one.query.instruction, one.skill or "(none)", one.source) for one in plan.lessons],
        )
    for text in plan.conflicts:
        say(f"{text!r} was corrected in several ways; the last counts", label="note")
    if plan.judged and plan.lessons:
        typer.echo(
            f"right of {plan.judged} judged routes: {plan.right_before} before, "
            f"{plan.right_after} after, {plan.right_held_out} when each is decided by what the "
            "others teach"
        )
    for lesson in plan.missed:
        say(
            f"{lesson.query.instruction!r} would still not be decided for {lesson.skill or 'none'}",
            label="note",
        )
    if plan.lessons:
        show_changes(plan.changes, plan.probes)


def show_changes(changes: Sequence[Change], probes: int) -> None:
    """Print how many of so many probes change, and the first of them."""
    typer.echo(f"{len(changes)} of {probes} utterances and earlier routes would change")
    if changes:
        print_table(
            ("text", "source", "before", "after"),
            [
                (
                    one.probe.query.instruction,
                    one.probe.source,
                    one.before.skill or "(none)",
                    one.after.skill or "(none)",
                )
                for one in changes[:_SHOWN]
            ],
        )
    if len(changes) > _SHOWN:
        say(f"and {len(changes) - _SHOWN} more: --json has them all")


def _tell(route: RecordedRoute, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(route))
        return
    typer.echo(f"{route.place}: {route.query.instruction!r} {_said(route)}")


def _said(route: RecordedRoute) -> str:
    if route.outcome is None:
        return ""
    if route.outcome == "accepted":
        return "accepted"
    return f"corrected to {route.right or '(none)'}"


def _as_json(route: RecordedRoute) -> dict[str, object]:
    return {
        "run": route.run,
        "step": route.step,
        "item": route.item,
        "text": route.query.instruction,
        "decided": route.skill,
        "score": route.score,
        "outcome": route.outcome,
        "right": route.right,
    }
