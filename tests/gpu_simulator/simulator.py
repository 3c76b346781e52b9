"""State of the simulated machine: devices, streams, counters, and the list of problems."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.gpu_simulator.errors import CaptureError, SimulatedFault, UnwrittenMemory
from tests.gpu_simulator.hardware import DeviceProperties
from tests.gpu_simulator.memory import Memory, holds_poison
from tests.gpu_simulator.streams import Stream, StreamKey, Timeline, Vector
from tests.gpu_simulator.workspaces import Pools, Workspaces

if TYPE_CHECKING:
    from tests.gpu_simulator.capture import CUDAGraph

HOST = -1
"""Value of `Simulator.creation_device` while a call creates tensors on the host."""
_SIMULATOR = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


class Simulator:
    """A machine with simulated GPUs.

    Attributes:
        counters: number of events by kind: `captures`, `graph_launches`, `graph_nodes_launched`,
            `kernel_launches`, `waits`, `event_waits`, `event_records`, `timing_event_records`, `copies_to_device`,
            `copies_to_host`.
        wait_locations: number of waits of the host for the device, by the waiting call and its line.
        problems: messages about errors, each once, including those that raised.

    Args:
        properties: of every device.
        num_devices: of the machine.
        raises: whether problems that would be errors on a GPU raise.
    """

    def __init__(self, properties: DeviceProperties, num_devices: int = 1, *, raises: bool = True) -> None:
        self.properties = properties
        self.num_devices = num_devices
        self.counters: Counter[str] = Counter()
        self.wait_locations: Counter[str] = Counter()
        self.problems: list[str] = []
        self.raises = raises
        self.memory = Memory(num_devices, properties.total_memory)
        self.timeline = Timeline()
        self.workspaces = Workspaces(self.memory.charge, properties.workspace_bytes)
        self.pools = Pools()
        self.device = 0
        self.streams_made = [0] * num_devices
        self.capturing: CUDAGraph | None = None
        self.creation_device: int | None = None
        """Where the current call creates tensors: a device, `HOST`, or None if its arguments decide."""
        self.is_setting_item = False
        self.graph_numbers = itertools.count(1)
        self.graphs_with_results: weakref.WeakSet[CUDAGraph] = weakref.WeakSet()
        """Graphs with a tensor that their capture allocated and the program kept."""
        self._default_streams: dict[int, Stream] = {}
        self._streams: dict[int, Stream] = {}
        self._captures_begun = 0
        self._failing_captures: set[int] = set()

    # For tests.

    def fail_captures(self, *numbers: int) -> None:
        """Let captures run out of memory: 1 is the next one, 2 the one after it."""
        self._failing_captures.update(self._captures_begun + number for number in numbers)

    @property
    def num_workspaces(self) -> int:
        """Streams that currently have a cuBLAS workspace."""
        return len(self.workspaces.live)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the current cuBLAS workspaces."""
        return self.num_workspaces * self.properties.workspace_bytes

    @property
    def num_workspace_streams(self) -> int:
        """Streams on which a matrix product has run."""
        return len(self.workspaces.streams_with_products)

    def report(self, text: str, error: type[SimulatedFault] | None = None) -> None:
        """Add a problem to the list.

        Raises:
            SimulatedFault: `error`, if one is given and the simulator raises.
        """
        if text not in self.problems:
            self.problems.append(text)
        if error is not None and self.raises:
            raise error(text)

    # For other modules of the simulator.

    def index_of(self, device: Any) -> int:
        """Index of a device named by a caller of torch; None is the current device.

        Raises:
            RuntimeError: there is no such device.
        """
        if device is None:
            return self.device
        if isinstance(device, int):
            index = device
        else:
            named = torch.device(device)
            if named.type != "cuda":
                raise ValueError(f"Expected a cuda device, but got: {device}")
            index = self.device if named.index is None else named.index
        if not 0 <= index < self.num_devices:
            raise RuntimeError(f"CUDA error: invalid device ordinal {index}: the machine has {self.num_devices}.")
        return index

    def default_stream(self, index: int) -> Stream:
        """Stream 0 of a device."""
        if index not in self._default_streams:
            self._default_streams[index] = Stream(index, number=0)
        return self._default_streams[index]

    def current_stream(self, index: int | None = None) -> Stream:
        """The current stream of a device."""
        index = self.device if index is None else index
        return self._streams.get(index) or self.default_stream(index)

    def set_stream(self, stream: Stream) -> None:
        """Make a stream the current one of its device."""
        self._streams[stream.key[0]] = stream

    def wait(self, what: str, vector: Vector | None = None, *, counter: str = "waits") -> None:
        """Let the host wait for work; for all work if `vector` is None.

        Raises:
            CaptureError: a capture is in progress.
        """
        if self.capturing is not None:
            self.report(f"{what} inside a capture, at {caller_location()}", CaptureError)
        self.counters[counter] += 1
        if counter == "waits":
            self.wait_locations[f"{what} at {caller_location()}"] += 1
        if self.timeline.is_idle:
            self.timeline.complete(vector)
            return
        with unsimulated():
            self.timeline.complete(vector)

    def wait_for_stream(self, what: str, index: int) -> None:
        """Let the host wait for the current stream of a device, like a synchronous copy."""
        self.wait(what, self.timeline.snapshot(self.current_stream(index).key))

    def check_written(self, what: str, tensor: Tensor) -> None:
        """Check a device tensor that the host reads.

        Raises:
            UnwrittenMemory: part of it was never written.
        """
        with unsimulated():
            is_poisoned = holds_poison(tensor)
        if is_poisoned:
            kind = f"{str(tensor.dtype)[6:]} {list(tensor.shape)}"
            self.report(f"{what} reads memory that was not written: a {kind}, at {caller_location()}", UnwrittenMemory)

    def use_cublas(self, index: int) -> None:
        """Account for a matrix product on the current stream of a device."""
        workspace = self.workspaces.use(self.current_stream(index).key, self.capturing)
        if self.capturing is not None:
            self.capturing.workspaces.add(workspace)

    def begin_capture(self) -> bool:
        """Count a capture; returns whether it must run out of memory."""
        self._captures_begun += 1
        return self._captures_begun in self._failing_captures

    def stream_key(self, index: int) -> StreamKey:
        """Key of the current stream of a device in the timeline."""
        return self.current_stream(index).key


@contextlib.contextmanager
def unsimulated() -> Iterator[None]:
    """Run torch on the CPU without the simulator. Inference tensors may be written too."""
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes(), torch.inference_mode():
        yield


def caller_location() -> str:
    """File and line of the innermost frame outside the simulator and torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = _program_file(frame.f_code.co_filename)
        if name is not None:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@functools.cache
def _program_file(path: str) -> str | None:
    """Name of a file; None for files of torch and of the simulator."""
    name = Path(path).name
    is_library = path.startswith((_TORCH, "<")) or name == "contextlib.py"
    is_simulator = path.startswith(_SIMULATOR) and not name.startswith("test_")
    return None if is_library or is_simulator else name
