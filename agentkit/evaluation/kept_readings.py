"""What a head said of rows, on disk for as long as a calibration is not done: it may be killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from agentkit.training.rows import Row
from agentkit.types import Reading

Readings = tuple[Reading, ...]
"""Of one row, what the head said of each window that was read."""


class KeptReadings:
    """Stateful: readings of batches of rows, of one skill as it is served now.

    They lie in `folder`, which is of one skill, under a name of their own: `named` says all that
    they depend on besides the rows. What was kept there of another state of the skill goes.
    """

    def __init__(self, folder: Path, named: str) -> None:
        self._folder = folder / hashlib.sha256(named.encode()).hexdigest()[:16]
        for other in folder.glob("*/") if folder.exists() else ():
            if other != self._folder:
                shutil.rmtree(other, ignore_errors=True)

    def get(self, rows: Sequence[Row]) -> list[Readings] | None:
        """What was kept of these rows, in order; None if nothing was, or not all of it."""
        try:
            with np.load(self._file(rows)) as kept:
                counts, choices, questions = kept["counts"], kept["choices"], kept["questions"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        windows = iter(
            [Reading(choices=c, question=q) for c, q in zip(choices, questions, strict=True)]
        )
        return [tuple(next(windows) for _ in range(count)) for count in counts]

    def put(self, rows: Sequence[Row], readings: Sequence[Readings]) -> None:
        """Keep them, whole or not at all; a full disk costs a later start its time, no more."""
        with suppress(OSError):
            self._write(self._file(rows), readings)

    def _write(self, file: Path, readings: Sequence[Readings]) -> None:
        windows = [reading for own in readings for reading in own]
        fresh = file.with_suffix(".fresh")
        self._folder.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as opened:
            np.savez(
                opened,
                counts=np.array([len(own) for own in readings], dtype=np.int64),
                choices=np.array([reading.choices for reading in windows], dtype=np.float32),
                questions=np.array([reading.question for reading in windows], dtype=np.float32),
            )
        fresh.replace(file)

    def clear(self) -> None:
        """Give the room back: what they were for is done."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, rows: Sequence[Row]) -> Path:
        asked = json.dumps([row.input for row in rows], sort_keys=True)
        return self._folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.npz"
