"""Replaces `torch.cuda` for programs on the simulated machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention.bias import CausalBias

from tests.gpu_simulator import active
from tests.gpu_simulator.calls import CallMode
from tests.gpu_simulator.capture import CUDAGraph, GraphContext
from tests.gpu_simulator.hardware import device_properties
from tests.gpu_simulator.operations import OperationMode
from tests.gpu_simulator.simulator import Simulator, unsimulated
from tests.gpu_simulator.streams import Event, Stream, StreamContext

_MISSING = object()


class DeviceContext:
    """`torch.cuda.device(...)`; a negative index changes nothing."""

    def __init__(self, device: Any) -> None:
        self._simulator = active.simulator()
        is_kept = device is None or (isinstance(device, int) and device < 0)
        self._index = None if is_kept else self._simulator.index_of(device)

    def __enter__(self) -> None:
        self._before = self._simulator.device
        if self._index is not None:
            self._simulator.device = self._index

    def __exit__(self, *_: object) -> None:
        self._simulator.device = self._before


class Generator(torch.Generator):
    """`torch.Generator`: a generator for the device runs on the CPU, and reports the device as its own."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._device = torch.device("cuda", active.simulator().index_of(self._device))

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device


@contextlib.contextmanager
def simulated_gpu(name: str = "NVIDIA H200", *, num_devices: int = 1, raises: bool = True) -> Iterator[Simulator]:
    """Provide torch with a CUDA device in this thread, simulated on CPU tensors.

    Args:
        name: of the GPU, as torch reports it; must be in the project's hardware table.
        num_devices: GPUs in the machine.
        raises: whether problems that would be errors on a GPU raise. All problems are listed in `Simulator.problems`.
    """
    simulator = Simulator(device_properties(name), num_devices, raises=raises)
    active.start(simulator)
    GraphContext.default_capture_stream = None
    try:
        with _patched(simulator), OperationMode(simulator), CallMode(simulator):
            yield simulator
    finally:
        GraphContext.default_capture_stream = None
        active.stop()


@contextlib.contextmanager
def _patched(simulator: Simulator) -> Iterator[None]:
    patches: list[tuple[Any, str, Any]] = [
        *((torch.cuda, name, value) for name, value in _functions(simulator).items()),
        *((torch.cuda, name, value) for name, value in _memory_functions(simulator).items()),
        (torch.cuda.graphs, "graph", GraphContext),
        (torch.cuda.graphs, "CUDAGraph", CUDAGraph),
        (torch, "Generator", Generator),
        (CausalBias, "__new__", _new_bias),
        (torch._C, "_cuda_clearCublasWorkspaces", simulator.workspaces.clear),
    ]
    before = [(owner, name, vars(owner).get(name, _MISSING)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        torch.cuda.default_generators = tuple(Generator(f"cuda:{index}") for index in range(simulator.num_devices))
        yield
    finally:
        torch.cuda.default_generators = ()
        for owner, name, value in before:
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _new_bias(cls: type, *_: Any) -> CausalBias:
    """Create the bias outside the dispatch mode, in which torch cannot create a tensor subclass without data."""
    with unsimulated():
        return torch.Tensor.__new__(cls)


def _functions(simulator: Simulator) -> dict[str, Any]:
    index, properties = simulator.index_of, simulator.properties

    def set_device(device: Any) -> None:
        simulator.device = index(device)

    def same_for_all(value: Any) -> Any:
        """A function of a device that returns the same value for all devices."""

        def get(device: Any = None) -> Any:
            index(device)
            return value

        return get

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": lambda: simulator.num_devices,
        "current_device": lambda: simulator.device,
        "set_device": set_device,
        "device": DeviceContext,
        "synchronize": lambda device=None: simulator.wait("torch.cuda.synchronize()"),
        "Stream": Stream,
        "stream": StreamContext,
        "StreamContext": StreamContext,
        "set_stream": simulator.set_stream,
        "current_stream": lambda device=None: simulator.current_stream(index(device)),
        "default_stream": lambda device=None: simulator.default_stream(index(device)),
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "graph": GraphContext,
        "graph_pool_handle": simulator.pools.new,
        "is_current_stream_capturing": lambda: simulator.capturing is not None,
        "get_device_name": same_for_all(properties.name),
        "get_device_properties": same_for_all(properties),
        "get_device_capability": same_for_all(properties.capability),
        "is_bf16_supported": lambda including_emulation=True: including_emulation or properties.major >= 8,
    }


def _memory_functions(simulator: Simulator) -> dict[str, Any]:
    memory, index = simulator.memory, simulator.index_of

    def reserved(device: Any = None) -> int:
        return memory.reserved_bytes[index(device)] + sum(simulator.pools.reserved_bytes.values())

    def stats(device: Any = None) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": memory.allocated_bytes[index(device)],
            "allocated_bytes.all.peak": memory.peak_bytes[index(device)],
            "reserved_bytes.all.current": reserved(device),
            "reserved_bytes.all.peak": max(reserved(device), memory.peak_bytes[index(device)]),
            "num_alloc_retries": 0,
            "num_ooms": 0,
        }

    return {
        "memory_allocated": lambda device=None: memory.allocated_bytes[index(device)],
        "max_memory_allocated": lambda device=None: memory.peak_bytes[index(device)],
        "memory_reserved": reserved,
        "max_memory_reserved": lambda device=None: stats(device)["reserved_bytes.all.peak"],
        "reset_peak_memory_stats": lambda device=None: memory.reset_peak(index(device)),
        "memory_stats": stats,
        "memory_summary": lambda device=None, abbreviated=False: "\n".join(f"{k}: {v}" for k, v in stats(device).items()),
        "mem_get_info": lambda device=None: (memory.total_bytes - reserved(device), memory.total_bytes),
        "empty_cache": memory.empty_cache,
    }
