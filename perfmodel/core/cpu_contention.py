"""Measures how long a thread was ready to run while other programs used the processors.

Linux counts this time for every thread (*run delay*). Pass times exclude such waits, because preempted passes are limited to
the range of the others; the wall time of a run includes them. Beside other programs every prediction is therefore too fast.
Waiting for the thread's own workers or for a GPU is not counted, nor is time that a hypervisor takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from perfmodel.core.units import NANO, Frac, Seconds, format_frac

BUSY_FRAC: Frac = 0.02
"""A larger share gives a warning: it is as large as the errors of predictions."""

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


class Contention:
    """The share of time since its creation in which this thread waited for a processor.

    Args:
        waited_s: seconds that this thread has waited since it started; returns None if the system does not count them.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self, *, waited_s: Callable[[], Seconds | None] | None = None, clock: Callable[[], Seconds] = time.perf_counter
    ) -> None:
        self._waited_s, self._clock = waited_s or thread_waited_s, clock
        self._start_s, self._waited_at_start_s = self._clock(), self._waited_s()

    @property
    def waited_frac(self) -> Frac | None:
        """The share; None if the system does not count waits, or if no time has passed."""
        waited_s, elapsed_s = self._waited_s(), self._clock() - self._start_s
        if waited_s is None or self._waited_at_start_s is None or elapsed_s <= 0:
            return None
        return (waited_s - self._waited_at_start_s) / elapsed_s

    @property
    def warning(self) -> str | None:
        """A warning if the share is above `BUSY_FRAC`."""
        waited_frac = self.waited_frac
        if waited_frac is None or waited_frac < BUSY_FRAC:
            return None
        return (
            f"this process waited {format_frac(waited_frac)} of the time for a processor that other programs used: pass times "
            "exclude these waits and runs include them, so predictions are too fast. Measure again on an idle machine."
        )


def thread_waited_s(path: Path = _SCHEDSTAT) -> Seconds | None:
    """Seconds for which the calling thread was ready but did not run; None if the system does not count them."""
    try:
        return int(path.read_text().split()[1]) * NANO
    except (OSError, ValueError, IndexError):
        return None


class TreeContention:
    """The share of time since its creation in which a process and its descendants waited for a processor.

    Threads wait side by side, and a computation waits for its slowest thread. The share is that of the thread which waited
    longest.

    Args:
        process: its id.
        proc: where the system shows its processes.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, process: int, *, proc: Path = Path("/proc"), clock: Callable[[], Seconds] = time.perf_counter) -> None:
        self._process, self._proc, self._clock = process, proc, clock
        self._at_start_s = self._waits_s()
        self._start_s = clock()

    @property
    def waited_frac(self) -> Frac | None:
        """The share; None if the system does not count waits, or if no time has passed."""
        elapsed_s, waits_s = self._clock() - self._start_s, self._waits_s()
        if not waits_s or elapsed_s <= 0:
            return None
        longest_s = max(waited_s - self._at_start_s.get(thread, 0.0) for thread, waited_s in waits_s.items())
        return min(1.0, longest_s / elapsed_s)

    def _waits_s(self) -> dict[str, Seconds]:
        """Seconds that each thread has waited since it started; empty if the system does not count them."""
        members: list[int] = [self._process]
        waits_s: dict[str, Seconds] = {}
        try:
            while members:
                for thread in (self._proc / str(members.pop()) / "task").glob("*"):
                    members += map(int, (thread / "children").read_text().split())
                    waited_s = thread_waited_s(thread / "schedstat")
                    waits_s |= {} if waited_s is None else {thread.name: waited_s}
        except OSError:  # the system does not show children, or the process has just ended
            return {}
        return waits_s
