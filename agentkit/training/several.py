"""Several skills trained one after the other; killed and called again, those that are done stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from agentkit.errors import AgentkitError, InputError
from agentkit.training.rows import own_files
from agentkit.training.spec import load_train_spec


def train_each(
    folders: Sequence[Path],
    train: Callable[[Path], Path],
    *,
    notes: Path,
    named: str,
    said: Callable[[str], None],
    finish: Callable[[Path, Path], None] = lambda folder, written: None,
) -> dict[str, Path]:
    """By each folder's name the folder that its training wrote, as `train` gives it.

    What is done stands in a file of `notes` until all are. It is not done again as long as the
    folder says the same and what was written is there; `named` tells one undertaking from another.
    `finish` is given each folder and what its training wrote, once that is noted.
    Raises `InputError` for two folders of one name.
    """
    names = [folder.resolve().name for folder in folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two folders are called {twice[0]}", hint="train them apart")
    which = "\n".join([named, *(str(folder.resolve()) for folder in folders)])
    notes.mkdir(parents=True, exist_ok=True)
    journal = notes / f"several-{_digest([which.encode()])[:16]}.json"
    done: dict[str, dict[str, str]] = {}
    with suppress(OSError, ValueError):
        done = json.loads(journal.read_text(encoding="utf-8"))
    written: dict[str, Path] = {}

    def note(name: str, says: str, finished: str) -> None:
        result = written[name]
        done[name] = {
            "says": says,
            "written": str(result),
            "made": _made(result),
            "finished": finished,
        }
        fresh = journal.with_suffix(".fresh")
        fresh.write_text(json.dumps(done), encoding="utf-8")
        fresh.replace(journal)

    for folder, name in zip(folders, names, strict=True):
        says = _says(folder)  # as it was when its training began
        before = done.get(name, {})
        if before.get("says") == says and before["made"] == _made(Path(before["written"])):
            said(f"{name}: trained before this start")
            written[name] = Path(before["written"])
        else:
            written[name] = train(folder).resolve()
            note(name, says, "")
        if not done[name].get("finished"):
            finish(folder, written[name])
            note(name, says, "yes")
    journal.unlink(missing_ok=True)
    return written


def _says(folder: Path) -> str:
    """A digest of what a folder is trained by, public data sets apart."""
    files = [folder / name for name in ("train.yaml", "skill.yaml", "SKILL.md")]
    with suppress(AgentkitError, OSError):  # the training says what is wrong with it
        spec = load_train_spec(folder / "train.yaml")
        for source in (*spec.data, *spec.calibration):
            files += own_files(source, folder)
    return _digest(map(_bytes, files))


def _made(folder: Path) -> str:
    """A digest of what a training leaves last, and an adapter's or a head's being there."""
    weights = ("adapter_model.safetensors", "head.safetensors")
    there = any((folder / name).exists() for name in weights)
    return _digest([_bytes(folder / "metrics.json"), str(there).encode()])


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the training says what is wrong with it
        return b""


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
