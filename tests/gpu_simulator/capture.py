"""CUDA graphs: a capture records operations, and a replay runs exactly these on the same memory.

As on a GPU, a capture computes nothing: its operations run once on the CPU to determine shapes, and their writes are undone.
Memory that existed before is referenced weakly. Memory allocated in the capture belongs to the pool of the graph: the graph
recreates temporaries, and references tensors that the program keeps weakly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tests.gpu_simulator import active
from tests.gpu_simulator.errors import CaptureError, PoolError, UseAfterFree
from tests.gpu_simulator.memory import Allocation, bytes_at, poison, poison_allocation, typed
from tests.gpu_simulator.simulator import caller_location, unsimulated
from tests.gpu_simulator.streams import Stream, StreamContext
from tests.gpu_simulator.workspaces import PoolId, Workspace

Function: TypeAlias = Callable[..., Any]


class TensorView:
    """The memory of a tensor: an allocation, and a view of it."""

    __slots__ = ("allocation", "dtype", "offset", "size", "stride")

    def __init__(self, tensor: Tensor, allocation: Allocation) -> None:
        self.allocation = allocation
        self.dtype, self.size, self.stride = tensor.dtype, tensor.shape, tensor.stride()
        self.offset = tensor.storage_offset()

    def tensor(self, memory: dict[int, Tensor]) -> Tensor:
        """This view, of memory given as bytes per allocation."""
        storage = memory[self.allocation.number].untyped_storage()
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


class Node:
    """A recorded operation. `outs` are the new tensors that it returned."""

    __slots__ = ("args", "function", "kwargs", "location", "name", "outs")

    def __init__(self, name: str, function: Function, args: Any, kwargs: Any, outs: list[Any]) -> None:
        self.name, self.function, self.args, self.kwargs, self.outs = name, function, args, kwargs, outs
        self.location = caller_location()


class CUDAGraph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._simulator = active.simulator()
        self.number = next(self._simulator.graph_numbers)
        self.pool_id: PoolId = (0, 0)
        self.workspaces: set[Workspace] = set()
        self.location = caller_location()
        self._is_captured = False
        self._forget()

    def _forget(self) -> None:
        self.nodes: list[Node] = []
        self._own: dict[int, Allocation] = {}
        self._external: dict[int, Allocation] = {}
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._calls: list[tuple[Function, Any, Any, list[Tensor]]] = []
        self._memory: dict[int, Tensor] = {}
        self._fills: dict[int, Tensor] = {}
        self._kept: list[Allocation] = []

    # Capture.

    def capture_begin(
        self, pool: PoolId | None = None, capture_error_mode: str = "global", check_input_liveness: bool = False
    ) -> None:
        simulator = self._simulator
        self.stream = simulator.current_stream().key
        if simulator.capturing is not None:
            simulator.report("a capture begins during another capture", CaptureError)
        if self.stream[1] == 0:
            simulator.report("CUDA graphs must be captured on a non-default stream.", CaptureError)
        if self._is_captured:
            simulator.report("this CUDAGraph instance already has a captured graph: call reset() first", CaptureError)
        self.pool_id = pool or simulator.pools.new()
        self._check_pool()
        simulator.pools.open(self.pool_id)
        self.is_failing = simulator.begin_capture()
        self._bytes_before = simulator.memory.allocated_bytes[self.stream[0]]
        self._peak_before = simulator.memory.peak_bytes[self.stream[0]]
        simulator.memory.reset_peak(self.stream[0])
        simulator.capturing = self

    def _check_pool(self) -> None:
        stream = self._simulator.workspaces.stream_with_workspace_in(self.pool_id)
        if self._simulator.pools.is_reopened(self.pool_id) and stream is not None:
            self._simulator.report(
                f"capture into a pool whose last graph was destroyed but which holds the cuBLAS workspace of stream {stream[1]}"
                ": INTERNAL ASSERT use_count > 0 in torch before #175276. Call "
                "torch._C._cuda_clearCublasWorkspaces() before and after the captured computation.",
                PoolError,
            )

    def capture_end(self) -> None:
        if self._simulator.capturing is not self:
            raise CaptureError("capture_end without capture_begin")
        if self.is_failing:
            self.abort()
            raise out_of_memory()
        self._end()
        self._is_captured = True
        self._simulator.counters["captures"] += 1
        self._kept = [allocation for allocation in self._own.values() if allocation.is_live]
        if self._kept:
            self._simulator.graphs_with_results.add(self)
        with unsimulated():
            for allocation in self._kept:
                poison_allocation(allocation)

    def abort(self) -> None:
        """End a capture after an error."""
        self._end()
        self._forget()
        self._simulator.pools.close(self.pool_id)

    def _end(self) -> None:
        memory, device = self._simulator.memory, self.stream[0]
        self._simulator.capturing = None
        used = memory.peak_bytes[device] - self._bytes_before
        pools = self._simulator.pools
        pools.reserved_bytes[self.pool_id] = max(pools.reserved_bytes[self.pool_id], used)
        memory.peak_bytes[device] = max(memory.peak_bytes[device], self._peak_before)
        with unsimulated():
            for tensor, before in self._saved.values():
                tensor.copy_(before)
        self._saved.clear()

    def save(self, tensor: Tensor, allocation: Allocation) -> None:
        """Save memory before a captured operation overwrites it."""
        if allocation.number not in self._own and allocation.number not in self._saved:
            with unsimulated():
                whole = bytes_at(allocation.address, allocation.nbytes)
                self._saved[allocation.number] = (whole, whole.clone())

    def add_own(self, allocations: Iterable[Allocation]) -> None:
        """Add storages that the capture has allocated."""
        self._own.update((allocation.number, allocation) for allocation in allocations)

    def record(self, name: str, function: Function, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
        """Record an operation: the function to replay, its arguments, and the new tensors that it returned."""
        views = [self._view_of(x) for x in outs]
        self.nodes.append(Node(name, function, _map(self._view_of, args), _map(self._view_of, kwargs), views))

    def _view_of(self, tensor: Tensor) -> TensorView | Tensor:
        allocation = self._simulator.memory.find(tensor)
        if allocation is None:
            with unsimulated():
                return tensor.clone()  # a number on the host, passed by value at the launch
        if allocation.number not in self._own:
            self._external[allocation.number] = allocation
        return TensorView(tensor, allocation)

    # Replay.

    def _build(self) -> None:
        """Create tensors over the graph's memory for every call. They do not keep memory of the program alive."""
        self._kept = [allocation for allocation in self._own.values() if allocation.is_live]
        self._memory = {
            memory.number: bytes_at(memory.address, memory.nbytes)
            if memory.is_live
            else torch.empty(memory.nbytes, dtype=torch.uint8)
            for memory in (*self._own.values(), *self._external.values())
        }

        def tensor_at(x: Any) -> Any:
            return x.tensor(self._memory) if isinstance(x, TensorView) else x

        self._calls = [
            (
                node.function,
                _map(tensor_at, node.args, TensorView),
                _map(tensor_at, node.kwargs, TensorView),
                [tensor_at(x) for x in node.outs],
            )
            for node in self.nodes
        ]
        self._fills = {number: typed(self._memory[number], allocation.dtype) for number, allocation in self._own.items()}

    def replay(self) -> None:
        simulator = self._simulator
        if not self._is_captured:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        if simulator.capturing is not None:
            simulator.report("a graph is replayed inside a capture", CaptureError)
        self._check_memory()
        simulator.counters["graph_launches"] += 1
        simulator.counters["graph_nodes_launched"] += len(self.nodes)
        simulator.timeline.launch(simulator.stream_key(self.stream[0]))
        with unsimulated():
            if not self._calls or not all(allocation.is_live for allocation in self._kept):
                self._build()
            for fill in self._fills.values():
                poison(fill)
            for graph in simulator.graphs_with_results:
                if graph.pool_id == self.pool_id and graph.number > self.number:
                    graph.poison_kept()
            for function, args, kwargs, outs in self._calls:
                result = function(*args, **kwargs)
                if outs:
                    _copy_results(outs, result, args, kwargs)

    def poison_kept(self) -> None:
        """Poison the results of this graph, because temporaries of an earlier graph of the pool may overwrite them."""
        for allocation in self._kept:
            if allocation.is_live:
                poison_allocation(allocation)

    def _check_memory(self) -> None:
        for workspace in self.workspaces:
            if not workspace.is_valid_for(self.number):
                self._simulator.report(
                    f"replay of the graph created at {self.location}: the cuBLAS workspace of its capture has been freed, "
                    "because another graph of its stream was destroyed or the workspaces were cleared (pytorch#193402)",
                    UseAfterFree,
                )
        freed = {number for number, allocation in self._external.items() if not allocation.is_live}
        if freed:
            self._simulator.report(self._use_after_free(freed), UseAfterFree)
            raise UseAfterFree(self._use_after_free(freed))  # even if problems do not raise: the memory cannot be read

    def _use_after_free(self, freed: set[int]) -> str:
        for node in self.nodes:
            views: list[TensorView] = []
            _map(views.append, (node.args, node.kwargs), TensorView)
            for view in views:
                if view.allocation.number in freed:
                    kind = f"{str(view.dtype)[6:]} {list(view.size)}"
                    return (
                        f"replay: {node.name}, captured at {node.location}, uses a {kind} that was created before the capture "
                        "and has been freed since"
                    )
        return "replay: memory that was created before the capture has been freed since"

    def pool(self) -> PoolId:
        return self.pool_id

    def instantiate(self) -> None:
        """Nothing to do: a recorded list needs no instantiation."""

    def enable_debug_mode(self) -> None:
        """Nothing to do."""

    def reset(self) -> None:
        if self._is_captured:
            self._is_captured = False
            self._simulator.workspaces.free_for_destroyed_graph(self.stream)
            self._simulator.pools.close(self.pool_id)
            self.workspaces = set()
            self._forget()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.reset()


class GraphContext:
    """`torch.cuda.graph(...)`."""

    default_capture_stream: Stream | None = None

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: PoolId | None = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
        enable_annotations: bool = False,
        check_input_liveness: bool = False,
    ) -> None:
        if stream is None:
            if GraphContext.default_capture_stream is None:
                GraphContext.default_capture_stream = Stream()
            stream = GraphContext.default_capture_stream
        self._simulator = active.simulator()
        self._graph = cuda_graph
        self._options: dict[str, Any] = {
            "pool": pool,
            "capture_error_mode": capture_error_mode,
            "check_input_liveness": check_input_liveness,
        }
        self._stream = StreamContext(stream)

    def __enter__(self) -> None:
        self._simulator.wait("torch.cuda.graph()")
        self._simulator.memory.empty_cache()
        self._stream.__enter__()
        try:
            self._graph.capture_begin(**self._options)
        except BaseException:
            self._stream.__exit__()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._graph.capture_end()
            elif self._simulator.capturing is self._graph:
                self._graph.abort()
        finally:
            self._stream.__exit__()


def out_of_memory() -> torch.OutOfMemoryError:
    """The error of a capture selected by `Simulator.fail_captures`."""
    return torch.OutOfMemoryError("CUDA out of memory (simulated: the test asked this capture to fail).")


def _map(function: Function, x: Any, kind: type = Tensor) -> Any:
    """Nested arguments, with the function applied to every object of a kind."""
    if isinstance(x, kind):
        return function(x)
    if isinstance(x, (list, tuple)):
        return type(x)(_map(function, item, kind) for item in x)
    if isinstance(x, dict):
        return {key: _map(function, item, kind) for key, item in x.items()}
    return x


def _copy_results(outs: list[Tensor], result: Any, args: Any, kwargs: Any) -> None:
    """Copy the results of a replayed operation to the memory of the captured results."""
    new = [x for x in (result if isinstance(result, (list, tuple)) else (result,)) if isinstance(x, Tensor)]
    if len(new) > len(outs):  # some are arguments, written in place
        argument_keys: set[int] = set()
        _map(lambda x: argument_keys.add(x.untyped_storage()._cdata), (args, kwargs))
        new = [x for x in new if x.untyped_storage()._cdata not in argument_keys]
    for out, value in zip(outs, new, strict=True):
        out.copy_(value)
