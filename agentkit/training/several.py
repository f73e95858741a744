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
from agentkit.training.stages import weights_digest


def train_each(
    folders: Sequence[Path],
    train: Callable[[Path], Path],
    *,
    notes: Path,
    named: str,
    said: Callable[[str], None],
    finish: Callable[[Path, Path], None] = lambda folder, written: None,
    before: Callable[[Path], Sequence[Path]] = lambda folder: (),
    start_of: Callable[[Path], Path | None] = lambda folder: None,
) -> dict[str, Path]:
    """By each folder's name the folder that its training wrote, as `train` gives it.

    `before` says which folders have to be trained before one, in their order: they are, each once.
    `start_of` says what a training begins with, once these are done: where that is not what it was,
    the training is done again.

    What is done stands in a file of `notes` until all are. It is not done again as long as the
    folder says the same and what was written is there; `named` tells one undertaking from another.
    `finish` is given each folder and what its training wrote, once that is noted; it is done again
    where what the folder says of its calibration has changed, and the training is not.
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

    def once(folder: Path, name: str) -> None:
        if name in written:  # as what another begins with
            return
        start = start_of(folder)
        says = trained_by(folder)  # as it was when its training began
        says += weights_digest(start) if start else ""
        found = done.get(name, {})
        if found.get("says") == says and found["made"] == _made(Path(found["written"])):
            said(f"{name}: trained before this start")
            written[name] = Path(found["written"])
        else:
            written[name] = train(folder).resolve()
            note(name, says, "")

    known = {folder.resolve(): name for folder, name in zip(folders, names, strict=True)}
    for folder in folders:
        before(folder)  # what is wrong with any is said before hours of another's training
    for folder, name in zip(folders, names, strict=True):
        for first in before(folder):  # by now another process may have trained one
            once(first, known.get(first.resolve(), str(first.resolve())))
        once(folder, name)
        calibrated = _calibrated_by(folder)
        if done[name].get("finished") != calibrated:
            finish(folder, written[name])
            note(name, done[name]["says"], calibrated)
    journal.unlink(missing_ok=True)
    return {name: written[name] for name in names}


def trained_by(folder: Path, paths_from: Path | None = None) -> str:
    """A digest of what a folder is trained by, public data sets and the calibration apart.

    Relative paths count from `paths_from`, by default the folder.
    """
    files = [folder / name for name in ("skill.yaml", "SKILL.md")]
    says = _bytes(folder / "train.yaml")
    with suppress(AgentkitError, OSError):  # the training says what is wrong with it
        spec = load_train_spec(folder / "train.yaml")
        says = spec.model_dump_json(exclude={"calibration"}).encode()
        for source in spec.data:
            files += own_files(source, paths_from or folder)
    return _digest([says, *map(_bytes, files)])


def _calibrated_by(folder: Path) -> str:
    """A digest of what a folder is calibrated by, after its training."""
    said: list[bytes] = []
    with suppress(AgentkitError, OSError):  # the training said what is wrong with it
        for source in load_train_spec(folder / "train.yaml").calibration:
            said.append(source.model_dump_json().encode())
            said += map(_bytes, own_files(source, folder))
    return _digest(said)


def _made(folder: Path) -> str:
    """A digest of what a training leaves last, and an adapter's or a head's being there.

    How sure its answers are is no part of that: it may be fitted anew at any time.
    """
    record = _bytes(folder / "metrics.json")
    with suppress(ValueError, AttributeError):
        figures = json.loads(record)
        figures.pop("calibration", None)
        record = json.dumps(figures, sort_keys=True).encode()
    weights = ("adapter_model.safetensors", "head.safetensors")
    there = any((folder / name).exists() for name in weights)
    return _digest([record, str(there).encode()])


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
