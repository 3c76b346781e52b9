"""Streams, events, and copies to pinned memory, which arrive when the host has waited for them.

Work is numbered in the order of launch. A stream has a vector clock: for each other stream, the number of the last work that it
runs after. An event is a copy of such a vector, and the work that the host has waited for is another one. Kernels run
immediately: streams do not overlap.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.gpu_simulator import active
from tests.gpu_simulator.errors import CaptureError
from tests.gpu_simulator.memory import Allocation

STREAM_RING = 32
"""PyTorch has this many streams per device and priority, and assigns them in turn."""

StreamKey = tuple[int, int]
"""Device and number; number 0 is the default stream."""
Vector = dict[StreamKey, int]


class Timeline:
    """Launched work, and the part of it that the host has waited for."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._runs_after: dict[StreamKey, Vector] = {}
        self._complete: Vector = {}
        self._arrivals: list[tuple[StreamKey, int, Allocation, Callable[[], None]]] = []
        self._readers: list[tuple[StreamKey, int, int]] = []  # stream, work number, storage that a copy reads

    @property
    def streams(self) -> set[StreamKey]:
        """Streams with launched or waiting work."""
        return set(self._runs_after)

    def launch(self, stream: StreamKey) -> int:
        """Launch work on a stream; returns its number."""
        number = next(self._numbers)
        self._runs_after.setdefault(stream, {})[stream] = number
        return number

    def snapshot(self, stream: StreamKey) -> Vector:
        """All work that the next work on a stream runs after."""
        return dict(self._runs_after.get(stream, {}))

    def join(self, stream: StreamKey, vector: Vector) -> None:
        """Let the next work on a stream run after the given work."""
        _merge(self._runs_after.setdefault(stream, {}), vector)

    def is_complete(self, vector: Vector) -> bool:
        """Whether the host has waited for this work."""
        return all(self._complete.get(stream, 0) >= number for stream, number in vector.items())

    def complete(self, vector: Vector | None) -> None:
        """Mark work as complete, because the host has waited for it; all work launched so far if None."""
        if vector is None:
            vector = {stream: clock.get(stream, 0) for stream, clock in self._runs_after.items()}
        _merge(self._complete, vector)
        arrived = [copy for copy in self._arrivals if self._is_done(copy[0], copy[1])]
        self._arrivals = [copy for copy in self._arrivals if not self._is_done(copy[0], copy[1])]
        self._readers = [copy for copy in self._readers if not self._is_done(copy[0], copy[1])]
        for _, _, _, deliver in arrived:
            deliver()

    def send(self, stream: StreamKey, to: Allocation, deliver: Callable[[], None]) -> None:
        """Start a copy to pinned memory. It is delivered when the host has waited for it."""
        self._arrivals.append((stream, self.launch(stream), to, deliver))

    def read(self, stream: StreamKey, source: Allocation) -> None:
        """Start a copy from pinned memory."""
        self._readers.append((stream, self.launch(stream), source.number))

    def is_arriving(self, allocation: Allocation) -> bool:
        """Whether a copy to this pinned memory is in progress."""
        return any(to is allocation for _, _, to, _ in self._arrivals)

    def is_being_read(self, allocation: Allocation) -> bool:
        """Whether a copy from this pinned memory is in progress."""
        return any(number == allocation.number for _, _, number in self._readers)

    @property
    def is_idle(self) -> bool:
        """Whether no copy to or from pinned memory is in progress."""
        return not self._arrivals and not self._readers

    def _is_done(self, stream: StreamKey, number: int) -> bool:
        return self._complete.get(stream, 0) >= number


def _merge(into: Vector, vector: Vector) -> None:
    for stream, number in vector.items():
        into[stream] = max(into.get(stream, 0), number)


class Stream:
    """`torch.cuda.Stream`: the next stream of the device's ring; `number` is internal to the simulator."""

    def __init__(self, device: Any = None, priority: int = 0, *, number: int | None = None) -> None:
        self._simulator = active.simulator()
        index = self._simulator.index_of(device)
        if number is None:
            number = 1 + self._simulator.streams_made[index] % STREAM_RING
            self._simulator.streams_made[index] += 1
        self.key: StreamKey = (index, number)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.key[0])

    @property
    def cuda_stream(self) -> int:
        return self.key[1]

    stream_id = cuda_stream

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def wait_stream(self, other: Stream) -> None:
        self._simulator.timeline.join(self.key, self._simulator.timeline.snapshot(other.key))

    def wait_event(self, event: Event) -> None:
        self._simulator.timeline.join(self.key, event.vector)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        self._simulator.wait("stream.synchronize()", self._simulator.timeline.snapshot(self.key))

    def query(self) -> bool:
        return self._simulator.timeline.is_complete(self._simulator.timeline.snapshot(self.key))


class StreamContext:
    """`torch.cuda.stream(...)`."""

    def __init__(self, stream: Stream | None) -> None:
        self._simulator = active.simulator()
        self._stream = stream

    def __enter__(self) -> None:
        if self._stream is not None:
            self._device = self._simulator.device
            self._simulator.device = self._stream.key[0]
            self._before = self._simulator.current_stream()
            self._simulator.set_stream(self._stream)

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._simulator.set_stream(self._before)
            self._simulator.device = self._device


class Event:
    """`torch.cuda.Event`. The first query after a record returns unfinished, later queries return finished."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._simulator = active.simulator()
        self._has_timing = enable_timing
        self._is_captured = False
        self._num_queries = 0
        self._at_s: float | None = None
        self.vector: Vector = {}

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self._simulator.current_stream()
        self._is_captured = self._simulator.capturing is not None
        self._simulator.counters["timing_event_records" if self._has_timing else "event_records"] += 1
        self._simulator.timeline.launch(stream.key)
        self.vector = self._simulator.timeline.snapshot(stream.key)
        self._num_queries, self._at_s = 0, time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        self._simulator.timeline.join((stream or self._simulator.current_stream()).key, self.vector)

    def synchronize(self) -> None:
        self._refuse_captured("event.synchronize()")
        self._simulator.wait("event.synchronize()", self.vector, counter="event_waits")

    def query(self) -> bool:
        self._refuse_captured("event.query()")
        self._num_queries += 1
        if self._num_queries > 1:
            self._simulator.timeline.complete(self.vector)
        return self._simulator.timeline.is_complete(self.vector)

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds between two records, by the host's clock."""
        if not (self._has_timing and other._has_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._at_s is None or other._at_s is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        for event in (self, other):
            if not self._simulator.timeline.is_complete(event.vector):
                raise RuntimeError("CUDA error: device not ready: the host has not waited for both events")
        return (other._at_s - self._at_s) * 1e3

    def _refuse_captured(self, what: str) -> None:
        if self._is_captured:
            self._simulator.report(f"{what}: the event was recorded inside a capture", CaptureError)
