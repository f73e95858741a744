"""Several skills trained one after the other; killed and called again, those that are done stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentkit.errors import InputError


def train_each(
    folders: Sequence[Path],
    train: Callable[[Path], dict[str, Any]],
    *,
    notes: Path,
    named: str,
    said: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Figures of each folder's training by its name, as `train` gives them.

    What is done stands in a file of `notes` until all are, and is not done again as long as its
    folder says the same; `named` tells one undertaking from another. Raises `InputError` for two
    folders of one name.
    """
    names = [folder.resolve().name for folder in folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two folders are called {twice[0]}", hint="train them apart")
    which = "\n".join([named, *(str(folder.resolve()) for folder in folders)])
    notes.mkdir(parents=True, exist_ok=True)
    journal = notes / f"several-{hashlib.sha256(which.encode()).hexdigest()[:16]}.json"
    done: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        done = json.loads(journal.read_text(encoding="utf-8"))
    for folder, name in zip(folders, names, strict=True):
        says = _says(folder)
        if done.get(name, {}).get("says") == says:
            said(f"{name}: trained before this start")
            continue
        done[name] = {"says": says, "figures": train(folder)}
        fresh = journal.with_suffix(".fresh")
        fresh.write_text(json.dumps(done), encoding="utf-8")
        fresh.replace(journal)
    journal.unlink(missing_ok=True)
    return {name: done[name]["figures"] for name in names}


def _says(folder: Path) -> str:
    """A digest of what a folder is trained by."""
    digest = hashlib.sha256()
    for file in ("train.yaml", "skill.yaml", "SKILL.md"):
        with suppress(OSError):  # the training says what is wrong with it
            digest.update((folder / file).read_bytes())
    return digest.hexdigest()
