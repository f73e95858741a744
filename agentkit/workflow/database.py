"""SQLite connections that several threads and processes share."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

from agentkit.errors import CheckpointError, RunError

BUSY_SECONDS = 30.0


def connect(path: Path | None) -> sqlite3.Connection:
    """Open a database in write-ahead mode; None opens one in memory.

    Raises `CheckpointError` if the file is not a sound database, `RunError` if it stays locked.
    """
    if path is None:
        return sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the folder of the run database: {error.strerror}", where=str(path)
        ) from error
    with guarded(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        _enter_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait for other processes here, so waiting is done by hand."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def guarded(path: Path | None) -> Iterator[None]:
    """Turn SQLite's errors into `CheckpointError` (damage) and `RunError` (locked, disk full)."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        where = str(path) if path else "in-memory database"
        text = str(error)
        if isinstance(error, sqlite3.OperationalError) and _is_weather(text):
            raise RunError(f"the run database is unavailable: {text}", where=where) from error
        raise CheckpointError(
            f"the run database is damaged: {text}",
            where=where,
            hint="move the file away; its runs must be started again",
        ) from error


def _is_weather(text: str) -> bool:
    passing = ("locked", "busy", "full", "unable to open", "readonly", "interrupted", "disk I/O")
    return any(word in text for word in passing)


class Table:
    """Stateful: a table of its own in the database of a run store. Safe for threads."""

    schema: ClassVar[str]
    """The statement that makes it where it is not there."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = connect(path)
        with self.open() as connection:
            connection.execute(self.schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; raises what `guarded` raises."""
        with self._lock, guarded(self._path):
            yield self._connection


def process_identity() -> str:
    """Names this process for as long as the machine runs: a later one never has the same name."""
    return f"{os.getpid()}:{_started(os.getpid())}"


def is_alive(identity: str) -> bool:
    """Whether the process of that name still runs on this machine."""
    pid, _, started = identity.partition(":")
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty where /proc does not tell it.

    A process that ended and waits for its parent counts as ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in ("Z", "X") else fields[19]
