"""`agentkit run`, `validate`, `graph` and `eval-workflow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentkit.cli.options import AsJson, Set, Skills, pair, settings_from
from agentkit.cli.output import print_json, say
from agentkit.cli.workflow_evaluation import Data
from agentkit.errors import InputError

_Workflow = Annotated[Path, typer.Argument(help="A workflow file, or a shipped workflow's name.")]


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(validate)
    app.command()(graph)
    app.command("eval-workflow")(evaluate)


def run(
    workflow: _Workflow,
    input_: Annotated[
        list[str] | None, typer.Option("--input", help="An input.", metavar="NAME=VALUE")
    ] = None,
    input_jsonl: Annotated[
        Path | None,
        typer.Option(help='Many documents: rows of {"id": ..., "inputs": {...}}.'),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Run a workflow over a document, or over many.

    Writes report.md, report.html, report.json and document.txt into --out and prints their paths;
    without --out, prints the report as JSON.
    """
    from agentkit.cli import job
    from agentkit.kit import Kit
    from agentkit.workflow.spec import load_spec

    if input_jsonl is not None and (input_ or as_json):
        raise InputError(
            f"--input-jsonl does not go with {'--input' if input_ else '--json'}",
            where="agentkit run",
            hint="each row gives its inputs, and has its report in a folder of its own",
        )
    if input_jsonl is not None and out is None:
        raise InputError("--input-jsonl needs --out", where="agentkit run")
    rows = job.read_rows(input_jsonl) if input_jsonl is not None else None
    path = _found(workflow)
    spec = load_spec(path)
    settings = settings_from(set_)
    with Kit(settings, skills=skills or (), progress=_tell) as kit:
        runs = job.Job(kit, spec, path.parent)
        if rows is not None and out is not None:
            raise typer.Exit(runs.many(rows, out))
        given = dict(pair(text, "--input") for text in input_ or ())
        report, files = runs.one(job.typed(spec, given), out)
    if as_json or not files:
        print_json(report)
    else:
        for path in files.values():
            typer.echo(path)


def validate(workflow: _Workflow, skills: Skills = None, set_: Set = None) -> None:
    """Check a workflow file: shape, expressions, order of steps, and the skills it names."""
    from agentkit.kit import Kit
    from agentkit.workflow.program import validate as check
    from agentkit.workflow.spec import load_spec

    spec = load_spec(_found(workflow))
    with Kit(settings_from(set_), skills=skills or ()) as kit:
        check(spec, tuple(kit.skills))
    typer.echo(f"{spec.name}: {len(spec.steps)} steps, sound")


def graph(
    workflow: _Workflow,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Mermaid text (the default).")] = False,
    svg: Annotated[bool, typer.Option("--svg", help="A picture as SVG.")] = False,
) -> None:
    """Print the graph of a workflow."""
    from agentkit.workflow.graph import to_mermaid, to_svg
    from agentkit.workflow.spec import load_spec

    spec = load_spec(_found(workflow))
    typer.echo(to_svg(spec) if svg and not mermaid else to_mermaid(spec))


def evaluate(
    workflow: _Workflow,
    data: Data,
    out: Annotated[
        Path | None, typer.Option(help="Where to write predictions and charges, a line per row.")
    ] = None,
    without_context: Annotated[
        bool,
        typer.Option(
            "--without-context/--skip-without-context",
            help="Also run each row without context, to see what the context is worth.",
        ),
    ] = True,
    resamples: Annotated[
        int, typer.Option(help="Resamples of the intervals; 0 leaves them out.", min=0)
    ] = 1000,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Score a workflow on rows that say what is right, and charge each error.

    An output or step output that is wrong as routed and right when every step is done by the skill
    that the row names is the router's error; else, if it is right when steps are shown exactly the
    "spans" that the row gives, retrieval's; else the skill's.
    """
    from agentkit.cli import workflow_evaluation
    from agentkit.workflow.spec import load_spec

    path = _found(workflow)
    workflow_evaluation.evaluate(
        load_spec(path), path.parent, data, out, without_context, resamples, skills, set_, as_json
    )


def _found(workflow: Path) -> Path:
    """The file itself, or the shipped workflow of that name."""
    if workflow.exists() or workflow.suffix in (".yaml", ".yml"):
        if not workflow.exists() and (shipped := shipped_workflows() / workflow.name).exists():
            return shipped
        return workflow
    for name in (f"{workflow}.yaml", f"{str(workflow).replace('-', '_')}.yaml"):
        if (shipped := shipped_workflows() / name).is_file():
            return shipped
    return workflow


def shipped_workflows() -> Path:
    """The folder of the shipped workflows, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    packed = package / "_shipped" / "workflows"
    return packed if packed.is_dir() else package.parent / "workflows"


def _tell(text: Any) -> None:
    say(str(text))
