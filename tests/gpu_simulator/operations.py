"""Every operation of torch, as the device would take it: checked, run on the CPU, labelled, counted and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu_simulator.emulated import emulations
from tests.gpu_simulator.errors import DeviceMismatch
from tests.gpu_simulator.memory import Allocation, key_of, poison
from tests.gpu_simulator.simulator import HOST, Simulator, place, plainly

_EMPTY = {"empty", "empty_strided", "new_empty", "empty_like", "new_empty_strided", "empty_permuted"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "addmv", "mv", "addbmm", "addmm_", "baddbmm_", "einsum"}
_HOST_READS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "allclose"}
_DATA_SHAPED = {"nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "bincount", "unique_dim"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_OF_BOTH_SIDES = {"set_", "_has_compatible_shallow_copy_type"}


class Operation:
    """What the simulator needs to know about one overload of an operation."""

    __slots__ = ("is_empty", "is_mutable", "is_product", "name", "run", "written")

    def __init__(self, overload: Any, run: Any) -> None:
        schema = overload._schema
        self.name = schema.name.split("::")[1]
        self.run = run
        self.is_mutable = schema.is_mutable
        self.is_empty = self.name in _EMPTY
        self.is_product = self.name in _PRODUCTS
        self.written = [
            (number, argument.name)
            for number, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]

    def written_tensors(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        """The arguments that it writes to."""
        found = [args[number] if number < len(args) else kwargs.get(name) for number, name in self.written]
        return tensors_in(found, {})


class OperationMode(TorchDispatchMode):
    """Sees every operation that reaches torch's dispatcher."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        self._simulator = simulator
        self._emulated = emulations()
        self._operations: dict[Any, Operation] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without this torch imports all of its compiler at the first operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _operation(self, func: Any) -> Operation:
        found = self._operations.get(func)
        if found is None:
            found = self._operations[func] = Operation(func, self._emulated.get(func, func))
        return found

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        operation, memory = self._operation(func), self._simulator.memory
        leaves = tensors_in(args, kwargs)
        keys = [key_of(x) for x in leaves]
        allocations = [memory.at(key) for key in keys]
        devices = [None if one is None else one.device for one in allocations]
        if not self._simulator.timeline.is_idle:
            self._check_pinned(operation, args, kwargs, allocations)
        if operation.name == "copy_" and devices[0] != devices[1]:
            return self._copy(func, args, kwargs, devices)
        index = self._device_of_result(devices)
        if index is None:
            return func(*args, **kwargs)
        self._check(operation, leaves, devices)
        if operation.is_product:
            self._simulator.use_cublas(index)
        self._prepare(operation, args, kwargs)
        found = operation.run(*args, **kwargs)
        fresh = self._register(operation, index, set(keys), found)
        if operation.is_empty or not (operation.is_mutable or fresh):
            return found  # a view, or memory without contents
        self._launched(operation, args, kwargs, fresh, index)
        return found

    def _device_of_result(self, devices: list[int | None]) -> int | None:
        placing = self._simulator.placing
        if placing is not None:
            return None if placing == HOST else placing
        for device in devices:
            if device is not None:
                return device
        return None

    def _check(self, operation: Operation, leaves: list[Tensor], devices: list[int | None]) -> None:
        """Whether the device would take the operation, and whether the host waits for it."""
        simulator, name = self._simulator, operation.name
        on_device = {device for device in devices if device is not None}
        if len(on_device) > 1 or (on_device and None in devices and name not in _OF_BOTH_SIDES):
            self._check_sides(name, leaves, devices)
        if name in _HOST_READS:
            name = "item" if name == "_local_scalar_dense" else name
            for x in leaves:
                simulator.check_written(f"{name}()", x)
            simulator.wait(f"{name}()")
        is_masked = name == "index" and any(x.dtype in (torch.bool, torch.uint8) for x in leaves[1:])
        if name in _DATA_SHAPED or is_masked:
            simulator.wait(f"{name}, whose shape depends on data")

    def _check_sides(self, name: str, leaves: list[Tensor], devices: list[int | None]) -> None:
        for number, (x, device) in enumerate(zip(leaves, devices, strict=True)):
            if device == devices[0] and number == 0 and device is not None:
                continue
            if device is None and not x.dim():
                continue  # a number, passed by value
            if device is None and name in _INDEXING and number:
                self._simulator.wait(f"{name} with an index of the host")
                continue
            if device is None or any(other not in (None, device) for other in devices):
                kind, side = f"{str(x.dtype)[6:]} {list(x.shape)}", "the host" if device is None else f"cuda:{device}"
                text = f"{name}: Expected all tensors to be on the same device, but a {kind} is on {side}, at {place()}"
                self._simulator.report(text, DeviceMismatch)

    def _prepare(self, operation: Operation, args: Any, kwargs: Any) -> None:
        """Inside a capture: keep what is about to be overwritten, and run out of memory where a test asks for it."""
        capturing = self._simulator.capturing
        if capturing is None:
            return
        if capturing.is_failing:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated: the test asked this capture to fail).")
        if operation.is_mutable:
            for x in operation.written_tensors(args, kwargs):
                allocation = self._simulator.memory.find(x)
                if allocation is not None:
                    capturing.save(x, allocation)

    def _register(self, operation: Operation, index: int, given: set[int], found: Any) -> list[Tensor]:
        """Label new storages as the device's; returns the tensors that lie in them."""
        memory = self._simulator.memory
        fresh = [x for x in tensors_in((found,), {}) if key_of(x) not in given]
        for x in fresh:
            is_new = memory.find(x) is None
            allocation = memory.add(x, index)
            if self._simulator.capturing is not None and is_new:
                self._simulator.capturing.owns([allocation])
        if operation.is_empty:
            with plainly():
                for x in fresh:
                    poison(x)
        return fresh

    def _launched(self, operation: Operation, args: Any, kwargs: Any, fresh: list[Tensor], index: int) -> None:
        simulator = self._simulator
        if simulator.capturing is not None:
            simulator.capturing.record(operation.name, operation.run, args, kwargs, fresh)
        else:
            simulator.counters["kernel_launches"] += 1
            simulator.timeline.launch(simulator.stream_key(index))

    def _check_pinned(self, operation: Operation, args: Any, kwargs: Any, allocations: list[Allocation | None]) -> None:
        """Whether the host touches pinned memory that a copy is still reading or writing."""
        timeline = self._simulator.timeline
        pinned = {one.number: one for one in allocations if one is not None and one.device is None}
        if not pinned or operation.name in ("copy_", "detach", "alias") or operation.name in _VIEWS:
            pinned = {}
        written = operation.written_tensors(args, kwargs) if operation.is_mutable else []
        for x in written:
            one = self._simulator.memory.find(x)
            if one is not None and one.device is None and timeline.is_being_read(one):
                self._simulator.report(f"{operation.name} writes pinned memory before a copy from it is complete, at {place()}")
        if any(timeline.is_arriving(one) for one in pinned.values()):
            self._simulator.report(f"{operation.name} uses pinned memory before the copy to it has arrived, at {place()}")

    # Copies between host and device.

    def _copy(self, func: Any, args: Any, kwargs: Any, devices: list[int | None]) -> Tensor:
        to, source = args[0], args[1]
        is_blocking = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if devices[0] is not None and devices[1] is not None:  # from device to device
            self._simulator.counters["kernel_launches"] += 1
            return func(*args, **kwargs)
        if devices[0] is None:
            return self._copy_to_host(to, source, devices[1] or 0, is_blocking=is_blocking)
        return self._copy_to_device(to, source, devices[0], is_blocking=is_blocking)

    def _copy_to_device(self, to: Tensor, source: Tensor, index: int, *, is_blocking: bool) -> Tensor:
        simulator, pinned = self._simulator, self._simulator.memory.find(source)
        if self._simulator.is_setting_item and not source.dim():
            pass  # a number, which a fill passes by value
        elif is_blocking or pinned is None:
            simulator.counters["copies_to_device"] += 1
            simulator.wait_for_stream("copy to the device", index)
        else:
            simulator.counters["copies_to_device"] += 1
        copy = CopyToDevice(simulator, pinned, index)
        if simulator.capturing is not None:
            self._prepare(self._operation(torch.ops.aten.copy_.default), (to, source), {})
            simulator.capturing.record("copy_", copy, (to, source), {}, [])
            with plainly():
                to.copy_(source)
            return to
        if pinned is not None and not is_blocking:
            return copy(to, source)
        simulator.timeline.launch(simulator.stream_key(index))
        return torch.ops.aten.copy_.default(to, source)

    def _copy_to_host(self, to: Tensor, source: Tensor, index: int, *, is_blocking: bool) -> Tensor:
        simulator, pinned = self._simulator, self._simulator.memory.find(to)
        simulator.counters["copies_to_host"] += 1
        if is_blocking or pinned is None:
            simulator.wait_for_stream("copy to the host", index)
            simulator.check_written("copy to the host", source)
            return torch.ops.aten.copy_.default(to, source)
        copy = CopyToHost(simulator, pinned, index)
        if simulator.capturing is not None:
            simulator.capturing.record("copy_", copy, (to, source), {}, [])
            return to
        return copy(to, source)


class CopyToDevice:
    """A copy from pinned memory that the host does not wait for."""

    def __init__(self, simulator: Simulator, pinned: Allocation | None, index: int) -> None:
        self._simulator, self._pinned, self._index = simulator, pinned, index

    def __call__(self, to: Tensor, source: Tensor) -> Tensor:
        if self._pinned is not None:
            self._simulator.timeline.read(self._simulator.stream_key(self._index), self._pinned)
        with plainly():
            return to.copy_(source)


class CopyToHost:
    """A copy to pinned memory: the host reads poison until it has waited for the copy."""

    def __init__(self, simulator: Simulator, pinned: Allocation, index: int) -> None:
        self._simulator, self._pinned, self._index = simulator, pinned, index

    def __call__(self, to: Tensor, source: Tensor) -> Tensor:
        self._simulator.check_written("copy to pinned memory", source)
        with plainly():
            value = source.clone()
            poison(to)

        def deliver() -> None:
            if self._pinned.is_live:
                to.copy_(value)

        self._simulator.timeline.send(self._simulator.stream_key(self._index), self._pinned, deliver)
        return to


_VIEWS = {"view", "select", "slice", "as_strided", "reshape", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze"}


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """All tensors among nested arguments."""
    found: list[Tensor] = []
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple)):
            found += tensors_in(x, {})
    return found
