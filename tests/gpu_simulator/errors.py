"""Errors of the simulated device. Each is a `RuntimeError`, as the errors of torch's CUDA calls are."""


class SimulatedFault(RuntimeError):
    """Base class: a GPU or its driver would refuse this, or would compute with undefined memory."""


class CaptureError(SimulatedFault):
    """A call that the driver refuses while a stream is being captured, or a graph used in a wrong state."""


class UseAfterFree(SimulatedFault):
    """A replayed graph reads or writes memory that has been freed."""


class DeviceMismatch(SimulatedFault):
    """One operation got tensors of the host and of the device, or of two devices."""


class UnwrittenMemory(SimulatedFault):
    """The host reads memory of the device that nothing has written."""


class PoolError(SimulatedFault):
    """A capture into a memory pool that the allocator of older torch versions refuses to reopen."""
