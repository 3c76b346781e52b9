"""Intercepts torch calls from Python: `device="cuda"` becomes a label, and reads from the device wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode

from tests.gpu_simulator.errors import DeviceMismatch
from tests.gpu_simulator.simulator import HOST, Simulator, caller_location, unsimulated

_FROM_DATA = {"tensor", "as_tensor", "asarray"}
_TEXT_METHODS = {"__repr__", "__str__", "__format__"}


class CallMode(TorchFunctionMode):
    """Intercepts all calls of torch's Python functions and tensor methods."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        self._simulator = simulator
        self._special = {
            "__get__": self._attribute,
            "get_device": lambda func, args, kwargs: -1 if self._index(args[0]) is None else self._index(args[0]),
            "is_pinned": lambda func, args, kwargs: self._simulator.memory.is_pinned(args[0]),
            "pin_memory": self._pin,
            "to": self._to,
            "cuda": self._cuda,
            "cpu": self._cpu,
            "tolist": self._read,
            "numpy": self._as_numpy,
            "__array__": self._as_numpy,
            "__deepcopy__": self._deepcopy,
            "__setitem__": self._set_item,
            "new_tensor": self._new_tensor,
            "record_stream": lambda func, args, kwargs: None,
            "scaled_dot_product_attention": self._attention,
            **dict.fromkeys(_TEXT_METHODS, self._show),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        special = self._special.get(getattr(func, "__name__", ""))
        if special is not None and args and isinstance(args[0], Tensor):
            return special(func, args, kwargs)
        if not kwargs:
            return func(*args)
        return self._create(func, args, dict(kwargs))

    def _index(self, tensor: Tensor) -> int | None:
        return self._simulator.memory.device_of(tensor)

    def _create(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A call that may name a device or ask for pinned memory."""
        self._check_generator(args, kwargs)
        is_pinned, device = kwargs.pop("pin_memory", False), kwargs.pop("device", None)
        if is_pinned:
            with self._creating_on(HOST):
                created = func(*args, **kwargs)
            self._simulator.memory.add(created, None)
            return created
        if device is None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        index = self._index_named(device)
        if name in _FROM_DATA:
            return self._from_data(func, args, kwargs, index)
        with self._creating_on(HOST if index is None else index):
            return func(*args, **kwargs, device=device if index is None else "cpu")

    def _from_data(self, func: Any, args: Any, kwargs: dict[str, Any], index: int | None) -> Tensor:
        """`torch.tensor` and `torch.as_tensor` with a device."""
        if isinstance(args[0], Tensor):
            created = func(*args, **kwargs)
            is_moved = created is not args[0] and self._index(args[0]) is not None
            return created if is_moved and self._index(args[0]) == index else self._moved(created, index, is_blocking=True)
        with self._creating_on(HOST):
            created = func(*args, **kwargs)
        return created if index is None else self._moved(created, index, is_blocking=True)

    def _check_generator(self, args: Any, kwargs: dict[str, Any]) -> None:
        """Check that random numbers for a device come from a generator of that device."""
        generator, device = kwargs.get("generator"), kwargs.get("device")
        if generator is None:
            return
        is_method = device is None and args and isinstance(args[0], Tensor)
        index = self._index(args[0]) if is_method else None if device is None else self._index_named(device)
        kind = "cpu" if index is None else "cuda"
        if generator.device.type != kind:
            text = f"Expected a {kind!r} device type for generator but found {generator.device.type!r}, at {caller_location()}"
            self._simulator.report(text, DeviceMismatch)

    def _index_named(self, device: Any) -> int | None:
        """Index of a CUDA device named by a caller; None for another kind of device."""
        if isinstance(device, int) and not isinstance(device, bool):
            return self._simulator.index_of(device)
        if torch.device(device).type != "cuda":
            return None
        return self._simulator.index_of(device)

    @contextmanager
    def _creating_on(self, device: int) -> Iterator[None]:
        before, self._simulator.creation_device = self._simulator.creation_device, device
        try:
            yield
        finally:
            self._simulator.creation_device = before

    # Copies between devices.

    def _to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, rest, options = args[0], list(args[1:]), dict(kwargs)
        other = options.pop("other", None)
        if rest and isinstance(rest[0], Tensor):
            other = rest.pop(0)
        copies = options.pop("copy", False)
        if other is not None:
            index, dtype, is_async = self._index(other), other.dtype, bool(options.get("non_blocking", False))
            has_device = True
        else:
            if len(rest) == (4 if not isinstance(rest[0] if rest else None, torch.dtype) else 3):
                copies = rest.pop()
            device, dtype, is_async, _ = torch._C._nn._parse_to(*rest, **options)
            has_device, index = device is not None, None if device is None else self._index_named(device)
        out = torch.Tensor.to(tensor, dtype) if dtype is not None else tensor
        if has_device:
            out = self._moved(out, index, is_blocking=not is_async)
        return torch.clone(out) if copies and out is tensor else out

    def _cuda(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        device = kwargs.get("device", args[1] if len(args) > 1 else None)
        return self._moved(args[0], self._simulator.index_of(device), is_blocking=not kwargs.get("non_blocking", False))

    def _cpu(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        return self._moved(args[0], None, is_blocking=True)

    def _moved(self, tensor: Tensor, index: int | None, *, is_blocking: bool) -> Tensor:
        """A tensor on a device (None: the host); the tensor itself if it is there already."""
        if self._index(tensor) == index:
            return tensor
        with self._creating_on(HOST if index is None else index):
            copied = torch.empty_like(tensor)
        if index is None and not is_blocking:
            self._simulator.memory.add(copied, None)  # torch allocates pinned memory in this case
        return copied.copy_(tensor, non_blocking=not is_blocking)

    def _pin(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        if self._simulator.memory.is_pinned(args[0]):
            return args[0]
        pinned = torch.clone(args[0])
        self._simulator.memory.add(pinned, None)
        return pinned

    def _new_tensor(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        device = kwargs.pop("device", None)
        index = self._index(args[0]) if device is None else self._index_named(device)
        with self._creating_on(HOST):
            created = func(*args, **kwargs)
        return self._moved(created, index, is_blocking=True)

    def _deepcopy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, memo = args[0], args[1] if len(args) > 1 else {}
        if self._index(tensor) is None:
            return func(*args, **kwargs)
        if id(tensor) not in memo:
            copied = tensor.detach().clone()
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = torch.nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
        return memo[id(tensor)]

    # Attributes, and reads by the host.

    def _attribute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func.__self__.__name__
        if name == "device":
            index = self._index(args[0])
            return func(*args, **kwargs) if index is None else torch.device("cuda", index)
        if name == "is_cuda":
            return self._index(args[0]) is not None
        if name == "is_cpu":
            return self._index(args[0]) is None
        return func(*args, **kwargs)

    def _read(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self._check_host_read(f"{func.__name__}()", args[0])
        return func(*args, **kwargs)

    def _as_numpy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._index(args[0]) is not None:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
            )
        self._check_host_read(f"{func.__name__}()", args[0])
        return func(*args, **kwargs)

    def _show(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._index(args[0]) is not None:
            self._simulator.wait(f"{func.__name__}()")
        with unsimulated():
            return func(*args, **kwargs)

    def _check_host_read(self, what: str, tensor: Tensor) -> None:
        simulator = self._simulator
        allocation = simulator.memory.find(tensor)
        if allocation is None:
            return
        if allocation.device is not None:
            simulator.check_written(what, tensor)
            simulator.wait(what)
        elif simulator.timeline.is_arriving(allocation):
            simulator.report(f"{what} reads pinned memory before the copy to it has arrived")

    # Functions that torch implements in Python, by the device of their arguments.

    def _set_item(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self._simulator.is_setting_item = not isinstance(args[2], Tensor)
        try:
            return func(*args, **kwargs)
        finally:
            self._simulator.is_setting_item = False

    def _attention(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        if not isinstance(mask, CausalBias):
            return func(*args, **kwargs)
        with self:  # torch creates the mask on the device of the query
            return CausalBias._dispatch(*args, **kwargs)
