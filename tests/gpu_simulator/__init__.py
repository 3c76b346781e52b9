"""A simulator of a CUDA device on CPU tensors: what a GPU would do to the project's code, without a GPU.

    with simulated_gpu("NVIDIA H200") as simulator:
        ...  # torch finds a CUDA device here
        assert not simulator.problems

"cuda" is a label. Tensors lie on the CPU, and those that were made on "cuda" name it as their device.

    memory      a capture records operations with their storages; a replay runs exactly those, on the same storages. Memory
                that the program has dropped, host and device tensors in one operation, and host reads of unwritten memory are
                errors. `torch.empty`, and a graph's pool before every replay, hold NaN or 0x5A5A5A5A.
    waiting     synchronising inside a capture is an error. A copy to pinned memory arrives when its event is waited for.
    libraries   cuBLAS workspaces, memory pools and streams are counted, with the ways in which graphs break with them.

Not simulated: speed, streams that overlap, several threads, kernels' rounding and kernels launched past torch's dispatcher.
A custom operation registered with `torch.library` is one recorded operation.

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
