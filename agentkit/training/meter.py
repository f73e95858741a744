"""What a training took over all of its starts: seconds, and the most memory."""

from __future__ import annotations

import json
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

_NOTED = 5.0
"""Seconds between two notes of what was spent."""


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


class Spent:
    """Stateful: what a training took over all of its starts, kept in a file while it is entered.

    A start that is killed has noted its seconds up to a few before its end; what it did after its
    last checkpoint is done again, and counts as often.
    """

    def __init__(self, file: Path, meter: Meter) -> None:
        self._file, self.meter = file, meter
        self._earlier = 0.0
        self._found: float | None = None
        self._most = 0
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(file.read_text(encoding="utf-8"))
            self._earlier, self._found = float(known["seconds"]), known["found"]
            self._most = int(known["peak_memory"])
        self._ended = threading.Event()
        self._noting = threading.Thread(target=self._note_at_times, name="spent", daemon=True)

    def __enter__(self) -> Spent:
        self._noting.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._noting.join()
        if error == (None, None, None):
            self._file.unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        return self._earlier + self.meter.seconds

    @property
    def peak_memory(self) -> int:
        """The most bytes of memory that one of the starts held."""
        return max(self._most, self.meter.peak_memory)

    def found(self, share: float) -> float:
        """The share of the lower layers' states that was there when the training first came to
        them: another one had computed it. `share` is the one that is there now."""
        if self._found is None:
            self._found = share
            self._note()
        return self._found

    def _note_at_times(self) -> None:
        self._note()
        while not self._ended.wait(_NOTED):
            self._note()
        self._note()

    def _note(self) -> None:
        fresh = self._file.with_suffix(".fresh")
        taken = {"seconds": self.seconds, "found": self._found, "peak_memory": self.peak_memory}
        said = json.dumps(taken)
        with suppress(OSError):  # a full disk ends a training elsewhere, and with a word
            fresh.write_text(said, encoding="utf-8")
            fresh.replace(self._file)


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
