"""Registry of device storages, their size in bytes, and detection of unwritten memory.

A device tensor is a CPU tensor whose storage is registered here. Storages are referenced weakly: the registry notices when the
program frees one, and keeps none alive. Unwritten memory is filled with poison: a NaN with a special payload, or 0x5A5A5A5A.
Arithmetic on the CPU keeps the payload of a NaN. Poison therefore differs from a NaN that a program computed.
"""

import ctypes
import itertools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

_INT_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_POISON_BITS = {
    torch.float16: 0x7ED2,
    torch.bfloat16: 0x7FDA,
    torch.float32: 0x7FDA5A5A,
    torch.float64: 0x7FFB4B4B4B4B4B4B,
    torch.int16: 0x5A5A,
    torch.int32: 0x5A5A5A5A,
    torch.int64: 0x5A5A5A5A5A5A5A5A,
}
"""All four float patterns have a quiet bit of 1, followed by six bits with the value 0x1A."""
_FLOAT_OF_COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}


class Allocation:
    """A storage of the device, or pinned memory of the host. `number` is never reused."""

    __slots__ = ("address", "device", "dtype", "nbytes", "number", "storage")

    def __init__(self, number: int, tensor: Tensor, device: int | None, on_death: Callable[[], None]) -> None:
        storage = tensor.untyped_storage()
        self.number = number
        self.device = device
        """Index of the device; None for pinned host memory."""
        self.dtype = tensor.dtype
        self.nbytes = storage.nbytes()
        self.address = storage.data_ptr()
        self.storage = weakref.ref(storage, lambda _: on_death())

    @property
    def is_live(self) -> bool:
        """Whether the program still holds the storage, at the same address."""
        storage = self.storage()
        return storage is not None and storage.data_ptr() == self.address


class Memory:
    """Registry of device storages and pinned storages, with torch's counters of allocated bytes.

    Args:
        num_devices: devices of the machine.
        total_bytes: memory of each.
    """

    def __init__(self, num_devices: int, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.allocated_bytes = [0] * num_devices
        self.peak_bytes = [0] * num_devices
        self.reserved_bytes = [0] * num_devices
        self._numbers = itertools.count(1)
        self._by_storage: dict[int, Allocation] = {}

    def find(self, tensor: Tensor) -> Allocation | None:
        """The allocation of a tensor's storage; None for ordinary host memory and for tensors without a storage."""
        return self._by_storage.get(key_of(tensor))

    def at(self, key: int) -> Allocation | None:
        """The allocation of the storage with a key."""
        return self._by_storage.get(key)

    def device_of(self, tensor: Tensor) -> int | None:
        """Index of the device of a tensor; None for the host."""
        allocation = self.find(tensor)
        return None if allocation is None else allocation.device

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor is in pinned host memory."""
        allocation = self.find(tensor)
        return allocation is not None and allocation.device is None

    def add(self, tensor: Tensor, device: int | None) -> Allocation:
        """Register a tensor's storage, unless it is registered already.

        Raises:
            torch.OutOfMemoryError: the device is full.
        """
        key = tensor.untyped_storage()._cdata
        known = self._by_storage.get(key)
        if known is not None:
            return known
        allocation = Allocation(next(self._numbers), tensor, device, lambda: self._free(key))
        if device is not None:
            self.charge(device, allocation.nbytes)
        self._by_storage[key] = allocation
        return allocation

    def charge(self, device: int, nbytes: int) -> None:
        """Count allocated bytes; negative when bytes are freed.

        Raises:
            torch.OutOfMemoryError: the device is full.
        """
        if nbytes > 0 and self.allocated_bytes[device] + nbytes > self.total_bytes:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory (simulated). Tried to allocate {nbytes / 2**20:.2f} MiB. GPU {device} has a "
                f"total capacity of {self.total_bytes / 2**30:.2f} GiB of which {self.allocated_bytes[device] / 2**30:.2f} GiB "
                "is used."
            )
        self.allocated_bytes[device] += nbytes
        self.peak_bytes[device] = max(self.peak_bytes[device], self.allocated_bytes[device])
        self.reserved_bytes[device] = max(self.reserved_bytes[device], self.allocated_bytes[device])

    def reset_peak(self, device: int) -> None:
        """Reset the peak to the bytes that are allocated now."""
        self.peak_bytes[device] = self.allocated_bytes[device]

    def empty_cache(self) -> None:
        """Return freed memory to the driver."""
        self.reserved_bytes = list(self.allocated_bytes)

    def _free(self, key: int) -> None:
        allocation = self._by_storage.pop(key, None)
        if allocation is not None and allocation.device is not None:
            self.allocated_bytes[allocation.device] -= allocation.nbytes


def key_of(tensor: Tensor) -> int:
    """Key of a tensor's storage: the address of the storage object; 0 for tensors without a storage."""
    try:
        return tensor.untyped_storage()._cdata
    except RuntimeError:
        return 0


def poison(tensor: Tensor) -> None:
    """Fill a tensor with the pattern of unwritten memory."""
    if not tensor.numel():
        return
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    bits = _POISON_BITS.get(tensor.dtype)
    if tensor.dtype == torch.bool:
        tensor.fill_(True)
    elif bits is not None:
        tensor.view(_INT_OF_WIDTH[tensor.element_size()]).fill_(bits)
    elif tensor.element_size() == 1:
        tensor.view(torch.uint8).fill_(0x5A)
    else:
        tensor.fill_(0x5A)


def holds_poison(tensor: Tensor) -> bool:
    """Whether a tensor holds the pattern of unwritten memory. Bytes and 16-bit integers are not checked."""
    if not tensor.numel():
        return False
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype in (torch.int32, torch.int64):
        return bool((tensor == _POISON_BITS[tensor.dtype]).any())
    if not tensor.is_floating_point():
        return False
    is_nan = tensor.isnan()
    if not bool(is_nan.any()):
        return False
    bits = tensor[is_nan].double().view(torch.int64)
    return bool(((bits >> 45) & 0x3F == 0x1A).any())


def bytes_at(address: int, nbytes: int) -> Tensor:
    """A uint8 tensor over memory, which it does not own."""
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=torch.uint8)


def typed(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """All complete elements of a byte tensor's storage, as another type."""
    real = _FLOAT_OF_COMPLEX.get(dtype, dtype)
    count = raw.numel() // torch.empty(0, dtype=real).element_size()
    return torch.empty(0, dtype=real).set_(raw.untyped_storage(), 0, (count,), (1,))


def poison_allocation(allocation: Allocation) -> None:
    """Fill a live allocation with the pattern of unwritten memory."""
    poison(typed(bytes_at(allocation.address, allocation.nbytes), allocation.dtype))
