"""What kernels reach of a datasheet, and what the host adds: fitted to measured kernel times, or said to be assumed.

A floor and a rate below the datasheet's are fitted together: they are one reading of one set of kernel times, not two
charges. A device that nobody measured borrows the costs of a relative (`perfmodel.hardware.Hardware`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from perfmodel.profile import Dtype, EngineMode
from perfmodel.units import GB, MICRO, BytesPerS, Frac, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What the host adds when it drives a device in one engine mode."""

    host_layer_s: Seconds
    """Launching one layer's kernels, hidden where the kernels take longer; 0 where a graph is replayed."""
    pass_s: Seconds
    """Starting one pass."""
    sync_s: Seconds
    """Waiting for a token or a confidence, and reading it."""
    round_s: Seconds
    """A round's bookkeeping."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCosts:
    """What kernels reach on one device."""

    memory_bytes_per_s: BytesPerS
    """Of the device they were seen on, by its datasheet."""
    weight_bandwidth_frac: Mapping[Dtype, Frac]
    """Share of that at which weights are read, scales of int8 and int4 and their unpacking included."""
    flops_frac: Frac
    """Share of the peak that large matrix products reach."""
    layer_floor_s: Seconds
    """Kernel time of one layer whose weights are nothing, attention apart."""
    attn_floor_s: Seconds
    """The same of one layer's attention."""
    engines: Mapping[EngineMode, EngineCosts]
    error_frac: Frac
    """One standard deviation of the relative error of a predicted pass on that device."""
    source: str


_GPU_ENGINES: dict[EngineMode, EngineCosts] = {
    "graph": EngineCosts(
        host_layer_s=0.0,
        pass_s=10 * MICRO,
        sync_s=20 * MICRO,
        round_s=50 * MICRO,
        source="assumed: one graph launch, one small copy to the host, a lean loop",
    ),
    "eager": EngineCosts(
        host_layer_s=780 * MICRO,
        pass_s=0.0,
        sync_s=20 * MICRO,
        round_s=500 * MICRO,
        source="780 µs per layer: Vicuna-7B, transformers eager, A100, 24.9 ms / 32 layers (hemingkx/Spec-Bench#4); "
        "the head's launches are within it; sync and round assumed",
    ),
}

_CPU_ENGINES: dict[EngineMode, EngineCosts] = {
    "eager": EngineCosts(
        host_layer_s=0.0,
        pass_s=0.0,
        sync_s=10 * MICRO,
        round_s=50 * MICRO,
        source="assumed: host and device are one, launching a layer is part of its floor",
    ),
}

WIDEST_ERROR_FRAC: Frac = 0.5
"""Where nothing of the kind was measured: a factor of 1.6 either way is one standard deviation."""

KERNEL_COSTS: dict[str, KernelCosts] = {
    "A100-80GB-SXM": KernelCosts(
        memory_bytes_per_s=2039 * GB,
        weight_bandwidth_frac={"fp32": 0.774, "bf16": 0.774, "fp16": 0.774, "fp8": 0.65, "int8": 0.65, "int4": 0.44},
        flops_frac=0.65,
        layer_floor_s=34.5 * MICRO,
        attn_floor_s=10 * MICRO,
        engines=_GPU_ENGINES,
        error_frac=0.08,
        source="floor and 1,578 GB/s fitted to the kernel tables of microsoft/vidur (16 shapes, MAPE 2.4 %); int8 and int4 "
        "shares from gpt-fast's Llama-2-7B rows; attention floor assumed",
    ),
    "H100-SXM": KernelCosts(
        memory_bytes_per_s=3350 * GB,
        weight_bandwidth_frac={"fp32": 0.838, "bf16": 0.838, "fp16": 0.838, "fp8": 0.838, "int8": 0.70, "int4": 0.48},
        flops_frac=0.68,
        layer_floor_s=25.4 * MICRO,
        attn_floor_s=7.4 * MICRO,
        engines=_GPU_ENGINES,
        error_frac=0.10,
        source="floor and 2,807 GB/s fitted to the kernel tables of microsoft/vidur (12 shapes, MAPE 2.7 %); int8 and int4 "
        "shares and attention floor (by ratio of the floors) scaled from the A100: assumed",
    ),
    "cpu": KernelCosts(
        memory_bytes_per_s=24 * GB,
        weight_bandwidth_frac={"fp32": 1.0, "bf16": 1.0, "fp16": 1.0, "fp8": 1.0, "int8": 0.84, "int4": 0.57},
        flops_frac=0.35,
        layer_floor_s=50 * MICRO,
        attn_floor_s=10 * MICRO,
        engines=_CPU_ENGINES,
        error_frac=WIDEST_ERROR_FRAC,
        source="assumed after this project's runtime on two Zen 4 cores: a small layer in cache takes 60 to 75 µs, six rows "
        "reach a third of the peak; the bandwidth is already what is reached; int8 and int4 shares as on the A100",
    ),
}
"""By the name of the device they were seen on; those of a CPU are nobody's measurement."""
