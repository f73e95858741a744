"""`agentkit index`: standing collections of documents that steps can be shown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from agentkit.cli.options import AsJson, Set, pair, settings_from
from agentkit.cli.output import print_json, print_table, say, stderr

if TYPE_CHECKING:
    from agentkit.retrieval.document_index import SearchMode
    from agentkit.retrieval.filters import FilterValue

SOME_FAILED = 3
_SHOWN = 160

app = typer.Typer(
    help="Standing collections: playbooks, policies, precedents.", no_args_is_help=True
)

Name = Annotated[
    str, typer.Argument(help="An index's name, or the path of its folder.", metavar="NAME")
]


@app.command()
def build(
    name: Name,
    paths: Annotated[list[Path], typer.Argument(help="Documents, or folders of them.")],
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Build an index of documents, or bring it up to date with them.

    Only new and changed files are read and embedded; what is gone from a folder given is dropped.
    A file that cannot be read is reported, the others go on, and the exit code is 3.
    """
    from agentkit.kit import Kit

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} files"),
        TimeElapsedColumn(),
    )
    with Kit(settings_from(set_)) as kit, Progress(*columns, console=stderr) as progress:
        task = progress.add_task(name, total=1)

        def show(_: str, state: str, number: int, total: int) -> None:
            progress.update(task, total=total, completed=number)

        built = kit.retriever.build_index(paths, name, on_file=show)
        stats = kit.retriever.open_index(name).stats()
    for error in built.failed.values():
        say(str(error), label="failed", style="red")
    if as_json:
        print_json(
            {
                "path": str(built.path),
                "added": list(built.added),
                "unchanged": list(built.unchanged),
                "dropped": list(built.dropped),
                "failed": {path: str(error) for path, error in built.failed.items()},
                "chunks_added": built.chunks,
                "documents": stats.documents,
                "chunks": stats.chunks,
            }
        )
    else:
        typer.echo(
            f"{built.path}: {len(built.added)} files added, {len(built.unchanged)} unchanged, "
            f"{len(built.dropped)} dropped, {len(built.failed)} failed; "
            f"{stats.documents} documents, {stats.chunks} chunks"
        )
    if built.failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
def search(
    name: Name,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top_k: Annotated[int, typer.Option(help="At most so many chunks.", min=1, max=1000)] = 5,
    mode: Annotated[str, typer.Option(help="hybrid, vector or text.")] = "hybrid",
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Only chunks of this document, source, page or heading.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Print the chunks of an index that answer a query best, with their score and place."""
    from agentkit.kit import Kit

    filters: dict[str, FilterValue] = {}
    for text in filter_ or ():
        key, value = pair(text, "--filter")
        filters[key] = (
            int(value) if key == "page" and value.isascii() and value.isdigit() else value
        )
    with Kit(settings_from(set_)) as kit:
        found = kit.retriever.search_index(
            name, query, top_k=top_k, mode=cast("SearchMode", mode), filters=filters
        )
    if as_json:
        print_json([asdict(citation) for citation in found])
        return
    print_table(
        ("score", "source", "place", "text"),
        [
            (f"{c.score:.3f}", c.source, f"{c.start}-{c.end}", " ".join(c.text.split())[:_SHOWN])
            for c in found
        ],
    )


@app.command()
def stats(name: Name, set_: Set = None, as_json: AsJson = False) -> None:
    """Print what an index holds: documents, chunks, files, and its size on disk."""
    from agentkit.kit import Kit

    with Kit(settings_from(set_)) as kit:
        held = kit.retriever.open_index(name).stats()
    values = asdict(held) | {"path": str(held.path)}
    if as_json:
        print_json(values)
        return
    print_table(("what", "value"), [(key, str(value)) for key, value in values.items()])
