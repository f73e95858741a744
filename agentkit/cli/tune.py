"""`agentkit tune-reranker`: fit the reranker's head to questions with known evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from agentkit.cli.options import AsJson, Set, settings_from
from agentkit.cli.output import say


def register(app: typer.Typer) -> None:
    app.command("tune-reranker")(tune_reranker)


def tune_reranker(
    out: Annotated[Path, typer.Argument(help="File to write, ending in .safetensors.")],
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Folder of the data sets.")],
    wordings: Annotated[
        Path | None,
        typer.Option("--wordings", help="JSONL of other words for ContractNLI's hypotheses."),
    ] = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Tune the reranker on ContractNLI's training split and ToS;DR, and measure it.

    The figures are of documents left out, for questions that it was tuned on and for questions that
    were left out too; they are written beside the weights, as .json.
    """
    from agentkit import models
    from agentkit.errors import InputError
    from agentkit.retrieval.store import write_atomically
    from agentkit.routing.encoder import SentenceEncoder
    from agentkit.training.evidence import tune

    if out.suffix != ".safetensors":
        raise InputError("the file must end in .safetensors", where=str(out))
    if wordings is not None and not wordings.is_file():
        raise InputError("no such file", where=str(wordings))
    settings = settings_from(set_)
    folder = models.resolve(settings.encoder, settings, "encoder", say)
    head, metrics = tune(data_dir, SentenceEncoder(folder, remembered=100_000), wordings=wordings)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, head.to_bytes())
    text = json.dumps(metrics, indent=2)
    write_atomically(out.with_suffix(".json"), f"{text}\n".encode())
    if as_json:
        typer.echo(text)
    else:
        say(f"wrote {out}")
        for name, recall in metrics["recall_of_evidence_spans"].items():
            figures = ", ".join(f"{key.removeprefix('at_')}: {v:.3f}" for key, v in recall.items())
            typer.echo(f"{name.replace('_', ' ')}: evidence found at {figures}")
