"""Native thread pools that end with the work that needed them.

torch's products on a CPU run on OpenMP teams. Every thread that starts one gets a team of its own,
which stays until that thread ends, and the runtime counts them: once there are more members than
cores, each goes to sleep the moment it has nothing to do, and waking it takes longer than a small
product does. With a second team left behind by some other thread, a token took the engine's loop
45 ms instead of 21 on two cores. So what computes outside the loop does so in a thread that ends.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Value = TypeVar("_Value")


def in_own_thread(work: Callable[[], _Value]) -> _Value:
    """What `work` gives or raises; whatever pools it started are gone when this returns.

    An interrupt is raised here once the work is over, so give it work of a second or two.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="agentkit-work") as threads:
        return threads.submit(work).result()
