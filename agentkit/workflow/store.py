"""Run records in SQLite: which runs there are, how they stand, and each step's result once."""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentkit.errors import CheckpointError, InputError, RunError
from agentkit.types import Json, RunRecord
from agentkit.workflow.database import connect, guarded, is_alive, process_identity
from agentkit.workflow.records import Record

if TYPE_CHECKING:
    from langgraph.checkpoint.sqlite import SqliteSaver

Status = Literal["running", "done", "failed", "interrupted", "waiting"]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY,
    workflow TEXT NOT NULL,
    spec TEXT NOT NULL,
    spec_digest TEXT NOT NULL,
    status TEXT NOT NULL,
    started TEXT NOT NULL,
    finished TEXT,
    inputs TEXT NOT NULL,
    skills TEXT NOT NULL,
    backbone TEXT NOT NULL,
    owner TEXT NOT NULL,
    error TEXT
);
CREATE TABLE IF NOT EXISTS step_results (
    run TEXT NOT NULL REFERENCES runs(id),
    step TEXT NOT NULL,
    item INTEGER NOT NULL,
    record TEXT NOT NULL,
    finished TEXT NOT NULL,
    PRIMARY KEY (run, step, item)
);
CREATE TABLE IF NOT EXISTS run_versions (
    run TEXT NOT NULL REFERENCES runs(id),
    skill TEXT NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (run, skill)
);
CREATE TABLE IF NOT EXISTS run_encoders (
    run TEXT PRIMARY KEY REFERENCES runs(id),
    encoder TEXT NOT NULL
)
"""
_RUNS = "SELECT runs.*, encoder FROM runs LEFT JOIN run_encoders ON run = id"
_WHOLE_STEP = -1


def new_run_id() -> str:
    """A short id; ids sort by the millisecond in which they were made."""
    stamp = time.time_ns() // 1_000_000
    digits = [_ALPHABET[(stamp >> (5 * place)) & 31] for place in reversed(range(9))]
    return "".join([*digits, *(secrets.choice(_ALPHABET) for _ in range(4))])


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RunStore:
    """Stateful: one database of runs, shared by any number of threads and processes.

    `path=None` keeps everything in memory. Also a context manager that closes it.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._lock = threading.RLock()
        self._saver: SqliteSaver | None = None
        self._connection = connect(self.path)
        with self._transaction() as connection:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            if self._saver is not None:
                from agentkit.workflow.checkpoints import forget

                forget(self._saver)
                self._saver = None

    @property
    def saver(self) -> SqliteSaver:
        """LangGraph's checkpointer on the same database."""
        from agentkit.workflow.checkpoints import open_saver

        with self._lock:
            if self._saver is None:
                self._saver = open_saver(self.path)
            return self._saver

    # ------------------------------------------------------------ runs

    def create(
        self,
        *,
        workflow: str,
        spec: str,
        spec_digest: str,
        inputs: Mapping[str, Json],
        skills: Mapping[str, str],
        backbone: str,
        run_id: str | None = None,
        versions: Mapping[str, str] | None = None,
        encoder: str = "",
    ) -> str:
        """Begin a run and return its id. `versions` names those of `skills` that come from a folder
        with a version. Raises `InputError` if the id is taken or malformed."""
        run_id = run_id or new_run_id()
        if not _RUN_ID.fullmatch(run_id):
            raise InputError(
                f"{run_id!r} is not a run id", hint="letters, digits, - and _, at most 64"
            )
        row = (
            run_id,
            workflow,
            spec,
            spec_digest,
            "running",
            now(),
            json.dumps(inputs),
            json.dumps(dict(skills)),
            backbone,
            process_identity(),
        )
        try:
            with self._transaction() as connection:
                connection.execute(
                    "INSERT INTO runs (id, workflow, spec, spec_digest, status, started, inputs,"
                    " skills, backbone, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
                connection.executemany(
                    "INSERT INTO run_versions (run, skill, version) VALUES (?, ?, ?)",
                    [(run_id, *pair) for pair in (versions or {}).items()],
                )
                connection.execute("INSERT INTO run_encoders VALUES (?, ?)", (run_id, encoder))
        except _TakenError as error:
            raise InputError(
                f"there is a run {run_id!r} already", hint="resume it, or choose another id"
            ) from error
        return run_id

    def claim(self, run_id: str) -> None:
        """Take a run over, to go on with it.

        Raises `RunError` while the process that works on it is alive.
        """
        me = process_identity()
        with self._transaction() as connection:
            row = self._row(connection, run_id)
            owner, status = row["owner"], row["status"]
            if status == "running" and owner != me and is_alive(owner):
                raise RunError(
                    f"run {run_id!r} is being worked on by process {owner.partition(':')[0]}",
                    hint="wait until it ends",
                )
            connection.execute(
                "UPDATE runs SET owner = ?, status = 'running', finished = NULL, error = NULL"
                " WHERE id = ?",
                (me, run_id),
            )

    def finish(self, run_id: str, status: Status, error: str | None = None) -> None:
        """Say how a run stands now that its process lets go of it."""
        finished = None if status == "waiting" else now()
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET status = ?, finished = ?, error = ? WHERE id = ?",
                (status, finished, error, run_id),
            )

    def show(self, run_id: str) -> RunRecord:
        """A run with its step results. Raises `InputError` if there is none of that id."""
        with self._transaction(write=False) as connection:
            row = self._row(connection, run_id)
            results = connection.execute(
                "SELECT step, item, record, finished FROM step_results WHERE run = ?"
                " ORDER BY rowid",
                (run_id,),
            ).fetchall()
            versions = self._versions(connection, run_id)
        return self._record(row, results, versions)

    def list(self, limit: int = 50) -> tuple[RunRecord, ...]:
        """The latest runs, newest first, without their steps."""
        with self._transaction(write=False) as connection:
            rows = connection.execute(
                f"{_RUNS} ORDER BY started DESC, id DESC LIMIT ?", (limit,)
            ).fetchall()
            versions = {row["id"]: self._versions(connection, row["id"]) for row in rows}
        return tuple(self._record(row, (), versions[row["id"]]) for row in rows)

    def spec(self, run_id: str) -> tuple[str, str]:
        """A run's workflow: YAML, and the digest of what it says."""
        with self._transaction(write=False) as connection:
            row = self._row(connection, run_id)
        return row["spec"], row["spec_digest"]

    # ------------------------------------------------------------ step results

    def results(self, run_id: str, step: str) -> dict[int | None, Record]:
        """A step's recorded results, by item; a step without `for_each` has the item None."""
        with self._transaction(write=False) as connection:
            rows = connection.execute(
                "SELECT item, record FROM step_results WHERE run = ? AND step = ?", (run_id, step)
            ).fetchall()
        return {
            None if row["item"] == _WHOLE_STEP else row["item"]: self._json(row["record"])
            for row in rows
        }

    def add_result(self, run_id: str, step: str, item: int | None, record: Record) -> Record:
        """Record a result unless there is one; return the one that is recorded."""
        key = (run_id, step, _WHOLE_STEP if item is None else item)
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO step_results (run, step, item, record, finished)"
                " VALUES (?, ?, ?, ?, ?)",
                (*key, json.dumps(record), now()),
            )
            row = connection.execute(
                "SELECT record FROM step_results WHERE run = ? AND step = ? AND item = ?", key
            ).fetchone()
        kept: Record = self._json(row["record"])
        return kept

    def recorder(self, run_id: str) -> RunRecorder:
        return RunRecorder(self, run_id)

    # ------------------------------------------------------------ inside

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock, guarded(self.path):
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except sqlite3.IntegrityError as error:
                raise _TakenError(str(error)) from error
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _row(self, connection: sqlite3.Connection, run_id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute(f"{_RUNS} WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise InputError(
                f"there is no run {run_id!r}", hint="agentkit runs ls lists the runs there are"
            )
        return row

    @staticmethod
    def _versions(connection: sqlite3.Connection, run_id: str) -> dict[str, str]:
        rows = connection.execute(
            "SELECT skill, version FROM run_versions WHERE run = ? ORDER BY skill", (run_id,)
        ).fetchall()
        return {row["skill"]: row["version"] for row in rows}

    def _record(
        self, row: sqlite3.Row, results: Sequence[sqlite3.Row], versions: Mapping[str, str]
    ) -> RunRecord:
        # A process that was killed could not say so.
        left = row["status"] == "running" and not is_alive(row["owner"])
        return RunRecord(
            id=row["id"],
            workflow=row["workflow"],
            status="interrupted" if left else row["status"],
            started=row["started"],
            finished=row["finished"],
            inputs=self._json(row["inputs"]),
            skills=self._json(row["skills"]),
            backbone=row["backbone"],
            steps=tuple(
                {
                    "step": result["step"],
                    "item": None if result["item"] == _WHOLE_STEP else result["item"],
                    "finished": result["finished"],
                    "record": self._json(result["record"]),
                }
                for result in results
            ),
            error=row["error"],
            versions=versions,
            # None: kept by a release that did not know of it.
            encoder=row["encoder"] or "",
        )

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"the run database holds a damaged record: {error}",
                where=str(self.path or "in-memory database"),
                hint="start the run again",
            ) from error


class RunRecorder:
    """Stateful: writes one run's step results to its store."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self._store = store
        self._run_id = run_id

    def done(self, step: str) -> Mapping[int | None, Record]:
        return self._store.results(self._run_id, step)

    def add(self, step: str, item: int | None, record: Record) -> Record:
        return self._store.add_result(self._run_id, step, item, record)


class _TakenError(Exception):
    """A row with that key is there."""
