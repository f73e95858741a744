"""Where a training keeps what it would not do twice: for one process at a time, and remembered."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agentkit.errors import InputError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes' trainings out of it for as long as this lasts.

    Raises `InputError` where one is at work already: both would append to the same states.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                "another training is at work here",
                where=str(folder),
                hint="wait for its end, or name another folder with --work",
            ) from error
        yield  # closing the file gives the lock back, as does the end of the process


def remembered(file: Path, key: str, find: Callable[[], Any]) -> Any:
    """What `find` gives, as JSON; kept in `file` under `key`, and not found a second time."""
    known = _known(file)
    if key not in known:
        known[key] = find()
        fresh = file.with_suffix(".fresh")
        fresh.write_text(json.dumps(known), encoding="utf-8")
        fresh.replace(file)
    return known[key]


def is_remembered(file: Path, key: str) -> bool:
    """Whether `remembered` would not have to find it."""
    return key in _known(file)


def _known(file: Path) -> dict[str, Any]:
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(file.read_text(encoding="utf-8"))
    return known
