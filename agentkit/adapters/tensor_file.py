"""Safetensors files, read with nothing taken on trust.

Sizes, offsets, types and shapes are checked on the header, before memory is taken; numbers are
checked to be finite while they are read. Format:
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agentkit.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

BACKBONE_KEY = "agentkit.backbone"
"""Metadata key that holds the fingerprint of the backbone that the adapter was trained on."""

MAX_HEADER_BYTES = 16_000_000
MAX_WEIGHTS_BYTES = 4 << 30
MAX_TENSORS = 50_000
MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class _DType:
    size: int
    """Bytes of a number."""
    exponent: int
    """Bits that are all set in an infinity or NaN, and never all set in a finite number."""


_DTYPES: Mapping[str, _DType] = {
    "F32": _DType(4, 0x7F80_0000),
    "F16": _DType(2, 0x7C00),
    "BF16": _DType(2, 0x7F80),
}
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the header says of one tensor; `start` and `end` count from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """The tensors of one file, on the CPU, in the file's own types."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def backbone(self) -> str | None:
        """Fingerprint of the backbone that the weights were trained on, where it was recorded."""
        return self.metadata.get(BACKBONE_KEY)


def read_header(
    path: Path, *, max_bytes: int = MAX_WEIGHTS_BYTES
) -> tuple[Mapping[str, TensorSpec], Mapping[str, str]]:
    """Tensor specs by name, and the file's metadata, checked; no tensor is read.

    Raises `AdapterError` if the file is truncated, too large, or not what its header says.
    """
    with _opened(path) as (stream, size):
        return _header(stream, size, path, max_bytes)


def read_tensors(path: Path, *, max_bytes: int = MAX_WEIGHTS_BYTES) -> LoadedWeights:
    """Read a safetensors file of at most `max_bytes`.

    Raises `AdapterError` as `read_header` does, and for a NaN or an infinity.
    """
    import torch

    tensors: dict[str, Tensor] = {}
    with _opened(path) as (stream, size):
        specs, metadata = _header(stream, size, path, max_bytes)
        for name, spec in specs.items():
            bits = torch.from_numpy(_read_finite(stream, name, spec, path))
            dtype = getattr(torch, _TORCH_NAMES[spec.dtype])
            tensors[name] = bits.view(dtype).reshape(spec.shape)
    return LoadedWeights(path, tensors, metadata)


def check_finite(path: Path, *, max_bytes: int = MAX_WEIGHTS_BYTES) -> None:
    """Read a safetensors file tensor by tensor, keeping none; raises `AdapterError` as above."""
    with _opened(path) as (stream, size):
        specs, _ = _header(stream, size, path, max_bytes)
        for name, spec in specs.items():
            _read_finite(stream, name, spec, path)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    try:
        stream = path.open("rb")
    except OSError as cause:
        raise AdapterError(f"cannot be read: {cause.strerror}", where=str(path)) from cause
    with stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise AdapterError("is not a regular file", where=str(path))
        yield stream, status.st_size


def _header(
    stream: BufferedReader, size: int, path: Path, max_bytes: int
) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    where = str(path)
    if size > max_bytes:
        raise AdapterError(f"{size:,} bytes; the limit is {max_bytes:,}", where=where)
    if size < 8:
        raise AdapterError("truncated: no safetensors header", where=where)
    length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise AdapterError(
            f"a header of {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}", where=where
        )
    if 8 + length > size:
        raise AdapterError("truncated: the file ends within its header", where=where)
    try:
        header = json.loads(stream.read(length), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as cause:
        raise AdapterError(f"the header is not valid JSON: {cause}", where=where) from cause
    if not isinstance(header, dict):
        raise AdapterError("the header must be a JSON object", where=where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterError("the header's metadata must map strings to strings", where=where)
    if len(header) > MAX_TENSORS:
        raise AdapterError(f"more than {MAX_TENSORS:,} tensors", where=where)
    specs = {name: _spec(name, entry, 8 + length, where) for name, entry in header.items()}
    position = 8 + length
    for name, spec in sorted(specs.items(), key=lambda item: (item[1].start, item[1].end)):
        if spec.start != position:
            raise AdapterError(f"{name}: the data have a gap or overlap before it", where=where)
        position = spec.end
    if position != size:
        what = "truncated" if position > size else "there are bytes after the last tensor"
        raise AdapterError(
            f"{what}: the header promises {position:,} bytes, the file has {size:,}", where=where
        )
    return specs, metadata


def _spec(name: str, entry: Any, offset: int, where: str) -> TensorSpec:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise AdapterError(f"{name}: malformed header entry", where=where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise AdapterError(
            f"{name}: type {dtype!r} is not read",
            where=where,
            hint="save the weights as float32, float16 or bfloat16",
        )
    if not (_counts(shape) and len(shape) <= MAX_DIMENSIONS and _counts(offsets)):
        raise AdapterError(f"{name}: malformed shape or offsets", where=where)
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype].size:
        raise AdapterError(f"{name}: shape {tuple(shape)} and offsets disagree", where=where)
    return TensorSpec(dtype, tuple(shape), offset + offsets[0], offset + offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _read_finite(
    stream: BufferedReader, name: str, spec: TensorSpec, path: Path
) -> NDArray[np.signedinteger[Any]]:
    """The bits of the tensor's numbers, as integers, once all are known to be finite."""
    values = np.empty(spec.end - spec.start, dtype=np.uint8)
    stream.seek(spec.start)
    if stream.readinto(values.data) != values.size:
        raise AdapterError(f"{name}: the file shrank while it was read", where=str(path))
    dtype = _DTYPES[spec.dtype]
    bits = values.view("<u4" if dtype.size == 4 else "<u2")
    if bool(((bits & dtype.exponent) == dtype.exponent).any()):
        raise AdapterError(
            f"{name}: holds a NaN or an infinity", where=str(path), hint="the training diverged"
        )
    return bits.view("<i4" if dtype.size == 4 else "<i2")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return values
