"""What is checked and measured of a model's folder before anything loads it.

Weights are read from safetensors only (a pickle runs code when it is read), and a config that
names code of its own is refused, so that remote code is never run.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agentkit.errors import ModelError

ModelKind: TypeAlias = Literal["backbone", "encoder"]

FINGERPRINT_CACHE = ".agentkit-fingerprint.json"
_FINGERPRINT_VERSION = 1
_MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""
_MAX_CONFIG = 16_000_000
_CHUNK = 1 << 22
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_ENCODER_MODULES = "sentence_transformers."


@dataclass(frozen=True, slots=True)
class _Tensor:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in the file, bytes."""
    size: int


def check_folder(folder: Path, kind: ModelKind) -> None:
    """Raise ModelError unless `folder` holds a model that may be loaded: config.json, whole
    safetensors, no code of its own."""
    where = str(folder)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                "this is an adapter, not a model",
                where=where,
                hint="give it with --skills, and a backbone with --backbone",
            )
        raise ModelError(
            "no config.json, so this is no model folder",
            where=where,
            hint="give a folder saved by save_pretrained",
        )
    if kind == "backbone" and (folder / "adapter_config.json").is_file():
        raise ModelError(
            "the folder holds an adapter beside the model, which would be loaded unasked",
            where=where,
            hint="keep adapter_config.json in a skill folder of its own",
        )
    for path in _configs(folder):
        _refuse_code(path)
    _check_encoder_modules(folder)
    for part in [folder, *_module_folders(folder)]:
        _refuse_pickles(part)
    _tensors(folder)


def fingerprint(folder: Path) -> str:
    """SHA-256, hex, over the sorted (name, dtype, shape, bytes) of the folder's tensors.

    It names the weights as they were saved, whatever type they are computed in later, and however
    they are split over files. The result is kept beside the model together with each file's size
    and time of change, and is computed afresh when one of them differs.

    Raises ModelError if a file is missing, truncated or no safetensors.
    """
    tensors = _tensors(folder)
    state = {
        str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted({tensor.file for tensor in tensors.values()})
    }
    cache = folder / FINGERPRINT_CACHE
    if (known := _read_cache(cache, state)) is not None:
        return known
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        head = json.dumps([name, tensor.dtype, tensor.shape]).encode()
        digest.update(struct.pack("<Q", len(head)))
        digest.update(head)
        for piece in _read(tensor):
            digest.update(piece)
    value = digest.hexdigest()
    # A read-only folder is measured again each time: slower, and as right.
    with suppress(OSError):
        write_json(cache, {"version": _FINGERPRINT_VERSION, "files": state, "fingerprint": value})
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_cache(cache: Path, state: dict[str, list[int]]) -> str | None:
    try:
        entry = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("version") != _FINGERPRINT_VERSION:
        return None
    value = entry.get("fingerprint")
    return value if entry.get("files") == state and isinstance(value, str) else None


# ---------------------------------------------------------------- configs


def _configs(folder: Path) -> Iterator[Path]:
    """The files that a loader reads classes from; vocabularies and the user's own are not."""
    for part in [folder, *_module_folders(folder)]:
        yield from sorted(part.glob("*config*.json"))


def _load_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ModelError("the file is too large for a config", where=str(path))
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"not readable as JSON: {error}", where=str(path)) from error


def _refuse_code(path: Path) -> None:
    pending = [_load_json(path)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "auto_map" in value or "custom_pipelines" in value:
                raise ModelError(
                    "the config asks for code of its own (auto_map), and remote code is never run",
                    where=str(path),
                    hint="use a model whose architecture transformers itself implements",
                )
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _check_encoder_modules(folder: Path) -> None:
    """sentence-transformers imports the classes that these files name, from the folder too."""
    classes: list[tuple[Path, Any]] = []
    if (modules := folder / "modules.json").is_file():
        entries = _load_json(modules)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ModelError("modules.json is no list of modules", where=str(modules))
        classes += [(modules, entry.get("type")) for entry in entries]
    for path in _configs(folder):
        value = _load_json(path)
        if isinstance(value, dict) and isinstance(value.get("types"), dict):
            classes += [(path, name) for name in value["types"].values()]
    for path, name in classes:
        if not isinstance(name, str) or not name.startswith(_ENCODER_MODULES):
            raise ModelError(
                f"names the class {name!r}, which is not one of sentence-transformers' own",
                where=str(path),
                hint="remote code is never run: use an encoder of standard modules",
            )


def _module_folders(folder: Path) -> list[Path]:
    """Subfolders of a sentence encoder's modules, in which weights of their own may lie."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return []
    root = folder.resolve()
    folders = []
    for entry in _load_json(modules):
        name = entry.get("path", "")
        part = folder / str(name)
        if not part.resolve().is_relative_to(root):
            raise ModelError(f"the module path {name!r} leaves the folder", where=str(modules))
        if name and part.is_dir():
            folders.append(part)
    return folders


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"the weights are only there as a pickle ({pickles[0]}), and pickles are never read",
            where=str(folder),
            hint="save the model with save_pretrained(..., safe_serialization=True)",
        )


# ---------------------------------------------------------------- safetensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (single := folder / "model.safetensors").is_file():
        return [single]
    if index.is_file():
        entry = _load_json(index)
        shards = entry.get("weight_map") if isinstance(entry, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise ModelError("the index of the weights names no file", where=str(index))
        names = sorted(set(map(str, shards.values())))
        if outside := [name for name in names if Path(name).name != name]:
            raise ModelError(f"names {outside[0]!r}, outside the folder", where=str(index))
        return [folder / name for name in names]
    return sorted(folder.glob("*.safetensors"))


def _tensors(folder: Path) -> dict[str, _Tensor]:
    files = dict.fromkeys(_weight_files(folder), "")
    if not files:
        raise ModelError(
            "no safetensors weights",
            where=str(folder),
            hint="give a folder saved by save_pretrained, with model.safetensors",
        )
    for part in _module_folders(folder):
        prefix = f"{part.relative_to(folder)}/"
        files |= dict.fromkeys(_weight_files(part), prefix)
    tensors: dict[str, _Tensor] = {}
    for path, prefix in files.items():
        for name, tensor in _header(path).items():
            if prefix + name in tensors:
                raise ModelError(f"the tensor {name!r} occurs in two files", where=str(folder))
            tensors[prefix + name] = tensor
    return tensors


def _header(path: Path) -> dict[str, _Tensor]:
    """The tensors that a safetensors file says it holds, checked against its length."""
    damaged = "fetch or copy the model again"
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else total
            if length > min(_MAX_HEADER, total - 8):
                raise ModelError("not a whole safetensors file", where=str(path), hint=damaged)
            entries = json.loads(file.read(length))
        tensors = {}
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            start, end = map(int, entry["data_offsets"])
            if not 0 <= start <= end <= total - 8 - length:
                raise ModelError("the file is truncated", where=str(path), hint=damaged)
            shape = tuple(map(int, entry["shape"]))
            tensors[name] = _Tensor(
                path, str(entry["dtype"]), shape, 8 + length + start, end - start
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"not readable as safetensors: {error}", where=str(path), hint=damaged
        ) from error
    return tensors


def _read(tensor: _Tensor) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(_CHUNK, tensor.size)))
    left = tensor.size
    try:
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            while left:
                count = file.readinto(buffer[: min(left, len(buffer))])
                if not count:
                    raise ModelError("the file is truncated", where=str(tensor.file))
                yield buffer[:count]
                left -= count
    except OSError as error:
        raise ModelError(f"not readable: {error}", where=str(tensor.file)) from error
