"""`agentkit calibrate`: how sure a skill's choices are, fitted to rows as they are served."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agentkit.cli.options import Set, settings_from
from agentkit.cli.output import print_json, say, stderr
from agentkit.errors import InputError

if TYPE_CHECKING:
    from agentkit.settings import Settings
    from agentkit.training.rows import Row


def register(app: typer.Typer) -> None:
    app.command()(calibrate)


def calibrate(
    folder: Annotated[Path, typer.Argument(help="The folder of a trained skill.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL rows to fit to as well, such as answers to your own questions."),
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(help="Folder of the public data sets that train.yaml names.")
    ] = Path("data"),
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="Fit to the rows of --data alone; what the training asked, the head knows from "
            "its last calibration.",
        ),
    ] = False,
    silence: Annotated[
        float | None,
        typer.Option(
            help="Share of questions that nothing speaks of; by default each choice counts alike. "
            "The larger, the less often the skill says something where there is nothing.",
            min=0.01,
            max=0.99,
        ),
    ] = None,
    set_: Set = None,
) -> None:
    """Fit how sure a skill's choices are, and from where on it says that nothing speaks of a rule.

    Fits to the tuning rows of train.yaml, to its `calibration` sources and to the rows of --data,
    each as it is served, by how new a question is to the skill. Writes head.safetensors and the
    figures in metrics.json; what the adapter learnt stays as it is.
    """
    if alone and not data:
        raise InputError("--alone fits to the rows of --data", hint="give them")
    found = calibrate_folder(
        folder,
        settings=settings_from(set_),
        data_dir=data_dir,
        given=data or (),
        alone=alone,
        silence=silence,
    )
    print_json(found)


def calibrate_folder(
    folder: Path,
    *,
    settings: Settings,
    data_dir: Path,
    given: Sequence[Path] = (),
    alone: bool = False,
    silence: float | None = None,
    paths_from: Path | None = None,
) -> dict[str, Any]:
    """Calibrate a trained skill and note it in its records; relative paths as a training has them.

    Raises `SkillError` or `InputError` for what cannot be calibrated.
    """
    from agentkit import __version__
    from agentkit.evaluation.calibration import (
        ReadingRunner,
        asks_again,
        calibrate_skill,
    )
    from agentkit.evaluation.kept_readings import KeptReadings
    from agentkit.evaluation.serving import SkillPredictor
    from agentkit.kit import Kit
    from agentkit.skill.folder import Skill
    from agentkit.skill.manifest_files import read_manifest
    from agentkit.training.checks import check_calibrated, check_inputs
    from agentkit.training.record import read_figures, write_figures
    from agentkit.training.rows import calibration_rows, load_rows
    from agentkit.training.spec import load_train_spec

    began = time.monotonic()
    manifest, _ = read_manifest(folder)
    check_calibrated(manifest, str(folder))
    read_figures(folder)  # before time is spent: it may be what no training wrote
    known: Sequence[Row] | None = None
    parts: dict[str, Sequence[Row]] = {}
    sources: list[dict[str, Any]] = []
    if not alone:
        spec = load_train_spec(folder / "train.yaml")
        origin = paths_from or folder
        document = manifest.retrieval.document
        split = load_rows(spec, skill=origin, data_dir=data_dir, document=document, said=say)
        known, parts["tuning"] = split.train, split.tuning
        parts["calibration"], sources = calibration_rows(
            spec, skill=origin, data_dir=data_dir, document=document, said=say
        )
        if again := asks_again(parts["calibration"], known, manifest):
            say(
                f"{again} of {len(parts['calibration'])} rows to calibrate on ask what the "
                "training asks, too: of new questions they say nothing",
                label="note",
            )
    for path in given:
        parts[_name(path, parts)], source = _own_rows(path)
        sources.append(source)
    for rows in parts.values():
        check_inputs(manifest, rows)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=stderr
    )
    with Kit(settings) as kit, bar:
        task = bar.add_task(f"{manifest.name}: calibrating", total=None)

        def serve(skill: Skill) -> SkillPredictor:
            return SkillPredictor(
                skill,
                engine=kit.engine,
                encoder=kit.encoder,
                documents=kit.documents,
                settings=kit.settings,
                runner=ReadingRunner,
            )

        def keep(skill: Skill) -> KeptReadings:
            how = settings.model_dump_json(exclude={"home", "threads"})
            named = [skill.digest, kit.engine.fingerprint, kit.encoder.digest, how]
            folder = settings.home / "calibration" / skill.name
            return KeptReadings(folder, "\n".join([*named, __version__]))

        found = calibrate_skill(
            folder,
            known,
            parts,
            serve=serve,
            keep=keep,
            silence=silence,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    found |= {"data": sources, "seconds": round(time.monotonic() - began, 1)}
    if (metrics := read_figures(folder)) is not None:
        write_figures(folder, manifest, metrics | {"calibration": found})
    return found


def _name(path: Path, taken: Mapping[str, Sequence[Row]]) -> str:
    """What the rows of a file are called: by its name, or by the way to it where that is taken."""
    return path.name if path.name not in (*taken, "tuning", "calibration") else str(path)


def _own_rows(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows that say what is right, and what is noted of their file."""
    from agentkit.training.rows import rows_from_jsonl

    rows = rows_from_jsonl(path)
    kept = [row for row in rows if row.expected is not None]
    if len(kept) < len(rows):
        say(f"{path}: {len(rows) - len(kept)} rows do not say what is right: passed over")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return kept, {"source": path.name, "sha256": digest, "rows": len(kept)}
