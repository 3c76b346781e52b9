"""Small copies between host and device that do not block the host.

A copy from ordinary (pageable) memory blocks the host until the device has finished all earlier work. A copy from pinned memory
does not, but its source must not change before the copy is done. So several pinned buffers are used in turn. Token ids, random
numbers and predictions of exits are copied this way.

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
        """Set the point after all work launched so far."""
        ...

    def wait(self) -> None:
        """Wait until the device has passed the point; returns immediately if none was set."""
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
class _PinnedBuffer:
    """Pinned memory, and the fence of its last copy."""

    items: Tensor
    fence: Fence


class PinnedRing:
    """Copies one-dimensional host tensors to a device through a ring of pinned buffers.

    Before a buffer is reused, the host waits for its last copy. This takes no time unless all buffers have copies in progress.

    Args:
        device: destination of the copies.
        dtype: dtype of the copied tensors.
        num_buffers: how many copies may be in progress.
        new_buffer: makes a buffer for a number of items.
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
        self._buffers = [_PinnedBuffer(items=torch.empty(0, dtype=dtype), fence=make_fence()) for _ in range(num_buffers)]
        self._next = 0

    def __call__(self, host: Tensor) -> Tensor:
        """A copy of a host tensor on the device."""
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
        device: destination of the copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ring = PinnedRing(device, torch.int64) if device.type == "cuda" else None

    def __call__(self, token_ids: Sequence[int]) -> Tensor:
        """The token ids on the device: int64 [T]."""
        if self._ring is None:
            return torch.tensor(token_ids, dtype=torch.int64, device=self._device)
        return self._ring(torch.tensor(token_ids, dtype=torch.int64))


class Uniforms:
    """Uniform random numbers from [0, 1), generated on the host and stored on a device in blocks.

    They depend on the seed and on the sizes of the requests, not on the device.

    Args:
        device: where they are used.
        seed: seed of the first sequence.
        block: minimum number to generate at a time.
    """

    def __init__(self, device: torch.device, seed: int, block: int = 1024) -> None:
        self._ring = PinnedRing(device, torch.float64, num_buffers=2) if device.type == "cuda" else None
        self._device = device
        self._block = block
        self._random = torch.Generator()
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Start the sequence of a seed."""
        self._random.manual_seed(seed)
        self._ready = torch.empty(0, dtype=torch.float64)
        self._num_taken = 0

    def take(self, count: int) -> Tensor:
        """The next numbers: float64 [count], on the device."""
        if self._num_taken + count > len(self._ready):
            generated = torch.rand(max(count, self._block), generator=self._random, dtype=torch.float64)
            self._ready = generated.to(self._device) if self._ring is None else self._ring(generated)
            self._num_taken = 0
        begin = self._num_taken
        self._num_taken += count
        return self._ready[begin : begin + count]


PendingPrediction = Callable[[], tuple[int, float]]
"""Waits for the prediction of an exit and returns its token and confidence."""


class PredictionCopy:
    """Copies an exit's prediction to the host. The host waits for this copy only, not for work launched after it.

    Args:
        device: where exits are computed.
    """

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._device = device
        self._copied = torch.cuda.Event() if is_cuda else None
        self._host = torch.zeros(2, dtype=torch.float64, pin_memory=is_cuda)

    def send(self, prediction: Tensor) -> None:
        """Start the copy of token and confidence, float64 [2]. The previous prediction must have been read."""
        self._host.copy_(prediction, non_blocking=self._copied is not None)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device))

    def __call__(self) -> tuple[int, float]:
        """See `PendingPrediction`."""
        if self._copied is not None:
            self._copied.synchronize()
        token, confidence = self._host.tolist()
        return int(token), confidence
