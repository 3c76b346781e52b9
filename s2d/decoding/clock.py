"""Time passes as consecutive laps without gaps: CUDA events on a GPU, else `perf_counter`."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch

from perfmodel.core.units import MILLI, NANO, Frac, Seconds
from perfmodel.passes.passes import PassKind, PassSample, PassSamples, places

LapTag = tuple[PassKind, int, int, int]
"""Kind, stage, rows and cached tokens."""


class Clock:
    """Divides time into consecutive laps, each tagged with its passes.

    On a GPU a lap is the time between two events on the device's stream, idle time included. Reading the laps synchronises.
    Events are reused, because creating an event takes the host as long as a kernel launch.

    Args:
        device: the device that runs the passes.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._is_cuda = self._device.type == "cuda"
        self._mark: Callable[[], Any] = self._record_event if self._is_cuda else perf_counter
        self._marks: list[Any] = []
        self._spare_events: list[torch.cuda.Event] = []
        self.start()

    def start(self) -> None:
        """Discard earlier laps and start the first lap now."""
        if self._is_cuda:
            self._spare_events += self._marks
        self.tags: list[LapTag] = []
        self._laps: list[tuple[Any, Any, Frac]] = []  # start, end, and the pass's share of the time between them
        self._last = self._mark()
        self._marks = [self._last]

    def lap(self, kind: PassKind, stage: int, rows: int, cached_tokens: int) -> None:
        """End a lap of one pass, started by the end of the previous lap."""
        self.shared_lap(((kind, stage, rows, cached_tokens),), (1.0,))

    def shared_lap(self, passes: Sequence[LapTag], shares: Sequence[Frac]) -> None:
        """End a lap of several passes that were launched as one.

        Args:
            passes: the passes of the lap, in the order they ran.
            shares: each pass's share of the lap's seconds. They sum to 1.
        """
        now = self._mark()
        self._marks.append(now)
        self._laps.extend((self._last, now, share) for share in shares)
        self._last = now
        self.tags.extend(passes)

    def skip(self) -> None:
        """Exclude the time since the last lap: the caller spent it."""
        self._last = self._mark()
        self._marks.append(self._last)

    def lap_seconds(self) -> list[Seconds]:
        """Seconds of each pass, in order."""
        if not self._is_cuda:
            return [(end - start) * share for start, end, share in self._laps]
        torch.cuda.synchronize(self._device)
        # Two events may fall on the same tick of the GPU's clock. A lap takes more than 0 s.
        return [max(start.elapsed_time(end) * MILLI, NANO) * share for start, end, share in self._laps]

    def samples(self) -> PassSamples:
        """Every pass with its seconds."""
        laps = zip(self.tags, places(tag[:2] for tag in self.tags), self.lap_seconds(), strict=True)
        return PassSamples.from_passes(PassSample(*tag, place, seconds) for tag, place, seconds in laps)

    def _record_event(self) -> torch.cuda.Event:
        event = self._spare_events.pop() if self._spare_events else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
