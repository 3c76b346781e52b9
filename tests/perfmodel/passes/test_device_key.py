"""How a device key reads in messages."""

from dataclasses import replace

from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.kernels import STANDARD_KERNELS

GPUS = DeviceKey(device="A100-80GB-SXM", num_devices=2, num_threads=None, dtype="bf16", mode="graph")
CPU = DeviceKey(device="a CPU", num_devices=1, num_threads=1, dtype="fp32", mode="eager")


def test_a_label_names_devices_threads_dtype_and_mode() -> None:
    assert GPUS.label == "2 x A100-80GB-SXM, bf16, graph"
    assert CPU.label == "1 x a CPU, 1 thread, fp32, eager"
    assert replace(CPU, num_threads=4).label == "1 x a CPU, 4 threads, fp32, eager"


def test_a_label_names_kernels_other_than_the_standard_ones() -> None:
    varlen = replace(STANDARD_KERNELS, attention="varlen")
    assert replace(GPUS, kernels=STANDARD_KERNELS).label == GPUS.label
    assert replace(GPUS, kernels=varlen).label == "2 x A100-80GB-SXM, bf16, graph, input-major,varlen,two-step"
