"""A workflow over one document or many, with progress, and its reports."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from agentkit.cli.output import print_line, say, stderr
from agentkit.errors import AgentkitError, InputError, OutputError
from agentkit.kit import Kit
from agentkit.modelfolder import write_json
from agentkit.report import Report, build_report, write_report
from agentkit.report.model import PARTS
from agentkit.report.record import run_of
from agentkit.report.write import FILES
from agentkit.routing.learning import Learnt
from agentkit.training.jsonl import numbered_jsonl
from agentkit.types import Json
from agentkit.workflow.compile import CompiledWorkflow
from agentkit.workflow.graph import to_mermaid, to_svg
from agentkit.workflow.inputs import prepare
from agentkit.workflow.program import validate
from agentkit.workflow.run import Event, RunOutcome, resume, start
from agentkit.workflow.spec import WorkflowSpec, parse_spec
from agentkit.workflow.store import new_run_id

SOME_FAILED = 3
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REFERENCE = "$document"
_OUTPUTS = "outputs.json"


class Job:
    """One workflow bound to a kit, run any number of times.

    Stateful: the backbone is loaded for the first inputs that pass their checks, so what is wrong
    with a workflow or its inputs is said at once. Raises `WorkflowError` for an unknown skill.
    """

    def __init__(self, kit: Kit, spec: WorkflowSpec, folder: Path) -> None:
        validate(spec, tuple(kit.skills))
        self._kit = kit
        self._spec = spec
        self._folder = folder
        self._bound: dict[tuple[tuple[tuple[str, str], ...], Learnt], CompiledWorkflow] = {}

    def _compiled(self, digests: Mapping[str, str]) -> CompiledWorkflow:
        """The workflow bound to those versions of its skills and to what people have taught the
        controller; bound once to each set of them."""
        key = (tuple(digests.items()), self._kit.learnt)
        if key not in self._bound:
            with stderr.status("loading the backbone"):
                self._bound[key] = self._kit.compile(
                    self._spec, folder=self._folder, digests=digests
                )
        return self._bound[key]

    def one(self, inputs: Mapping[str, Json], out: Path | None) -> tuple[Json, Mapping[str, Path]]:
        """Run once; returns the report's JSON (the outputs, if there is no document) and the files
        written into `out`. Raises what the run raised."""
        readers = self._kit.readers(self._folder)
        prepared = prepare(self._spec, inputs, self._kit.documents, readers)
        run_id = new_run_id()
        serving = self._kit.serve(run_id, prepared)
        compiled = self._compiled(serving.digests)
        with _Display(self._spec) as display, _interruptible(self._kit):
            outcome = start(
                compiled,
                prepared,
                store=self._kit.runs,
                run_id=run_id,
                skills=serving.digests,
                versions=serving.versions,
                backbone=self._kit.engine.fingerprint,
                on_event=display.show,
            )
        return _told(self._kit, self._spec, compiled, outcome, out)

    def many(self, rows: Sequence[tuple[str, Mapping[str, Json]]], out: Path) -> int:
        """Run for every row, one folder per id; one that fails does not stop the others."""
        failed = waiting = 0
        for number, (name, inputs) in enumerate(rows, start=1):
            say(f"({number}/{len(rows)})", label=name)
            try:
                _, files = self.one(typed(self._spec, inputs), out / name)
            except AgentkitError as error:
                say(f"{name}: {error}", label="failed", style="red")
                failed += 1
                continue
            waiting += not files
            for path in files.values():
                print_line(path)
        waits = f", {waiting} waiting for a person" if waiting else ""
        say(f"{len(rows) - failed - waiting} of {len(rows)} done{waits}")
        if failed:
            return 1 if failed == len(rows) else SOME_FAILED
        return 0


def resumed(
    kit: Kit, run_id: str, decision: Json, out: Path | None
) -> tuple[Json, Mapping[str, Path]]:
    """Go on with a run, with the skills and the controller that it began with; as `Job.one`."""
    record = kit.runs.show(run_id)
    spec = parse_spec(kit.runs.spec(run_id)[0], name=f"run {run_id}")
    with stderr.status("loading the backbone"):
        compiled = kit.compile(spec, digests=record.skills, as_of=record.started)
    for part, had, has in (
        ("backbone", record.backbone, compiled.backbone),
        ("encoder", record.encoder, compiled.encoder),
    ):
        if had not in ("", has) and record.status != "done":
            raise InputError(
                f"run {run_id!r} began with another {part}, {had[:12]}, and {has[:12]} would do "
                "the rest",
                hint=f"resume it with the same --set {part}=... and --skills",
            )
    with _Display(spec) as display, _interruptible(kit):
        outcome = resume(compiled, run_id, decision, store=kit.runs, on_event=display.show)
    return _told(kit, spec, compiled, outcome, out)


def _told(
    kit: Kit, spec: WorkflowSpec, compiled: CompiledWorkflow, outcome: RunOutcome, out: Path | None
) -> tuple[Json, Mapping[str, Path]]:
    if outcome.error is not None:
        raise outcome.error
    if outcome.status == "waiting":
        say(
            f"run {outcome.id} waits for a person; go on with: "
            f"agentkit runs resume {outcome.id} --decide SKILL"
        )
        return {"run": outcome.id, "waiting": list(outcome.waiting)}, {}
    record = kit.runs.show(outcome.id)
    reference = next(
        (v for v in record.inputs.values() if isinstance(v, Mapping) and _REFERENCE in v), None
    )
    if reference is None:
        value = {"run": outcome.id, "outputs": {}, **_given(outcome, outcome.outputs)}
        return value, {} if out is None else {_OUTPUTS: _only_outputs(value, out)}
    document = kit.documents.get(str(reference[_REFERENCE]))
    try:
        report = build_report(outcome.outputs, document, run_of(outcome, record, compiled.program))
    except OutputError:
        if out is not None:
            whole = _only_outputs({"run": outcome.id, **_given(outcome, outcome.outputs)}, out)
            say(f"no report; what the workflow gave -> {whole}")
        raise
    others = {name: value for name, value in outcome.outputs.items() if name not in PARTS}
    beside = _given(outcome, others)
    files: dict[str, Path] = {}
    if out is not None:
        files |= write_report(
            report, document, out, graph_svg=to_svg(spec), mermaid=to_mermaid(spec)
        )
        with suppress(OSError):  # an earlier run's
            (out / _OUTPUTS).unlink()
        if beside:
            files[_OUTPUTS] = _write_outputs({"run": outcome.id, **beside}, out)
    _summarise(report)
    return report.as_json() | beside, files


def _only_outputs(value: Json, folder: Path) -> Path:
    """Outputs without a report; an earlier one goes: results of two never lie together."""
    path = _write_outputs(value, folder)
    if all((folder / name).is_file() for name in FILES):
        for name in FILES:
            with suppress(OSError):
                (folder / name).unlink()
    return path


def _given(outcome: RunOutcome, outputs: Mapping[str, Json]) -> dict[str, Json]:
    """Outputs, if there are any, and what the workflow's own `report:` composed."""
    given: dict[str, Json] = {"outputs": dict(outputs)} if outputs else {}
    return given if outcome.report is None else given | {"report": dict(outcome.report)}


@contextmanager
def _interruptible(kit: Kit) -> Iterator[None]:
    """Let an interrupt end the step under way too, which LangGraph would wait for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        kit.cancel()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def typed(spec: WorkflowSpec, given: Mapping[str, Json]) -> dict[str, Json]:
    """Inputs given as text, as the types that the workflow declares. Raises `InputError`."""
    values: dict[str, Json] = {}
    for name, value in given.items():
        kind = spec.inputs[name].type if name in spec.inputs else "text"
        if isinstance(value, str) and kind in ("number", "boolean", "json", "list"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", error)
                raise InputError(
                    f"input {name!r} must be a {kind}, written as JSON: {reason}",
                    where=f"--input {name}",
                ) from error
        values[name] = value
    return values


def read_rows(path: Path) -> list[tuple[str, Mapping[str, Json]]]:
    """Rows `{"id", "inputs"}` of a JSONL file. Raises `InputError` naming file and line."""
    rows: list[tuple[str, Mapping[str, Json]]] = []
    seen: set[str] = set()
    try:
        records = list(numbered_jsonl(path))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError("cannot read it", where=str(path)) from error
    for number, row in records:
        where = f"{path}:{number}"
        if not isinstance(row, dict) or not isinstance(row.get("inputs"), dict):
            raise InputError('a row is {"id": ..., "inputs": {...}}', where=where)
        name = str(row.get("id", ""))
        if not _ID.fullmatch(name) or name in seen:
            raise InputError(
                f"{name!r} is not an id of its own",
                where=where,
                hint="an id names a folder: letters, digits, dot, dash, underscore",
            )
        seen.add(name)
        rows.append((name, row["inputs"]))
    if not rows:
        raise InputError("no rows", where=str(path))
    return rows


class _Display:
    """Progress of a run, a line per step. Stateful: follows the run's events."""

    def __init__(self, spec: WorkflowSpec) -> None:
        self._spec = spec
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
            TimeElapsedColumn(),
            console=stderr,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        if event.step is None:
            return
        if event.step not in self._tasks:
            self._tasks[event.step] = self._progress.add_task(event.step, total=1, note="")
        task = self._tasks[event.step]
        if event.kind == "step_started":
            self._progress.update(task, total=event.total or 1, completed=0)
        elif event.kind == "item_done":
            self._progress.advance(task)
        elif event.kind == "step_skipped":
            self._progress.update(task, completed=1, total=1, note="skipped")
        elif event.kind == "step_finished":
            total = self._progress.tasks[self._tasks_index(task)].total
            note = f"{event.skill or ''}" + (f" {event.failed} failed" if event.failed else "")
            self._progress.update(task, completed=total, note=note)

    def _tasks_index(self, task: Any) -> int:
        return [t.id for t in self._progress.tasks].index(task)


def _write_outputs(value: Json, folder: Path) -> Path:
    """The outputs of a workflow that are no parts of a report."""
    path = folder / _OUTPUTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    except OSError as error:
        raise InputError(
            f"the outputs cannot be written: {error.strerror or error}",
            where=str(folder),
            hint="give --out a folder that can be written to",
        ) from error
    return path


def _summarise(report: Report) -> None:
    verdicts: dict[str, int] = defaultdict(int)
    for review in report.reviews:
        verdicts[review.verdict] += 1
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    say(
        f"{len(report.facts)} facts, {len(report.clauses)} clauses, "
        f"{len(report.reviews)} rules ({said or 'none'}), {len(report.findings)} findings"
    )
