"""`agentkit eval`: a skill over labelled rows, measured and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table, say, stderr
from agentkit.errors import InputError, MissingExtraError, SkillError
from agentkit.types import Json

if TYPE_CHECKING:
    from agentkit.engine.engine import Engine
    from agentkit.evaluation.baselines import Predictor
    from agentkit.evaluation.report import Evaluation
    from agentkit.evaluation.scoring import Prediction
    from agentkit.kit import Kit
    from agentkit.skill.folder import Skill
    from agentkit.skill.manifest import Manifest
    from agentkit.training.rows import Row

FAILED, SOME_FAILED = 1, 3
_SHOWN = 3
"""So many of the rows that failed are named."""
_BASE_HEAD = (
    "base is read by the skill's own task head, trained with its adapter: a head trained for the "
    "bare backbone would do better (agentkit train --out DIR --with method=head --with epochs=20 "
    "--with start_from=null)"
)


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    skill: Annotated[str, typer.Argument(help="A skill's name, or NAME@VERSION.")],
    data: Annotated[Path, typer.Option(help='JSONL rows: {"input": {...}, "expected": {...}}.')],
    predictions: Annotated[
        Path | None, typer.Option(help="Where to write one prediction per row, in order.")
    ] = None,
    all_scores: Annotated[
        bool, typer.Option(help="Lower the thresholds of the written predictions to zero.")
    ] = False,
    base: Annotated[
        bool,
        typer.Option(
            "--base",
            help="Compare with the bare backbone, scored the same way. It is read by the skill's "
            "own task head: one that was trained with the adapter gives lower figures there than "
            "a head trained for the backbone would.",
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare with another version: a folder, the digest of one that was served, or "
            "another skill's name.",
            metavar="DIR_OR_VERSION",
        ),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Compare with cheap baselines; needs --train-data.")
    ] = False,
    train_data: Annotated[
        Path | None, typer.Option(help="JSONL rows that the baselines may learn from.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json and the pictures.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(help="Resamples of the intervals; 0 leaves them out.", min=0)
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Measure a skill on labelled rows, with intervals, beside what it should be better than.

    Rows without `expected` are answered, not measured. Exits with 1 if a floor of skill.yaml is
    missed or every row failed, with 3 if some rows failed.
    """
    from agentkit.evaluation.evaluate import evaluate as measure
    from agentkit.evaluation.evaluate import text_reader
    from agentkit.evaluation.report import check_floors
    from agentkit.evaluation.scoring import scorable
    from agentkit.kit import Kit

    rows = _rows(data)
    learnt = _rows(train_data) if train_data is not None else []
    if baseline and not learnt:
        raise InputError("a baseline learns from rows", hint="give them with --train-data")
    _check_outputs(predictions, out)
    with ExitStack() as open_, Kit(settings_from(set_), skills=skills or ()) as kit:
        chosen = kit.named(skill)
        if any(scorable(chosen.manifest, row.expected) for row in rows):
            check_floors(chosen.manifest)
        elif predictions is None:
            raise InputError(
                "no row says what is right",
                where=str(data),
                hint='give rows an "expected", or ask for --predictions',
            )
        unmeasured = sum(
            row.expected is not None and not scorable(chosen.manifest, row.expected) for row in rows
        )
        if unmeasured:
            say(f"{unmeasured} rows expect no field that the skill gives: not measured")
        compared = _predictors(kit, open_, chosen, base, against, learnt if baseline else [])
        if base and _shaped_head(chosen):
            say(_BASE_HEAD, label="note")
        writer = open_.enter_context(_InOrder(predictions)) if predictions else None

        errors: dict[int, str] = {}

        def took(at: int, prediction: Prediction) -> None:
            if prediction.error is not None:
                errors[at] = prediction.error
            if writer is not None:
                writer.put(at, _as_json(prediction, all_scores))

        with _progress() as progress:
            task = progress.add_task(skill, total=len(rows))
            evaluation = measure(
                chosen.manifest,
                rows,
                compared,
                text_of=text_reader(chosen.manifest, lambda digest: kit.documents.get(digest).text),
                on_prediction=took,
                on_progress=lambda count: progress.advance(task, count),
                resamples=resamples,
                seed=seed,
            )
        backbone = {"name": kit.settings.backbone, "fingerprint": kit.engine.fingerprint}
    if predictions is not None:
        say(f"{len(rows)} rows, {len(errors)} failed -> {predictions}")
    _say_failed(errors, len(rows))
    for name, subject in evaluation.others.items() if evaluation else ():
        if subject.failed:
            say(f"{name}: {subject.failed} rows failed, counted as wrong")
    floors = evaluation.floors(chosen.manifest) if evaluation else []
    if evaluation is not None:
        record = {
            "skill": chosen.name,
            "digest": chosen.digest,
            "backbone": backbone,
            "data": {"file": data.name, "sha256": sha256(data.read_bytes()).hexdigest()},
            **evaluation.to_json(),
            "floors": [floor.to_json() for floor in floors],
        }
        _report(evaluation, record, out, as_json)
    missed = [floor for floor in floors if not floor.met]
    for floor in missed:
        say(str(floor), label="floor missed", style="red")
    if missed or len(errors) == len(rows):
        raise typer.Exit(FAILED)
    if errors:
        raise typer.Exit(SOME_FAILED)


# ---------------------------------------------------------------- what is compared


def _predictors(
    kit: Kit,
    open_: ExitStack,
    skill: Skill,
    base: bool,
    against: str | None,
    learnt: Sequence[Row],
) -> dict[str, Predictor]:
    from agentkit.evaluation.baselines import baselines
    from agentkit.evaluation.serving import BareEngine, SkillPredictor

    def served(one: Skill, engine: Engine | None = None) -> SkillPredictor:
        return SkillPredictor(
            one,
            engine=engine or kit.engine,
            encoder=kit.encoder,
            documents=kit.documents,
            settings=kit.settings,
        )

    cheap = baselines(skill.manifest, learnt) if learnt else {}
    other = _other_version(kit, skill, against) if against is not None else None
    if other is not None:
        _check_comparable(skill.manifest, other.manifest, f"--against {against}")
    if skill.name in ("base", "against", *cheap):
        raise InputError(
            f"{skill.name!r} is what a line beside the skill's own is called",
            where=skill.name,
            hint="evaluate a copy of its folder under another name",
        )
    predictors: dict[str, Predictor] = {skill.name: served(skill)}
    if base:
        predictors["base"] = served(skill, open_.enter_context(BareEngine.open(kit.settings)))
    if other is not None:
        predictors["against"] = served(other)
    return predictors | cheap


def _other_version(kit: Kit, skill: Skill, given: str) -> Skill:
    """The skill in a folder, in the store by the beginning of its digest, or another by name."""
    from agentkit.skill.folder import is_skill_folder, load_skill

    if is_skill_folder(Path(given)):
        try:
            return kit.store.admit(load_skill(Path(given), name=skill.name))
        except SkillError:
            return kit.store.admit(load_skill(Path(given)))
    if given in kit.skills or "@" in given:
        return kit.named(given)
    found = sorted(kit.store.directory.glob(f"{given}*")) if given.isalnum() else []
    if len(found) == 1:
        return kit.store.get(found[0].name, skill.name)
    raise InputError(
        f"{len(found)} versions begin with it" if found else "no such version",
        where=f"--against {given}",
        hint="give a skill folder, the digest of a version that was served, or a skill's name",
    )


def _check_comparable(one: Manifest, other: Manifest, where: str) -> None:
    """Raises `InputError` where another skill's answers would be wrong by their form alone."""
    from agentkit.evaluation.scoring import expected_fields

    gives, wanted = (", ".join(sorted(expected_fields(m))) or "text" for m in (other, one))
    if one.answer.kind != other.answer.kind or gives != wanted:
        raise InputError(
            f"it gives {gives} ({other.answer.kind}), not {wanted} ({one.answer.kind})",
            where=where,
            hint="name a version of the same skill",
        )


def _shaped_head(skill: Skill) -> bool:
    """Whether what answers is a task head that was trained on the adapter's states."""
    manifest = skill.manifest
    by_head = manifest.answer.kind == "marks" or bool(manifest.head_choices)
    # A probe reads below the adapter, and a head without an adapter is the bare backbone's own.
    return skill.adapter and skill.head and by_head and not manifest.probes


# ---------------------------------------------------------------- what is said


def _say_failed(errors: Mapping[int, str], rows: int) -> None:
    """The first rows that failed, each with its reason, and how many there are."""
    for at in sorted(errors)[:_SHOWN]:
        say(f"row {at + 1}: {errors[at]}", label="failed", style="red")
    if errors:
        more = f", the first {_SHOWN} above" if len(errors) > _SHOWN else ""
        say(f"{len(errors)} of {rows} rows failed{more}")


def _report(evaluation: Evaluation, record: Json, out: Path | None, as_json: bool) -> None:
    if out is not None:
        _write(out, evaluation, record)
    if as_json:
        print_json(record)
        return
    print_table(*evaluation.table())
    if labels := evaluation.skill.details.get("labels", {}):
        typer.echo()
        columns = list(next(iter(labels.values())))
        print_table(
            ["label", *columns],
            [
                [name, *("" if one[column] is None else str(one[column]) for column in columns)]
                for name, one in labels.items()
            ],
        )
    say(f"{evaluation.rows} rows over {evaluation.documents} documents measured")


def _write(out: Path, evaluation: Evaluation, record: Json) -> None:
    from agentkit.evaluation.pictures import draw_all

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (out / "evaluation.json").write_text(text, encoding="utf-8")
    say(f"-> {out / 'evaluation.json'}")
    try:
        for path in draw_all(out, evaluation):
            say(f"-> {path}")
    except MissingExtraError as error:
        say(str(error), label="no pictures", style="yellow")


# ---------------------------------------------------------------- rows in, predictions out


def _check_outputs(predictions: Path | None, out: Path | None) -> None:
    """Raises `InputError` for places that could not be written to after all the work."""
    if predictions is not None:
        if predictions.is_dir():
            raise InputError(
                "a folder, not a file", where=f"--predictions {predictions}", hint="name a file"
            )
        if not predictions.absolute().parent.is_dir():
            raise InputError("no such folder", where=str(predictions.parent), hint="make it first")
    if out is not None:
        there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        if not there.is_dir():
            raise InputError(
                f"{there.name} is a file, not a folder", where=f"--out {out}", hint="name a folder"
            )


def _rows(path: Path) -> list[Row]:
    from agentkit.training.rows import rows_from_jsonl

    rows = rows_from_jsonl(path)
    if not rows:
        raise InputError("no rows", where=str(path))
    return rows


def _as_json(prediction: Prediction, all_scores: bool) -> Json:
    if prediction.error is not None:
        return {"output": None, "error": prediction.error}
    return {"output": prediction.scores if all_scores else prediction.output}


class _InOrder:
    """Stateful: a JSONL file that appears whole, and whose lines may come in any order.

    A line that comes early waits in memory until those before it are written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._early: dict[int, str] = {}
        self._next = 0
        self._file: TextIO | None = None

    def __enter__(self) -> _InOrder:
        self._file = self._part.open("w", encoding="utf-8")
        return self

    def put(self, at: int, value: Json) -> None:
        """Write the value as line `at`, as soon as all lines before it are there."""
        self._early[at] = json.dumps(value, ensure_ascii=False)
        while self._file is not None and self._next in self._early:
            self._file.write(self._early.pop(self._next) + "\n")
            self._next += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=stderr,
    )
