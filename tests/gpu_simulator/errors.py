"""Errors of the simulated device. Each is a `RuntimeError`, like the errors of torch's CUDA calls."""


class SimulatedFault(RuntimeError):
    """Base class: a GPU or its driver would reject this, or would compute with undefined memory."""


class CaptureError(SimulatedFault):
    """A call that the driver rejects during a capture, or a graph used in a wrong state."""


class UseAfterFree(SimulatedFault):
    """A replayed graph reads or writes memory that has been freed."""


class DeviceMismatch(SimulatedFault):
    """An operation received tensors from the host and from the device, or from two devices."""


class UnwrittenMemory(SimulatedFault):
    """The host reads device memory that was never written."""


class PoolError(SimulatedFault):
    """A capture into a memory pool that the allocator of older torch versions cannot reopen."""
