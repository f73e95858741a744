"""Vectors of texts on disk, so that no process embeds what another one has embedded."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["RememberedVectors", "Row"]

Row = NDArray[np.float32]

_AT_ONCE = 500
"""Keys of one question; every SQLite takes 999."""
_WAIT_SECONDS = 5.0
_MOST = 100_000
"""Rows kept; beyond that, those written longest ago go."""
_TABLE = """
CREATE TABLE IF NOT EXISTS vectors (
    place INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, row BLOB NOT NULL, crc INTEGER NOT NULL
)
"""


class RememberedVectors:
    """Rows of float32 by their digests, in an SQLite file that processes share.

    It is a help and never a need: a damaged row counts as missing, a file that is no database is
    begun afresh, and where the file can be neither read nor written nothing is remembered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """The rows that are known."""
        found: dict[bytes, Row] = {}

        def select(database: sqlite3.Connection) -> None:
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                wanted = ",".join("?" * len(some))
                statement = f"SELECT key, row, crc FROM vectors WHERE key IN ({wanted})"
                for key, row, crc in database.execute(statement, some):
                    if zlib.crc32(key + row) == crc:
                        found[key] = np.frombuffer(row, "<f4").astype(np.float32)

        if self._path.exists():
            self._transact(select)
        return found

    def write(self, rows: Mapping[bytes, Row]) -> None:
        """Keep these rows, in place of those of the same keys."""
        encoded = [(key, row.astype("<f4").tobytes()) for key, row in rows.items()]

        def insert(database: sqlite3.Connection) -> None:
            database.executemany(
                "INSERT OR REPLACE INTO vectors (key, row, crc) VALUES (?, ?, ?)",
                [(key, row, zlib.crc32(key + row)) for key, row in encoded],
            )
            database.execute(
                "DELETE FROM vectors WHERE place <= (SELECT max(place) FROM vectors) - ?", [_MOST]
            )

        if not self._transact(insert):
            self._transact(insert)

    def _transact(self, work: Callable[[sqlite3.Connection], None]) -> bool:
        """Do it as a whole or not at all; False where the file was none of ours and is gone now."""
        with suppress(OSError, sqlite3.OperationalError):  # read-only, full, locked for too long
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as database:
                    # A loss of power may damage the file, which is then begun afresh.
                    database.execute("PRAGMA synchronous = OFF")
                    with database:
                        database.execute(_TABLE)
                        work(database)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._path.unlink(missing_ok=True)
                return False
        return True
