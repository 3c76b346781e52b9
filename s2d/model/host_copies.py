"""Copies of small host data to a device that the host does not wait for.

A copy from ordinary (pageable) memory makes the host wait until the device has done all earlier work. A copy from pinned
memory does not, but its source must stay unchanged until the copy is done. So there are several pinned buffers, used in turn.

Symbols: T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NUM_BUFFERS = 8
MIN_BUFFER_ITEMS = 64


class Fence(Protocol):
    """A point in a device's work that the host can wait for."""

    def mark(self) -> None:
        """Put the point after all work launched so far."""
        ...

    def wait(self) -> None:
        """Wait until the device has passed the point; returns at once when none was marked."""
        ...


class CudaFence:
    """A fence on the current stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event()

    def mark(self) -> None:
        """See `Fence`."""
        self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """See `Fence`."""
        self._event.synchronize()


@dataclass(slots=True, kw_only=True)
class _Buffer:
    """Pinned memory, and when its last copy is done."""

    items: Tensor
    fence: Fence


class PinnedRing:
    """Copies one-dimensional host tensors to a device through pinned buffers used in turn.

    A buffer is waited for before it is used again, which takes no time unless NUM_BUFFERS copies are under way.

    Args:
        device: where the copies go.
        dtype: of what is copied.
        num_buffers: how many copies may be under way.
        new_buffer: makes a buffer of so many items.
        new_fence: makes the fence of a buffer.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        num_buffers: int = NUM_BUFFERS,
        new_buffer: Callable[[int], Tensor] | None = None,
        new_fence: Callable[[], Fence] | None = None,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._new_buffer = new_buffer or self._pinned
        make_fence = new_fence or (lambda: CudaFence(device))
        self._buffers = [_Buffer(items=torch.empty(0, dtype=dtype), fence=make_fence()) for _ in range(num_buffers)]
        self._next = 0

    def __call__(self, host: Tensor) -> Tensor:
        """A copy on the device of a tensor that lies on the host."""
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        buffer.fence.wait()
        if len(buffer.items) < len(host):
            buffer.items = self._new_buffer(max(MIN_BUFFER_ITEMS, 2 * len(host)))
        source = buffer.items[: len(host)]
        source.copy_(host)
        copied = torch.empty(len(host), dtype=self._dtype, device=self._device)
        copied.copy_(source, non_blocking=True)
        buffer.fence.mark()
        return copied

    def _pinned(self, num_items: int) -> Tensor:
        return torch.empty(num_items, dtype=self._dtype, pin_memory=True)


class HostTokens:
    """Copies token ids from the host to a device.

    Args:
        device: where the copies go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ring = PinnedRing(device, torch.int64) if device.type == "cuda" else None

    def __call__(self, token_ids: Sequence[int]) -> Tensor:
        """The tokens on the device: int64 [T]."""
        if self._ring is None:
            return torch.tensor(token_ids, dtype=torch.int64, device=self._device)
        return self._ring(torch.tensor(token_ids, dtype=torch.int64))


class Uniforms:
    """Uniform random numbers from 0 to below 1, drawn on the host and kept ready on a device.

    They depend on the seed and on how many were taken at a time, not on the device.

    Args:
        device: where they are used.
        seed: of the first ones.
        block: how many are drawn at a time, at least.
    """

    def __init__(self, device: torch.device, seed: int, block: int = 1024) -> None:
        self._ring = PinnedRing(device, torch.float64, num_buffers=2) if device.type == "cuda" else None
        self._device = device
        self._block = block
        self._random = torch.Generator()
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Begin again from a seed."""
        self._random.manual_seed(seed)
        self._ready = torch.empty(0, dtype=torch.float64)
        self._num_taken = 0

    def take(self, number: int) -> Tensor:
        """The next ones: float64 [number], on the device."""
        if self._num_taken + number > len(self._ready):
            drawn = torch.rand(max(number, self._block), generator=self._random, dtype=torch.float64)
            self._ready = drawn.to(self._device) if self._ring is None else self._ring(drawn)
            self._num_taken = 0
        begin = self._num_taken
        self._num_taken += number
        return self._ready[begin : begin + number]


PendingPrediction = Callable[[], tuple[int, float]]
"""Waits for what an exit said: a token, and the confidence in it."""


class PredictionCopy:
    """An exit's answer on its way to the host, which waits for it alone and for nothing launched after it.

    Args:
        device: where exits answer.
    """

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._device = device
        self._sent = torch.cuda.Event() if is_cuda else None
        self._read = torch.zeros(2, dtype=torch.float64, pin_memory=is_cuda)

    def send(self, answer: Tensor) -> None:
        """Token and confidence, float64 [2]; the one sent before has been read."""
        self._read.copy_(answer, non_blocking=self._sent is not None)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device))

    def __call__(self) -> tuple[int, float]:
        """See `PendingPrediction`."""
        if self._sent is not None:
            self._sent.synchronize()
        token, confidence = self._read.tolist()
        return int(token), confidence
