"""`agentkit eval-workflow`: how often a workflow is right, and what its errors are charged to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table, say, stderr
from agentkit.errors import InputError

if TYPE_CHECKING:
    from agentkit.evaluation.resampling import Figure
    from agentkit.workflow.evaluation import RowResult, WorkflowEvaluation
    from agentkit.workflow.spec import WorkflowSpec

FAILED, SOME_FAILED = 1, 3
_TITLES = {
    "routed": "as routed",
    "true_routes": "true routes",
    "gold_context": "gold context",
    "without_context": "without context",
}


def evaluate(
    spec: WorkflowSpec,
    folder: Path,
    data: Path,
    out: Path | None,
    without_context: bool,
    resamples: int,
    skills: Skills,
    set_: Set,
    as_json: AsJson,
) -> None:
    """Run the rows in every arm and tell the charges; exits with 1 if no row could be run, with 3
    if some could not."""
    from agentkit.kit import Kit
    from agentkit.workflow.evaluation import evaluate_workflow
    from agentkit.workflow.gold import read_gold

    if out is not None and not out.absolute().parent.is_dir():
        raise InputError("no such folder", where=str(out.parent), hint="make it first")
    if out is not None and out.is_dir():
        raise InputError("a folder, not a file", where=f"--out {out}", hint="name a file")
    with Kit(settings_from(set_), skills=skills or ()) as kit:
        rows = read_gold(data, spec, kit.skills)
        compiled = kit.compile(spec, folder=folder)
        with stderr.status(f"0 of {len(rows)} rows") as status:
            done: list[RowResult] = []

            def told(result: RowResult) -> None:
                done.append(result)
                status.update(f"{len(done)} of {len(rows)} rows")

            found = evaluate_workflow(
                compiled,
                rows,
                without_context=without_context,
                on_row=told,
                resamples=resamples,
            )
    for row in found.rows:
        if row.error is not None:
            say(f"{row.id}: {row.error}", label="failed", style="red")
    try:
        if as_json:
            print_json(found.to_json())
        else:
            _show(found)
    finally:  # whatever becomes of those who read
        if out is not None:
            _write(out, found)
    if found.failed:
        raise typer.Exit(FAILED if found.failed == len(found.rows) else SOME_FAILED)


Data = Annotated[
    Path,
    typer.Option(
        help='JSONL rows: {"inputs": {...}, "expected": {output: ...}, '
        '"steps": {step: {"skill", "output", "spans"}}}.'
    ),
]


def _show(found: WorkflowEvaluation) -> None:
    print_table(
        ("arm", "right", "95% interval", "beyond as routed"),
        [
            (
                _TITLES[arm],
                _number(found.accuracy[arm].value),
                _interval(found.accuracy[arm]),
                _beyond(found, arm),
            )
            for arm in found.arms
        ],
    )
    typer.echo()
    charges = found.charges()
    columns = list(charges["all"])
    print_table(
        ("charged to", *columns),
        [(name, *(str(own[column]) for column in columns)) for name, own in charges.items()],
    )
    steps = found.steps()
    if steps:
        typer.echo()
        _show_steps(found, steps)
    say(f"{len(found.rows)} rows, {len(found.targets)} targets")


def _show_steps(found: WorkflowEvaluation, steps: dict[str, dict[str, float | int | None]]) -> None:
    print_table(
        ("step", "routes", "routed right", "outputs", *(_TITLES[arm] for arm in found.arms)),
        [
            (
                name,
                str(one["routes"]),
                _number(one["route_accuracy"]),
                str(one["outputs"]),
                *(_number(one[arm]) for arm in found.arms),
            )
            for name, one in steps.items()
        ],
    )


def _beyond(found: WorkflowEvaluation, arm: str) -> str:
    figure = {str(key): one for key, one in found.less_routed.items()}.get(arm)
    if figure is None or figure.value is None:
        return ""
    return f"{figure.value:+.4f} {_interval(figure)}".strip()


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{figure.low:.4f} to {figure.high:.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _write(path: Path, found: WorkflowEvaluation) -> None:
    """One line per row, in order: the prediction as routed, and what each target is charged to."""
    lines: Sequence[str] = [
        json.dumps(
            {"id": row.id, "error": row.error}
            if row.error is not None
            else {
                **row.prediction,
                "targets": [
                    {"of": t.of, "name": t.name, "item": t.item, "charge": t.charge}
                    | {"right": dict(t.right)}
                    for t in row.targets
                ],
            },
            ensure_ascii=False,
        )
        for row in found.rows
    ]
    part = path.with_name(path.name + ".part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)
    say(f"-> {path}")
