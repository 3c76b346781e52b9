"""Runs every torch operation as the device would: checks it, runs it on the CPU, labels, counts and records it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu_simulator.emulated import emulations
from tests.gpu_simulator.errors import DeviceMismatch
from tests.gpu_simulator.memory import Allocation, key_of, poison
from tests.gpu_simulator.simulator import HOST, Simulator, caller_location, unsimulated

_EMPTY = {"empty", "empty_strided", "new_empty", "empty_like", "new_empty_strided", "empty_permuted"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "addmv", "mv", "addbmm", "addmm_", "baddbmm_", "einsum"}
_HOST_READS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "allclose"}
_DATA_SHAPED = {"nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "bincount", "unique_dim"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_MIXED_DEVICE_OPERATIONS = {"set_", "_has_compatible_shallow_copy_type"}


class Operation:
    """Properties of one overload of an operation."""

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
        """The arguments that the operation writes to."""
        written = [args[number] if number < len(args) else kwargs.get(name) for number, name in self.written]
        return tensors_in(written, {})


class OperationMode(TorchDispatchMode):
    """Intercepts every operation that reaches torch's dispatcher."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        self._simulator = simulator
        self._emulated = emulations()
        self._operations: dict[Any, Operation] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without this method torch imports its whole compiler at the first operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _operation_for(self, func: Any) -> Operation:
        operation = self._operations.get(func)
        if operation is None:
            operation = self._operations[func] = Operation(func, self._emulated.get(func, func))
        return operation

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        operation, memory = self._operation_for(func), self._simulator.memory
        leaves = tensors_in(args, kwargs)
        keys = [key_of(x) for x in leaves]
        allocations = [memory.at(key) for key in keys]
        devices = [None if allocation is None else allocation.device for allocation in allocations]
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
        result = operation.run(*args, **kwargs)
        fresh = self._register(operation, index, set(keys), result)
        if operation.is_empty or not (operation.is_mutable or fresh):
            return result  # a view, or uninitialised memory
        self._count_or_record(operation, args, kwargs, fresh, index)
        return result

    def _device_of_result(self, devices: list[int | None]) -> int | None:
        creation_device = self._simulator.creation_device
        if creation_device is not None:
            return None if creation_device == HOST else creation_device
        for device in devices:
            if device is not None:
                return device
        return None

    def _check(self, operation: Operation, leaves: list[Tensor], devices: list[int | None]) -> None:
        """Check that the device would accept the operation, and wait if the host waits for it."""
        simulator, name = self._simulator, operation.name
        on_device = {device for device in devices if device is not None}
        if len(on_device) > 1 or (on_device and None in devices and name not in _MIXED_DEVICE_OPERATIONS):
            self._check_devices(name, leaves, devices)
        if name in _HOST_READS:
            name = "item" if name == "_local_scalar_dense" else name
            for x in leaves:
                simulator.check_written(f"{name}()", x)
            simulator.wait(f"{name}()")
        is_masked = name == "index" and any(x.dtype in (torch.bool, torch.uint8) for x in leaves[1:])
        if name in _DATA_SHAPED or is_masked:
            simulator.wait(f"{name}, whose shape depends on data")

    def _check_devices(self, name: str, leaves: list[Tensor], devices: list[int | None]) -> None:
        for number, (x, device) in enumerate(zip(leaves, devices, strict=True)):
            if device == devices[0] and number == 0 and device is not None:
                continue
            if device is None and not x.dim():
                continue  # a number, passed by value
            if device is None and name in _INDEXING and number:
                self._simulator.wait(f"{name} with an index on the host")
                continue
            if device is None or any(other not in (None, device) for other in devices):
                kind, location = f"{str(x.dtype)[6:]} {list(x.shape)}", "the host" if device is None else f"cuda:{device}"
                text = f"{name}: Expected all tensors to be on the same device, but a {kind} is on {location}"
                self._simulator.report(f"{text}, at {caller_location()}", DeviceMismatch)

    def _prepare(self, operation: Operation, args: Any, kwargs: Any) -> None:
        """Inside a capture: save memory before it is overwritten, and run out of memory if a test asks for it."""
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

    def _register(self, operation: Operation, index: int, argument_keys: set[int], result: Any) -> list[Tensor]:
        """Label new storages as the device's; returns the tensors in them."""
        memory = self._simulator.memory
        fresh = [x for x in tensors_in((result,), {}) if key_of(x) not in argument_keys]
        for x in fresh:
            is_new = memory.find(x) is None
            allocation = memory.add(x, index)
            if self._simulator.capturing is not None and is_new:
                self._simulator.capturing.add_own([allocation])
        if operation.is_empty:
            with unsimulated():
                for x in fresh:
                    poison(x)
        return fresh

    def _count_or_record(self, operation: Operation, args: Any, kwargs: Any, fresh: list[Tensor], index: int) -> None:
        simulator = self._simulator
        if simulator.capturing is not None:
            simulator.capturing.record(operation.name, operation.run, args, kwargs, fresh)
        else:
            simulator.counters["kernel_launches"] += 1
            simulator.timeline.launch(simulator.stream_key(index))

    def _check_pinned(self, operation: Operation, args: Any, kwargs: Any, allocations: list[Allocation | None]) -> None:
        """Report host access to pinned memory that a copy is still reading or writing."""
        timeline = self._simulator.timeline
        pinned = [allocation for allocation in allocations if allocation is not None and allocation.device is None]
        if not pinned or operation.name in ("copy_", "detach", "alias") or operation.name in _VIEWS:
            pinned = []
        written = operation.written_tensors(args, kwargs) if operation.is_mutable else []
        for x in written:
            allocation = self._simulator.memory.find(x)
            if allocation is not None and allocation.device is None and timeline.is_being_read(allocation):
                self._simulator.report(
                    f"{operation.name} writes pinned memory before a copy from it is complete, at {caller_location()}"
                )
        if any(timeline.is_arriving(allocation) for allocation in pinned):
            self._simulator.report(
                f"{operation.name} uses pinned memory before the copy to it has arrived, at {caller_location()}"
            )

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
            pass  # a number: a fill passes it by value
        elif is_blocking or pinned is None:
            simulator.counters["copies_to_device"] += 1
            simulator.wait_for_stream("copy to the device", index)
        else:
            simulator.counters["copies_to_device"] += 1
        copy = CopyToDevice(simulator, pinned, index)
        if simulator.capturing is not None:
            self._prepare(self._operation_for(torch.ops.aten.copy_.default), (to, source), {})
            simulator.capturing.record("copy_", copy, (to, source), {}, [])
            with unsimulated():
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
    """A copy from pinned memory; the host does not wait for it."""

    def __init__(self, simulator: Simulator, pinned: Allocation | None, index: int) -> None:
        self._simulator, self._pinned, self._index = simulator, pinned, index

    def __call__(self, to: Tensor, source: Tensor) -> Tensor:
        if self._pinned is not None:
            self._simulator.timeline.read(self._simulator.stream_key(self._index), self._pinned)
        with unsimulated():
            return to.copy_(source)


class CopyToHost:
    """A copy to pinned memory: the host reads poison until it has waited for the copy."""

    def __init__(self, simulator: Simulator, pinned: Allocation, index: int) -> None:
        self._simulator, self._pinned, self._index = simulator, pinned, index

    def __call__(self, to: Tensor, source: Tensor) -> Tensor:
        self._simulator.check_written("copy to pinned memory", source)
        with unsimulated():
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
    tensors: list[Tensor] = []
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor):
            tensors.append(x)
        elif isinstance(x, (list, tuple)):
            tensors += tensors_in(x, {})
    return tensors
