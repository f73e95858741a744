"""`agentkit train`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from agentkit.cli.calibrate import calibrate_folder
from agentkit.cli.options import Set, settings_from
from agentkit.cli.output import print_json, say, stderr
from agentkit.errors import InputError


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(rows)


Folder: TypeAlias = Annotated[Path, typer.Argument(help="A skill folder with a train.yaml.")]
DataDir: TypeAlias = Annotated[
    Path, typer.Option(help="Folder of the public data sets that train.yaml names.")
]


class Part(StrEnum):
    """Which rows of a split."""

    TRAIN = "train"
    TUNING = "tuning"
    HOLDOUT = "holdout"


def train(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Skill folders with a train.yaml.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every shipped skill.")] = False,
    backbone: Annotated[
        str | None, typer.Option(help="Another backbone: a name, a local folder or a hub id.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Train copies in here, and leave the folders as they are."),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="Change a setting in the copy's train.yaml, as in --with method=head.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    data_dir: DataDir = Path("data"),
    work: Annotated[
        Path | None, typer.Option(help="Where to keep checkpoints; by default in the cache.")
    ] = None,
    set_: Set = None,
) -> None:
    """Train skills' adapters as their train.yaml says; killed and called again, it goes on.

    Writes the adapter, metrics.json, a model card and the loss curve into each folder, and ends
    with a calibration where train.yaml names rows for one. A skill that another starts from is
    trained first where it has no weights of the backbone. The frozen backbone with a skill's task
    head, to compare with: --out DIR --with method=head --with epochs=20 --with start_from=null.
    """
    from agentkit.training.copies import copy_untrained
    from agentkit.training.several import train_each
    from agentkit.training.spec import load_train_spec
    from agentkit.training.stages import Places
    from agentkit.training.train import train_skill

    chosen = _chosen(folders or [], all_)
    changes = _changes(with_ or [])
    if changes and out is None:
        raise InputError(
            "--with changes the train.yaml of a copy", hint="say with --out where copies go"
        )
    settings = settings_from([*(set_ or []), *([f"backbone={backbone}"] if backbone else [])])

    places = Places(chosen, settings, out, work, changes)

    def one(folder: Path) -> Path:
        return train_skill(
            places.folder_of(folder),
            settings=settings,
            data_dir=data_dir,
            work=places.work_of(folder),
            console=stderr,
            paths_from=folder,
        ).folder

    def finish(folder: Path, trained: Path) -> None:
        if out:  # what the calibration is to be may have changed since the copy was made
            copy_untrained(folder, out, changes)
        if load_train_spec(trained / "train.yaml").calibration:
            calibrate_folder(trained, settings=settings, data_dir=data_dir, paths_from=folder)

    def figures(trained: Path) -> Any:
        return json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["tuning"]

    if backbone and out is None:
        say(
            f"trained folders will be for {backbone} alone; --out DIR leaves them as they are",
            label="note",
        )
    named = f"{settings.backbone}\n{out and out.resolve()}\n{changes}"
    notes = work or settings.home / "training"
    written = train_each(
        chosen,
        one,
        notes=notes,
        named=named,
        said=say,
        finish=finish,
        before=places.before,
        start_of=places.start_of,
    )
    every = {name: figures(folder) for name, folder in written.items()}
    print_json(every if len(chosen) > 1 else every.popitem()[1])


def _chosen(folders: list[Path], every: bool) -> list[Path]:
    from agentkit.skill.registry import shipped_folder

    if every and not folders and (shipped := shipped_folder()) is not None:
        folders = sorted(path.parent for path in shipped.glob("*/train.yaml"))
    elif every:
        raise InputError("--all is every shipped skill", hint="give folders, or --all")
    if not folders:
        raise InputError("no skill folder is given", hint="give folders, or --all")
    return folders


def _changes(given: list[str]) -> dict[str, object]:
    """Settings by name, their values read as YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    changes: dict[str, object] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise InputError(f"{one!r} is not KEY=VALUE", where="--with")
        try:
            changes[key.strip()] = YAML(typ="safe").load(value)
        except YAMLError as error:
            raise InputError(f"{one!r} is not YAML: {error}", where="--with") from error
    return changes


def rows(
    folder: Folder,
    part: Annotated[
        Part, typer.Option(help="Those trained on, tuned on, or kept out of both.")
    ] = Part.HOLDOUT,
    data_dir: DataDir = Path("data"),
) -> None:
    """Print the rows that a train.yaml makes of its data, as JSONL that `agentkit eval` takes."""
    from agentkit.skill.manifest_files import read_manifest
    from agentkit.training.rows import load_rows
    from agentkit.training.spec import load_train_spec

    spec = load_train_spec(folder / "train.yaml")
    # What holds the documents is a skill's to say; rows alone can do without.
    skill = (folder / "SKILL.md").exists()
    document = read_manifest(folder)[0].retrieval.document if skill else None
    split = load_rows(spec, skill=folder, data_dir=data_dir, document=document, said=say)
    chosen = {
        Part.TRAIN: split.train,
        Part.TUNING: split.tuning,
        Part.HOLDOUT: split.holdout,
    }[part]
    for row in chosen:
        typer.echo(json.dumps({"input": row.input, "expected": row.expected}, ensure_ascii=False))
    say(f"{len(chosen)} rows")
    if not chosen and part is not Part.TRAIN:
        say(f"give a source of train.yaml a share to keep out: `{part.value}: 0.1`", label="note")
