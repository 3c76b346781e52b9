"""The state of the simulated machine: devices, streams, counters, and the list of problems."""

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
"""Value of `Simulator.placing` while a call makes tensors on the host."""
_OURS = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


class Simulator:
    """A machine with simulated GPUs.

    Attributes:
        counters: how often each kind of thing happened: `captures`, `graph_launches`, `graph_nodes_launched`,
            `kernel_launches`, `waits`, `event_waits`, `event_records`, `timing_event_records`, `copies_to_device`,
            `copies_to_host`.
        wait_places: waits of the host for the device by what waits and the line that caused it.
        problems: what went wrong, each text once, whether or not it also raised.

    Args:
        properties: of every device.
        num_devices: of the machine.
        raises: whether problems that a GPU would fault on raise.
    """

    def __init__(self, properties: DeviceProperties, num_devices: int = 1, *, raises: bool = True) -> None:
        self.properties = properties
        self.num_devices = num_devices
        self.counters: Counter[str] = Counter()
        self.wait_places: Counter[str] = Counter()
        self.problems: list[str] = []
        self.raises = raises
        self.memory = Memory(num_devices, properties.total_memory)
        self.timeline = Timeline()
        self.workspaces = Workspaces(self.memory.charge, properties.workspace_bytes)
        self.pools = Pools()
        self.device = 0
        self.streams_made = [0] * num_devices
        self.capturing: CUDAGraph | None = None
        self.placing: int | None = None
        """Where the running call makes tensors: a device, `HOST`, or None where its arguments decide."""
        self.is_setting_item = False
        self.graph_numbers = itertools.count(1)
        self.graphs_with_results: weakref.WeakSet[CUDAGraph] = weakref.WeakSet()
        """Graphs of which the program kept a tensor that their capture allocated."""
        self._default_streams: dict[int, Stream] = {}
        self._streams: dict[int, Stream] = {}
        self._captures_begun = 0
        self._failing_captures: set[int] = set()

    # What tests ask for.

    def fail_captures(self, *numbers: int) -> None:
        """Let captures run out of memory: 1 is the next one, 2 the one after it."""
        self._failing_captures.update(self._captures_begun + number for number in numbers)

    @property
    def num_workspaces(self) -> int:
        """Streams that hold a cuBLAS workspace now."""
        return len(self.workspaces.live)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the cuBLAS workspaces that are held now."""
        return self.num_workspaces * self.properties.workspace_bytes

    @property
    def num_workspace_streams(self) -> int:
        """Streams on which a matrix product has run."""
        return len(self.workspaces.streams_ever)

    def report(self, text: str, error: type[SimulatedFault] | None = None) -> None:
        """Put a problem on the list.

        Raises:
            SimulatedFault: `error`, where one is given and the simulator raises.
        """
        if text not in self.problems:
            self.problems.append(text)
        if error is not None and self.raises:
            raise error(text)

    # What the parts of the simulator ask for.

    def index_of(self, device: Any) -> int:
        """Index of a device that torch's caller named: None is the current one.

        Raises:
            RuntimeError: there is no such device.
        """
        if device is None:
            return self.device
        if isinstance(device, int):
            index = device
        else:
            found = torch.device(device)
            if found.type != "cuda":
                raise ValueError(f"Expected a cuda device, but got: {device}")
            index = self.device if found.index is None else found.index
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
        """Make a stream its device's current one."""
        self._streams[stream.key[0]] = stream

    def wait(self, what: str, vector: Vector | None = None, *, counter: str = "waits") -> None:
        """The host waits for work; None: for all of it.

        Raises:
            CaptureError: a capture is under way.
        """
        if self.capturing is not None:
            self.report(f"{what} inside a capture, at {place()}", CaptureError)
        self.counters[counter] += 1
        if counter == "waits":
            self.wait_places[f"{what} at {place()}"] += 1
        if self.timeline.is_idle:
            self.timeline.complete(vector)
            return
        with plainly():
            self.timeline.complete(vector)

    def wait_for_stream(self, what: str, index: int) -> None:
        """The host waits for the current stream of a device, as a synchronous copy does."""
        self.wait(what, self.timeline.snapshot(self.current_stream(index).key))

    def check_written(self, what: str, tensor: Tensor) -> None:
        """The host reads a device tensor.

        Raises:
            UnwrittenMemory: part of it has not been written.
        """
        with plainly():
            is_poisoned = holds_poison(tensor)
        if is_poisoned:
            kind = f"{str(tensor.dtype)[6:]} {list(tensor.shape)}"
            self.report(f"{what} reads memory that was not written: a {kind}, at {place()}", UnwrittenMemory)

    def use_cublas(self, index: int) -> None:
        """A matrix product runs on the current stream of a device."""
        workspace = self.workspaces.use(self.current_stream(index).key, self.capturing)
        if self.capturing is not None:
            self.capturing.workspaces.add(workspace)

    def begin_capture(self) -> bool:
        """Count a capture; returns whether it is to run out of memory."""
        self._captures_begun += 1
        return self._captures_begun in self._failing_captures

    def stream_key(self, index: int) -> StreamKey:
        """The current stream of a device, as the timeline names it."""
        return self.current_stream(index).key


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Run torch on the CPU as it is, whatever kind of tensor is written to."""
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes(), torch.inference_mode():
        yield


def place() -> str:
    """File and line of the innermost frame that belongs neither to the simulator nor to torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = _name_of(frame.f_code.co_filename)
        if name is not None:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@functools.cache
def _name_of(path: str) -> str | None:
    """A file's name, None for torch's and the simulator's own."""
    name = Path(path).name
    is_library = path.startswith((_TORCH, "<")) or name == "contextlib.py"
    is_ours = path.startswith(_OURS) and not name.startswith("test_")
    return None if is_library or is_ours else name
