"""How long a measurement stood ready to run while other programs had the processors.

Linux counts it for every thread (*run delay*). Prices leave such waits out, as passes that were preempted are pulled in, and
what a run measures holds them: beside other programs every prediction comes out too fast. A thread that waits for its own
workers or for a GPU is not counted, nor is what a hypervisor takes away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from perfmodel.core.units import NANO, Frac, Seconds, format_frac

BUSY_FRAC: Frac = 0.02
"""A larger share is worth a warning: it is as large as the errors of predictions."""

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


class Contention:
    """Waiting of this thread since this was made.

    Args:
        waited_s: seconds that this thread has waited since it began; None where the system does not say.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self, *, waited_s: Callable[[], Seconds | None] | None = None, clock: Callable[[], Seconds] = time.perf_counter
    ) -> None:
        self._waited_s, self._clock = waited_s or thread_waited_s, clock
        self._began_s, self._waited_before_s = self._clock(), self._waited_s()

    @property
    def waited_frac(self) -> Frac | None:
        """Share of the time; None where the system does not say, or none has passed."""
        waited_s, seconds = self._waited_s(), self._clock() - self._began_s
        if waited_s is None or self._waited_before_s is None or seconds <= 0:
            return None
        return (waited_s - self._waited_before_s) / seconds

    @property
    def warning(self) -> str | None:
        """What to say where it was much."""
        waited_frac = self.waited_frac
        if waited_frac is None or waited_frac < BUSY_FRAC:
            return None
        return (
            f"other programs kept this one waiting for a processor for {format_frac(waited_frac)} of the time: prices leave "
            "that out and runs do not, so predictions come out too fast. Measure again where nothing else runs."
        )


def thread_waited_s(path: Path = _SCHEDSTAT) -> Seconds | None:
    """Seconds for which the calling thread was ready and did not run; None where the system does not say."""
    try:
        return int(path.read_text().split()[1]) * NANO
    except (OSError, ValueError, IndexError):
        return None
