"""The lower layers' states, computed once, and the upper layers as a model of their own.

When adapters act only on layers >= L, what the layers below give for a pack never changes: it is
computed once, kept on disk in the backbone's type, and every epoch runs the upper layers alone.
What does not fit the room on disk is computed anew each time. A training that needs states of a
higher layer goes on from those that another one left in the same file.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agentkit.training.packs import Pack


@contextmanager
def layers_only(base: Any, chosen: range, *, final_norm: bool) -> Iterator[Any]:
    """The decoder with just some of its layers, for as long as the context lasts.

    Called with `inputs_embeds` it starts from given states; without its final norm it gives the
    states that the next layer takes.
    """
    with _made_of(
        base,
        nn.ModuleList(base.layers[chosen.start : chosen.stop]),
        base.norm if final_norm else nn.Identity(),
    ):
        yield base


@contextmanager
def _made_of(base: Any, some: nn.ModuleList, last: nn.Module) -> Iterator[None]:
    """The decoder with these layers and this norm, for as long as the context lasts."""
    layers, norm, count = base.layers, base.norm, base.config.num_hidden_layers
    base.layers, base.norm, base.config.num_hidden_layers = some, last, len(some)
    try:
        yield
    finally:
        base.layers, base.norm, base.config.num_hidden_layers = layers, norm, count


@contextmanager
def recomputed(base: Any) -> Iterator[None]:
    """The decoder's layers computed again in the backward pass, for as long as the context lasts.

    Gradient checkpointing (https://arxiv.org/abs/1604.06174): only each layer's input is kept.
    """
    layers = list(base.layers)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own comes back


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write says where the disk has no room: the states are computed anew each time then."""


def _write(file: RawIOBase, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


class LowerStates:
    """States of packs after the lower layers, in one file; computed where missing.

    Stateful: the file grows up to `limit` bytes as packs are computed, and a later process goes on
    with it. Where that is too little, what another training left goes first. `key` names, for a
    layer, all but the pack that the states going into it depend on.
    """

    def __init__(
        self,
        path: Path,
        *,
        hidden: int,
        key: Callable[[int], str],
        dtype: torch.dtype = torch.bfloat16,
        limit: int | None = None,
        spared: int = 0,
    ) -> None:
        """`spared` bytes of the disk are left for what else is written there."""
        self._path = path
        self._limit = limit
        self._spared = spared
        self._decoder: Any = None
        self._layers = nn.ModuleList()
        self._hidden = hidden
        self._dtype = dtype
        self._key = key
        self._index: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._names = path.with_suffix(".index")
        if self._names.exists() and path.exists():
            size = path.stat().st_size
            noted = self._names.read_text(encoding="ascii", errors="replace")
            for line in noted.splitlines(keepends=True):
                # A disk that was full, or lost its power, leaves lines that are cut short.
                name, *places = line.split() or [""]
                whole = line.endswith("\n") and len(places) == 2
                if whole and all(map(str.isdecimal, places)) and int(places[1]) <= size:
                    self._index[name] = int(places[0])

    def _name(self, pack: Pack, layer: int | None = None) -> str:
        key = self._key(len(self._layers) if layer is None else layer)
        digest = hashlib.sha256(key.encode())
        for part in (pack.ids, pack.branch, pack.positions):
            digest.update(torch.tensor(part, dtype=torch.int32).numpy().tobytes())
        return digest.hexdigest()[:32]

    def found(self, packs: Sequence[Pack], below: int) -> float:
        """The share of the packs' tokens whose states below a layer need not be computed."""
        there = sum(len(p.ids) for p in packs if self._holds(p, below))
        return there / max(1, sum(len(p.ids) for p in packs))

    def compute(self, base: Any, packs: Sequence[Pack], below: int, progress: Progress) -> None:
        """Compute what is missing for the packs, with layers `0..below-1` of a decoder."""
        self._decoder, self._layers = base, nn.ModuleList(base.layers[:below])
        wanted = {self._name(p): p for p in packs}
        missing = {name: p for name, p in wanted.items() if name not in self._index}
        # An index that says nothing of what lies there is what a kill left of one.
        others = self._index.keys() - wanted.keys() or not self._index
        if self._exceeds(missing.values()) and others:
            self._clear()
            missing = wanted
        task = progress.add_task("lower layers", total=sum(len(p.ids) for p in missing.values()))
        with (
            self._path.open("ab", buffering=0) as file,
            self._names.open("ab", buffering=0) as names,
            torch.inference_mode(),
        ):
            for name, pack in missing.items():
                if self._exceeds([pack]):
                    break
                states = self._computed(pack)
                offset = file.tell()
                noted = names.tell()
                try:
                    _write(file, states.contiguous().view(torch.uint8).numpy().tobytes())
                    _write(names, f"{name} {offset} {file.tell()}\n".encode("ascii"))
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    file.truncate(offset)
                    names.truncate(noted)
                    break
                self._index[name] = offset
                progress.advance(task, len(pack.ids))

    def room_for(self, packs: Sequence[Pack], depths: Sequence[int]) -> bool:
        """Whether the states below each of some layers can all be kept together.

        Where what other trainings left is in the way, it goes.
        """
        missing = sum(self._bytes(p) for at in depths for p in packs if not self._holds(p, at))
        if not self._more_than_room(missing):
            return True
        whole = len(depths) * sum(map(self._bytes, packs))
        if self._more_than_room(whole - self._held()):
            return False
        self._clear()
        return True

    def release(self, packs: Sequence[Pack]) -> None:
        """Give up the lower layers' weights, if the states of all packs are kept.

        Nothing computes with those layers again, and the upper ones train in their room.
        """
        if all(self._holds(pack, len(self._layers)) for pack in packs):
            self._layers.to_empty(device="meta")

    def _bytes(self, pack: Pack) -> int:
        return self._dtype.itemsize * self._hidden * len(pack.ids)

    def _exceeds(self, packs: Iterable[Pack]) -> bool:
        return self._more_than_room(sum(map(self._bytes, packs)))

    def _more_than_room(self, more: int) -> bool:
        if more and more > shutil.disk_usage(self._path.parent).free - self._spared:
            return True
        return self._limit is not None and self._held() + more > self._limit

    def _held(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def _clear(self) -> None:
        self._index.clear()
        self._names.write_text("", encoding="ascii")
        self._path.write_bytes(b"")

    def _computed(self, pack: Pack) -> Tensor:
        lower = self._decoder
        start = next((at for at in range(len(self._layers), 0, -1) if self._holds(pack, at)), 0)
        given: dict[str, Tensor] = (
            {"inputs_embeds": self._read(pack, start)[None].to(lower.dtype)}
            if start
            else {"input_ids": torch.tensor([pack.ids])}
        )
        device = lower.embed_tokens.weight.device
        with _made_of(lower, nn.ModuleList(self._layers[start:]), nn.Identity()):
            states: Tensor = lower(
                **{name: tensor.to(device) for name, tensor in given.items()},
                attention_mask=pack.mask(lower.dtype, device),
                position_ids=torch.tensor([pack.positions], device=device),
                use_cache=False,
            ).last_hidden_state[0]
        return states.to("cpu", self._dtype)

    def _holds(self, pack: Pack, layer: int) -> bool:
        return self._name(pack, layer) in self._index

    def _read(self, pack: Pack, layer: int) -> Tensor:
        with self._path.open("rb") as file:
            file.seek(self._index[self._name(pack, layer)])
            data = bytearray(file.read(self._bytes(pack)))
        return torch.frombuffer(data, dtype=self._dtype).view(len(pack.ids), self._hidden)

    def get(self, pack: Pack) -> Tensor:
        """`(tokens, hidden)`, in the type that it was made with."""
        if not self._holds(pack, len(self._layers)):
            with torch.no_grad():
                return self._computed(pack)
        return self._read(pack, len(self._layers))
