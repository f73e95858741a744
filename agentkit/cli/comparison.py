"""`agentkit skills compare`: versions of a skill, on the runs so far and on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentkit.cli.options import AsJson, Set, Skills, settings_from
from agentkit.cli.output import print_json, print_table
from agentkit.errors import InputError
from agentkit.skill.names import split_version
from agentkit.types import Json

if TYPE_CHECKING:
    from agentkit.evaluation.baselines import Predictor
    from agentkit.evaluation.report import Evaluation
    from agentkit.evaluation.scoring import Prediction
    from agentkit.kit import Kit
    from agentkit.skill.folder import Skill
    from agentkit.training.rows import Row
    from agentkit.workflow.live import Live

_SHOWN = 10


def compare(
    name: Annotated[
        str, typer.Argument(help="A skill's name, or NAME@2 to compare that version alone.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help='Held-out JSONL rows: {"input": {...}, "expected": {...}}.'),
    ] = None,
    runs: Annotated[int, typer.Option(help="Look at so many of the latest runs.", min=1)] = 500,
    resamples: Annotated[
        int, typer.Option(help="Resamples of the intervals; 0 leaves them out.", min=0)
    ] = 1000,
    skills: Skills = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Compare a skill's stable version with its others: on the runs so far, and on held-out rows.

    Rows without `expected` are answered by each version too, and counted where answers differ.
    """
    from agentkit.kit import Kit
    from agentkit.training.rows import rows_from_jsonl
    from agentkit.workflow.feedback import Feedback
    from agentkit.workflow.live import live_results

    rows = rows_from_jsonl(data) if data is not None else []
    if data is not None and not rows:
        raise InputError("no rows", where=str(data))
    base, wanted = split_version(name, "agentkit skills compare")
    with Kit(settings_from(set_), skills=skills or ()) as kit, Feedback(kit.runs) as feedback:
        versions = _versions(kit, base, wanted)
        corrected = [
            (one.run, one.step, one.item)
            for one in feedback.routes(runs)
            if one.outcome == "corrected"
        ]
        live = live_results(kit.runs, base, corrected=corrected, limit=runs)
        held_out = _held_out(kit, versions, rows, resamples) if rows else None
    if as_json:
        print_json(
            {
                "skill": base,
                "versions": {label: skill.digest for label, skill in versions.items()},
                "live": [one.to_json() for one in live],
                "held_out": None if held_out is None else held_out.to_json(),
            }
        )
        return
    _show_live(base, live)
    if held_out is not None:
        typer.echo()
        held_out.show()


def _versions(kit: Kit, name: str, wanted: str | None) -> dict[str, Skill]:
    """The stable version first, then the wanted one or all others."""
    from agentkit.skill.release import Release, label

    snapshot = kit.registry.snapshot
    stable = kit.releases.read().get(name, Release()).stable
    there: dict[str | None, Skill] = {}
    if name in snapshot.skills:
        there[None] = snapshot.skills[name]
    there.update(snapshot.versions.get(name, {}))
    if not there:
        raise InputError(
            f"there is no skill {name!r}", hint=f"installed: {', '.join(snapshot.skills)}"
        )
    if wanted is not None and wanted not in there:
        kit.find(label(name, wanted))
    first = stable if stable in there else next(iter(there))
    others = [version for version in there if version != first and wanted in (None, version)]
    if not others:
        raise InputError(
            f"{label(name, first)} is the only version to compare",
            hint=f"another one lies in a folder of its own beside it, such as {name}@2",
        )
    return {label(name, version): there[version] for version in (first, *others)}


class _Kept:
    """Stateful: a predictor that answers each row once and keeps the answer."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._answers: dict[int, Prediction] = {}

    def __call__(self, rows: Sequence[Row]) -> list[Prediction]:
        new = [row for row in rows if id(row) not in self._answers]
        if new:
            answers = self._predictor(new)
            self._answers |= {id(row): one for row, one in zip(new, answers, strict=True)}
        return [self._answers[id(row)] for row in rows]


class _HeldOut:
    """The versions over held-out rows: figures where rows say what is right, and differences."""

    def __init__(
        self, evaluation: Evaluation | None, answers: Mapping[str, Sequence[Prediction]]
    ) -> None:
        self._evaluation = evaluation
        self._answers = answers

    def differing(self) -> dict[str, list[int]]:
        """By version, the rows (from 0) that it answers otherwise than the stable one."""
        (_, stable), *others = self._answers.items()
        return {
            label: [
                at
                for at, (mine, theirs) in enumerate(zip(stable, answers, strict=True))
                if (mine.output, mine.error is None) != (theirs.output, theirs.error is None)
            ]
            for label, answers in others
        }

    def to_json(self) -> dict[str, Json]:
        rows = len(next(iter(self._answers.values())))
        return {
            "rows": rows,
            "measured": None if self._evaluation is None else self._evaluation.to_json(),
            "failed": {
                label: sum(one.error is not None for one in answers)
                for label, answers in self._answers.items()
            },
            "differing_rows": self.differing(),
        }

    def show(self) -> None:
        stable = next(iter(self._answers))
        if self._evaluation is not None:
            columns, lines = self._evaluation.table()
            print_table([columns[0], stable, *columns[2:]], lines)
            typer.echo()
        rows = len(self._answers[stable])
        for label, different in self.differing().items():
            shown = ", ".join(str(at + 1) for at in different[:_SHOWN])
            more = ", ..." if len(different) > _SHOWN else ""
            typer.echo(
                f"{label} answers {len(different)} of {rows} rows otherwise than {stable}"
                + (f": rows {shown}{more}" if different else "")
            )


def _held_out(
    kit: Kit, versions: Mapping[str, Skill], rows: Sequence[Row], resamples: int
) -> _HeldOut:
    from agentkit.evaluation.evaluate import evaluate, text_reader
    from agentkit.evaluation.serving import SkillPredictor

    predictors = {
        label: _Kept(
            SkillPredictor(
                skill,
                engine=kit.engine,
                encoder=kit.encoder,
                documents=kit.documents,
                settings=kit.settings,
            )
        )
        for label, skill in versions.items()
    }
    manifest = next(iter(versions.values())).manifest
    evaluation = evaluate(
        manifest,
        rows,
        predictors,
        text_of=text_reader(manifest, lambda digest: kit.documents.get(digest).text),
        resamples=resamples,
    )
    return _HeldOut(evaluation, {label: one(rows) for label, one in predictors.items()})


def _show_live(name: str, live: Sequence[Live]) -> None:
    from agentkit.skill.release import label

    if not live:
        typer.echo("no run has used it yet")
        return
    told = [one.to_json() for one in live]
    print_table(
        ("version", "digest", "runs", "failed", "calls", "corrected", "seconds", "tokens", "score"),
        [
            (
                label(name, one.version),
                one.digest[:12],
                str(one.runs),
                str(one.failed_runs),
                str(one.calls),
                str(one.corrected),
                _number(line["seconds_per_call"]),
                _number(line["tokens_per_call"]),
                _number(line["mean_score"]),
            )
            for one, line in zip(live, told, strict=True)
        ],
    )
    answers = sorted({key for line in told for key in line["answers_per_call"]})
    if answers:
        typer.echo()
        print_table(
            ("per call", *(f"{label(name, one.version)} {one.digest[:6]}" for one in live)),
            [
                (key, *(_number(line["answers_per_call"].get(key, 0.0)) for line in told))
                for key in answers
            ],
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
