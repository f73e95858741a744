"""`agentkit route`, and `agentkit controller`: what it decides, and how good that is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentkit.cli import learning
from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table, say
from agentkit.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from agentkit.kit import Kit
    from agentkit.routing.controller import SkillText
    from agentkit.routing.evaluation import Evaluation

_CONFUSIONS = 15

app = typer.Typer(help="How well the controller routes, and what it learns.", no_args_is_help=True)
learning.register(app)


def register(root: typer.Typer) -> None:
    root.command()(route)
    root.add_typer(app, name="controller")


def route(
    text: Annotated[str, typer.Argument(help="What a step would say.")],
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why: thresholds, and the nearest utterances.")
    ] = False,
    map_: Annotated[
        Path | None,
        typer.Option("--map", help="Draw the skills' utterances with the text among them, as SVG."),
    ] = None,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Print which skill the controller picks for a text, every score, and why."""
    from agentkit.kit import Kit
    from agentkit.types import Query

    if map_ is not None:
        _check_place(map_)
    with Kit(settings_from(set_), skills=skills or ()) as kit:
        explained = kit.controller().explain(Query(instruction=text))
        if map_ is not None:
            _draw_query(kit, text, explained, map_)
            say(str(map_), label="map")
    if as_json:
        print_json(explained)
    elif explain:
        _print_explained(explained)
    else:
        scores = explained.get("scores", {})
        print_table(("skill", "score"), [(name, f"{score:.3f}") for name, score in scores.items()])
        typer.echo(f"-> {explained.get('skill') or 'abstains'}: {explained.get('reason', '')}")


@app.command("eval")
def evaluate_(
    data: Annotated[
        Path,
        typer.Option(help='JSONL rows: {"text": ..., "skill": a name, or null where none fits}.'),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json, routes.jsonl and pictures.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(help="Bootstrap resamples for the intervals.", min=0)
    ] = 1000,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Measure the controller on labelled rows: accuracy, abstention, risk, calibration, confusion.

    Intervals are 95% percentile bootstrap intervals over the rows.
    """
    from agentkit.kit import Kit
    from agentkit.routing.evaluation import cases_from_jsonl, evaluate

    with Kit(settings_from(set_), skills=skills or ()) as kit:
        cases = cases_from_jsonl(data, kit.skills)
        evaluation = evaluate(kit.controller(), cases, resamples=resamples)
        content = {
            "data": {"file": data.name, "sha256": hashlib.sha256(data.read_bytes()).hexdigest()},
            "resamples": resamples,
            **evaluation.to_json(),
        }
        if out is not None:
            _write(kit, evaluation, content, out)
    if as_json:
        print_json(content)
    else:
        _print_evaluation(evaluation, content)


def _print_explained(explained: Mapping[str, Any]) -> None:
    scores: Mapping[str, float] = explained["scores"]
    nearest: Mapping[str, Mapping[str, Any]] = explained["nearest"]
    rows = []
    for place, (name, score) in enumerate(scores.items()):
        near = nearest.get(name, {})
        cosine = f"{near['cosine']:.3f}" if near else ""
        rows.append(
            (
                name,
                f"{score:.3f}",
                cosine,
                str(near.get("text", "")),
                _why(explained, name, score, first=place == 0),
            )
        )
    print_table(("skill", "score", "cosine", "nearest utterance", "why"), rows)
    typer.echo(f"-> {explained['skill'] or 'abstains'}: {explained['reason']}")
    threshold = explained["threshold"]
    if threshold is not None:
        typer.echo(
            f"   a route needs a score of {threshold:.3f} and a lead of {explained['margin']:.3f} "
            "over the second"
        )
    if explained.get("belongs") is not None:
        typer.echo(f"   confidence that any skill is for it: {explained['belongs']:.3f}")


def _why(explained: Mapping[str, Any], name: str, score: float, *, first: bool) -> str:
    if name == explained["skill"]:
        return "accepted"
    best = max(explained["scores"].values())
    close = not first and best - score < explained["margin"]
    if explained["abstained"] and first:
        return "best, yet abstained"
    return "too close to the best" if close and explained["abstained"] else "scores lower"


def _examples(kit: Kit) -> Mapping[str, list[str]]:
    """Each skill's description and utterances, in the controller's spelling."""
    texts: Mapping[str, SkillText] = kit.learnt.applied(kit.skill_texts())
    return {
        name: [" ".join(text.split()) or name for text in (description, *utterances)]
        for name, (description, utterances) in texts.items()
    }


def _draw_query(kit: Kit, text: str, explained: Mapping[str, Any], path: Path) -> None:
    from agentkit.routing.maps import draw_map

    examples = _examples(kit)
    if not examples:
        raise InputError("there is no skill to draw", where="--map")
    nearest = {
        name: (examples[name].index(near["text"]), near["text"])
        for name, near in list(explained["nearest"].items())[:3]
        if near["text"] in examples[name]
    }
    draw_map(
        path,
        {name: kit.encoder.encode(own) for name, own in examples.items()},
        query=kit.encoder.encode([" ".join(text.split())])[0],
        nearest=nearest,
    )


def _write(kit: Kit, evaluation: Evaluation, content: Mapping[str, Any], out: Path) -> None:
    import json

    from agentkit.modelfolder import write_json
    from agentkit.routing import maps

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", content)
    with (out / "routes.jsonl").open("w", encoding="utf-8") as file:
        for case, one in zip(evaluation.cases, evaluation.routes, strict=True):
            row = {
                "text": case.query.instruction,
                "expected": case.skill,
                "decided": one.skill,
                "best": next(iter(one.scores), None),
                "score": one.score,
                "reason": one.reason,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def draw_utterances(path: Path, evaluation: Evaluation) -> None:
        wrong = [
            " ".join(case.query.instruction.split())
            for case, right in zip(evaluation.cases, evaluation.judged.right, strict=True)
            if not right
        ]
        maps.draw_map(
            path,
            {name: kit.encoder.encode(own) for name, own in _examples(kit).items()},
            wrong=kit.encoder.encode(wrong) if wrong else None,
        )

    pictures: dict[str, Callable[[Path, Evaluation], None]] = {
        "map.svg": draw_utterances,
        "risk-coverage.svg": maps.draw_risk_coverage,
        "reliability.svg": maps.draw_reliability,
        "confusion.svg": maps.draw_confusion,
    }
    try:
        for name, draw in pictures.items():
            draw(out / name, evaluation)
    except MissingExtraError as error:
        say(str(error), label="no pictures", style="yellow")
    say(str(out), label="written")


def _print_evaluation(evaluation: Evaluation, content: Mapping[str, Any]) -> None:
    from agentkit.routing.evaluation import FIGURES

    rows = []
    for name, figure in evaluation.figures.items():
        value = "" if figure.value is None else f"{figure.value:.4f}"
        between = "" if figure.low is None else f"{figure.low:.4f} to {figure.high:.4f}"
        rows.append((name, value, between, FIGURES[name]))
    print_table(("figure", "value", "95% interval", "what it is"), rows)
    wrong = [
        (str(one["expected"] or "(none)"), str(one["decided"] or "(none)"), str(one["rows"]))
        for one in content["confusion"]
        if one["expected"] != one["decided"]
    ]
    if wrong:
        typer.echo("")
        print_table(("right", "decided", "rows"), wrong[:_CONFUSIONS])
        if len(wrong) > _CONFUSIONS:
            say(f"and {len(wrong) - _CONFUSIONS} more kinds of confusion: --json has them all")


def _check_place(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise InputError("no such folder", where=str(path.parent), hint="make it first")
