"""The one stopwatch: laps without gaps, CUDA events on a GPU and `perf_counter` elsewhere, always seconds out."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch

from perfmodel.core.units import MILLI, NANO, Frac, Seconds
from perfmodel.passes.passes import PassKind, PassSample, PassSamples, places

LapTag = tuple[PassKind, int, int, int]
"""Kind, stage, rows and cached tokens."""


class Clock:
    """Cuts a stretch of time into consecutive laps, each tagged with the passes that filled it.

    On a GPU a lap is what lies between two events on the device's stream, idle time included; reading the laps synchronises.
    Events are kept and recorded again: creating one takes the host as long as a launch.

    Args:
        device: where the passes run.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._is_cuda = self._device.type == "cuda"
        self._mark: Callable[[], Any] = self._record_event if self._is_cuda else perf_counter
        self._marks: list[Any] = []
        self._spare_events: list[torch.cuda.Event] = []
        self.start()

    def start(self) -> None:
        """Forget earlier laps; the first one begins now."""
        if self._is_cuda:
            self._spare_events += self._marks
        self.tags: list[LapTag] = []
        self._laps: list[tuple[Any, Any, Frac]] = []  # beginning, end, and the share of a pass in what lies between
        self._last = self._mark()
        self._marks = [self._last]

    def lap(self, kind: PassKind, stage: int, rows: int, cached_tokens: int) -> None:
        """End a lap: it is the time since the one before."""
        self.shared_lap(((kind, stage, rows, cached_tokens),), (1.0,))

    def shared_lap(self, passes: Sequence[LapTag], shares: Sequence[Frac]) -> None:
        """End a lap of several passes that were launched as one.

        Args:
            passes: in the order they ran.
            shares: of the lap's seconds, one a pass; they add up to 1.
        """
        now = self._mark()
        self._marks.append(now)
        self._laps.extend((self._last, now, share) for share in shares)
        self._last = now
        self.tags.extend(passes)

    def skip(self) -> None:
        """Leave out the time since the last lap: it was the caller's."""
        self._last = self._mark()
        self._marks.append(self._last)

    def lap_seconds(self) -> list[Seconds]:
        """Seconds of every pass, in order."""
        if not self._is_cuda:
            return [(end - begin) * share for begin, end, share in self._laps]
        torch.cuda.synchronize(self._device)
        # Two events may share one tick of the GPU's clock; a lap is never nothing.
        return [max(begin.elapsed_time(end) * MILLI, NANO) * share for begin, end, share in self._laps]

    def samples(self) -> PassSamples:
        """Every pass with its seconds."""
        laps = zip(self.tags, places(tag[:2] for tag in self.tags), self.lap_seconds(), strict=True)
        return PassSamples.from_passes(PassSample(*tag, place, seconds) for tag, place, seconds in laps)

    def _record_event(self) -> torch.cuda.Event:
        event = self._spare_events.pop() if self._spare_events else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
