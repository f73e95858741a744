"""What a training took: seconds over all of its starts, and memory of this one alone."""

from __future__ import annotations

import re
import resource
import time
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class Meter:
    """Stateful: counts from where it is made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        # Where the system can, the peak begins anew: of several trainings in one process each
        # has its own.
        with suppress(OSError):
            _RESET.write_text("5", encoding="ascii")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def peak_memory(self) -> int:
        """The most bytes of memory that the process held."""
        with suppress(OSError):
            if found := _PEAK.search(_STATUS.read_text(encoding="ascii")):
                return int(found[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
