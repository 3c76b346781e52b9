"""Simulates a CUDA device on CPU tensors: shows what a GPU would do with the code, without a GPU.

    with simulated_gpu("NVIDIA H200") as simulator:
        ...  # torch finds a CUDA device inside this block
        assert not simulator.problems

"cuda" is a label. All tensors are on the CPU, and tensors created on "cuda" report it as their device.

    memory      a capture records operations with their storages; a replay runs the same operations on the same storages.
                Errors: memory that the program has freed, host and device tensors in one operation, host reads of unwritten
                memory. `torch.empty`, and the pool of a graph before every replay, hold NaN or 0x5A5A5A5A.
    waiting     synchronising inside a capture is an error. A copy to pinned memory arrives when its event is waited for.
    libraries   cuBLAS workspaces, memory pools and streams are counted, and known ways in which they break graphs are errors.

Not simulated: speed, overlapping streams, several threads, rounding of kernels, and kernels launched outside torch's
dispatcher. A custom operation registered with `torch.library` is recorded as one operation.

`python -m tests.gpu_simulator SCRIPT ARGS` runs a program on the simulated device.
"""

from tests.gpu_simulator.errors import (
    CaptureError,
    DeviceMismatch,
    PoolError,
    SimulatedFault,
    UnwrittenMemory,
    UseAfterFree,
)
from tests.gpu_simulator.simulator import Simulator
from tests.gpu_simulator.torch_cuda import simulated_gpu

__all__ = [
    "CaptureError",
    "DeviceMismatch",
    "PoolError",
    "SimulatedFault",
    "Simulator",
    "UnwrittenMemory",
    "UseAfterFree",
    "simulated_gpu",
]
