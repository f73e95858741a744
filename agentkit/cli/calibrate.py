"""`agentkit calibrate`: how sure a skill's choices are, fitted to rows as they are served."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agentkit.cli.options import Set, settings_from
from agentkit.cli.output import print_json, say, stderr

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
    set_: Set = None,
) -> None:
    """Fit how sure a skill's choices are, and from where on it says that nothing speaks of a rule.

    Fits to the tuning rows of train.yaml, to its `calibration` sources and to the rows of --data,
    each as it is served, by how new a question is to the skill. Writes head.safetensors and the
    figures in metrics.json; what the adapter learnt stays as it is.
    """
    found = calibrate_folder(
        folder, settings=settings_from(set_), data_dir=data_dir, given=data or ()
    )
    print_json(found)


def calibrate_folder(
    folder: Path,
    *,
    settings: Settings,
    data_dir: Path,
    given: Sequence[Path] = (),
    paths_from: Path | None = None,
) -> dict[str, Any]:
    """Calibrate a trained skill and note it in its records; relative paths as a training has them.

    Raises `SkillError` or `InputError` for what cannot be calibrated.
    """
    from agentkit.evaluation.calibration import (
        ReadingRunner,
        asks_again,
        calibrate_skill,
        check_calibrated,
    )
    from agentkit.evaluation.serving import SkillPredictor
    from agentkit.kit import Kit
    from agentkit.skill.folder import Skill
    from agentkit.skill.manifest_files import read_manifest
    from agentkit.training.record import write_figures
    from agentkit.training.rows import load_rows, rows_from_jsonl
    from agentkit.training.spec import load_train_spec

    manifest, _ = read_manifest(folder)
    check_calibrated(folder, manifest)
    known: Sequence[Row] = ()
    parts: dict[str, Sequence[Row]] = {}
    sources: list[dict[str, Any]] = []
    if not given or (folder / "train.yaml").exists():
        spec = load_train_spec(folder / "train.yaml")
        origin = paths_from or folder
        split = load_rows(spec, skill=origin, data_dir=data_dir)
        known, parts["tuning"] = split.train, split.tuning
        if spec.calibration:
            asked = load_rows(
                spec.model_copy(update={"data": spec.calibration}), skill=origin, data_dir=data_dir
            )
            parts["calibration"] = (*asked.train, *asked.tuning)
            sources += asked.sources
            if again := asks_again(parts["calibration"], known, manifest):
                say(
                    f"{again} of {len(parts['calibration'])} rows to calibrate on ask what the "
                    "training asks, too: of new questions they say nothing",
                    label="note",
                )
    for path in given:
        parts[path.name] = rows_from_jsonl(path)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=stderr
    )
    with Kit(settings) as kit, bar:
        task = bar.add_task(f"{manifest.name}: calibrating", total=None)

        def serve(skill: Skill) -> SkillPredictor:
            return SkillPredictor(
                kit.store.admit(skill),
                engine=kit.engine,
                encoder=kit.encoder,
                documents=kit.documents,
                settings=kit.settings,
                runner=ReadingRunner,
            )

        found = calibrate_skill(
            folder,
            known,
            parts,
            serve=serve,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if sources:
        found["data"] = sources
    record = folder / "metrics.json"
    if record.exists():
        metrics = json.loads(record.read_text(encoding="utf-8"))
        write_figures(folder, manifest, metrics | {"calibration": found})
    return found
