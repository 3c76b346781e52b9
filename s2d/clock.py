"""The one stopwatch: laps without gaps, CUDA events on a GPU and `perf_counter` elsewhere, always seconds out."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from perfmodel.passes import PassKind, PassSamples, places
from perfmodel.units import MILLI, NANO, Seconds

LapTag = tuple[PassKind, int, int, int]
"""Kind, stage, rows and cached tokens."""


class Clock:
    """Cuts a stretch of time into consecutive laps, each tagged with the pass that filled it.

    On a GPU a lap is what lies between two events on the stream, idle time included; reading the laps synchronises.

    Args:
        device: where the passes run.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._is_cuda = torch.device(device).type == "cuda"
        self._mark: Callable[[], Any] = _record_event if self._is_cuda else perf_counter
        self.start()

    def start(self) -> None:
        """Forget earlier laps; the first one begins now."""
        self.tags: list[LapTag] = []
        self._begins: list[Any] = []
        self._ends: list[Any] = []
        self._last = self._mark()

    def lap(self, kind: PassKind, stage: int, rows: int, cached_tokens: int) -> None:
        """End a lap: it is the time since the one before."""
        now = self._mark()
        self._begins.append(self._last)
        self._ends.append(now)
        self._last = now
        self.tags.append((kind, stage, rows, cached_tokens))

    def skip(self) -> None:
        """Leave out the time since the last lap: it was the caller's."""
        self._last = self._mark()

    def lap_seconds(self) -> list[Seconds]:
        """Seconds of every lap, in order."""
        pairs = zip(self._begins, self._ends, strict=True)
        if not self._is_cuda:
            return [end - begin for begin, end in pairs]
        torch.cuda.synchronize()
        # Two events may share one tick of the GPU's clock; a lap is never nothing.
        return [max(begin.elapsed_time(end) * MILLI, NANO) for begin, end in pairs]

    def samples(self) -> PassSamples:
        """Every lap as a measured pass."""
        kind, stage, rows, cached = zip(*self.tags, strict=True) if self.tags else ((), (), (), ())
        return PassSamples(
            kind=kind,
            stage=stage,
            rows=rows,
            cached_tokens=cached,
            place=tuple(places(zip(kind, stage, strict=True))),
            seconds=tuple(self.lap_seconds()),
        )


def _record_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
