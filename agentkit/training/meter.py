"""What a training took: seconds over all of its starts, and memory of this one alone."""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_BETWEEN = 0.05
"""Seconds between two looks at what the process holds, where the system does not keep its peak."""


class Meter:
    """Stateful: counts while it is entered.

    Of several trainings in one process each has its own peak of memory. Linux keeps a peak and may
    be told to begin it anew; where it cannot, or may not (in some containers), a thread looks again
    and again, which can miss what was held for a moment only.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._sampler: _Sampler | None = None

    def __enter__(self) -> Meter:
        self._began = time.monotonic()
        if not _peak_begun_anew():
            self._sampler = _Sampler()
            self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._sampler is not None:
            self._sampler.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def peak_memory(self) -> int:
        """The most bytes of memory that the process held since it was entered."""
        if self._sampler is not None:
            return self._sampler.look()
        return _peak() or _held()


def gpu_memory(device: torch.device) -> dict[str, int]:
    """The most bytes that tensors took on a GPU since `begin_gpu`; nothing on a processor."""
    if device.type != "cuda":
        return {}
    return {"peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(device)}


def begin_gpu(device: torch.device) -> None:
    """Begin a GPU's peak of memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class _Sampler(threading.Thread):
    """Stateful: the most that it has seen the process hold."""

    def __init__(self) -> None:
        super().__init__(name="memory", daemon=True)
        self._most = 0
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(_BETWEEN):
            self.look()

    def look(self) -> int:
        self._most = max(self._most, _held())
        return self._most

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _peak_begun_anew() -> bool:
    """Whether the system's peak is what is held now, as was asked for."""
    held = _held()
    with suppress(OSError):
        _RESET.write_text("5", encoding="ascii")
        # That it was written is no proof that it was done.
        return 0 < _peak() <= 1.05 * held
    return False


def _peak() -> int:
    """The most bytes that the system says the process held; 0 where it does not say."""
    with suppress(OSError):
        if found := _PEAK.search(_STATUS.read_text(encoding="ascii")):
            return int(found[1]) * 1024
    return 0


def _held() -> int:
    return int(psutil.Process().memory_info().rss)
