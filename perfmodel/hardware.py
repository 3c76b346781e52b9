"""Devices we know, each number with its source.

`spec_source` names the vendor's datasheet. What a device really reaches (floor per layer, share of the bandwidth) is
published for the A100 and the H100 only; the other rows are scaled from the nearest relative, say so, and carry a wider
error. A floor and a share below 1 are fitted together: they are one reading of one set of kernel times, not two charges.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from perfmodel.errors import OutOfDomain, UnknownName
from perfmodel.profile import Dtype, EngineMode
from perfmodel.units import GB, MICRO, TERA, Bytes, BytesPerS, FlopsPerS, Frac, Seconds

DEFAULT_ENGINE: EngineMode = "graph"
"""On a GPU: captured graphs are what a decoding loop uses when speed is the point."""

MEMORY_HEADROOM_FRAC: Frac = 0.1
"""Share of a device's memory left to activations, workspaces and fragmentation."""

MAX_DEVICES = 8
"""One node: beyond it the all-reduce constants do not hold."""


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
class Hardware:
    """One kind of device."""

    name: str
    aliases: tuple[str, ...]
    peak_flops_per_s: Mapping[Dtype, FlopsPerS]
    """Dense, 32-bit accumulation where the datasheet tells."""
    memory_bytes_per_s: BytesPerS
    memory_bytes: Bytes
    link_bytes_per_s: BytesPerS
    """Between two devices, one direction."""
    weight_bandwidth_frac: Mapping[Dtype, Frac]
    """Share of the memory bandwidth at which weights are read, scales of int8 and int4 included."""
    flops_frac: Frac
    """Share of the peak that large matrix products reach."""
    layer_floor_s: Seconds
    """Kernel time of one layer whose weights are nothing, attention apart."""
    attn_floor_s: Seconds
    """The same of one layer's attention."""
    all_reduce_s: Seconds
    """One small all-reduce."""
    engines: Mapping[EngineMode, EngineCosts]
    error_frac: Frac
    """One standard deviation of the relative error of a predicted pass."""
    spec_source: str
    floor_source: str


_ENGINES: dict[EngineMode, EngineCosts] = {
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

_A100 = Hardware(
    name="A100-80GB-SXM",
    aliases=("a100", "a100-80", "a100-80gb", "a100-sxm", "nvidia a100-sxm4-80gb"),
    peak_flops_per_s={
        "fp32": 19.5 * TERA,
        "bf16": 312 * TERA,
        "fp16": 312 * TERA,
        "fp8": 312 * TERA,
        "int8": 312 * TERA,
        "int4": 312 * TERA,
    },
    memory_bytes_per_s=2039 * GB,
    memory_bytes=80 * GB,
    link_bytes_per_s=300 * GB,
    weight_bandwidth_frac={"fp32": 0.774, "bf16": 0.774, "fp16": 0.774, "fp8": 0.65, "int8": 0.65, "int4": 0.44},
    flops_frac=0.65,
    layer_floor_s=34.5 * MICRO,
    attn_floor_s=10 * MICRO,
    all_reduce_s=6.6 * MICRO,
    engines=_ENGINES,
    error_frac=0.08,
    spec_source="NVIDIA A100 80GB datasheet (SXM): 2,039 GB/s, 312 TFLOP/s bf16, NVLink 600 GB/s both ways; "
    "weight-only fp8, int8 and int4 compute in 16 bit",
    floor_source="floor and 1,578 GB/s fitted to the kernel tables of microsoft/vidur (16 shapes, MAPE 2.4 %); int8 and int4 "
    "shares and the all-reduce from gpt-fast's Llama-2-7B rows; attention floor assumed",
)

_H100 = Hardware(
    name="H100-SXM",
    aliases=("h100", "h100-80gb", "nvidia h100 80gb hbm3"),
    peak_flops_per_s={
        "fp32": 67 * TERA,
        "bf16": 989 * TERA,
        "fp16": 989 * TERA,
        "fp8": 1979 * TERA,
        "int8": 989 * TERA,
        "int4": 989 * TERA,
    },
    memory_bytes_per_s=3350 * GB,
    memory_bytes=80 * GB,
    link_bytes_per_s=450 * GB,
    weight_bandwidth_frac={"fp32": 0.838, "bf16": 0.838, "fp16": 0.838, "fp8": 0.838, "int8": 0.70, "int4": 0.48},
    flops_frac=0.68,
    layer_floor_s=25.4 * MICRO,
    attn_floor_s=7.4 * MICRO,
    all_reduce_s=6.6 * MICRO,
    engines=_ENGINES,
    error_frac=0.10,
    spec_source="NVIDIA H100 datasheet (SXM): 3.35 TB/s, 989 TFLOP/s bf16 and 1,979 fp8 dense, NVLink 900 GB/s both ways",
    floor_source="floor and 2,807 GB/s fitted to the kernel tables of microsoft/vidur (12 shapes, MAPE 2.7 %); int8 and int4 "
    "shares, attention floor (by ratio of the floors) and all-reduce scaled from the A100: assumed",
)

_H200 = Hardware(
    name="H200-SXM",
    aliases=("h200", "h200-141gb", "nvidia h200"),
    peak_flops_per_s=_H100.peak_flops_per_s,
    memory_bytes_per_s=4800 * GB,
    memory_bytes=141 * GB,
    link_bytes_per_s=450 * GB,
    weight_bandwidth_frac=_H100.weight_bandwidth_frac,
    flops_frac=_H100.flops_frac,
    layer_floor_s=_H100.layer_floor_s,
    attn_floor_s=_H100.attn_floor_s,
    all_reduce_s=_H100.all_reduce_s,
    engines=_ENGINES,
    error_frac=0.15,
    spec_source="NVIDIA H200 datasheet (SXM): 141 GB at 4.8 TB/s, compute and NVLink of the H100",
    floor_source="assumed: the H100's floor and share of the bandwidth; none is published for the H200",
)

_RTX_4090 = Hardware(
    name="RTX-4090",
    aliases=("4090", "rtx4090", "nvidia geforce rtx 4090"),
    peak_flops_per_s={
        "fp32": 82.6 * TERA,
        "bf16": 165.2 * TERA,
        "fp16": 165.2 * TERA,
        "fp8": 330.3 * TERA,
        "int8": 165.2 * TERA,
        "int4": 165.2 * TERA,
    },
    memory_bytes_per_s=1008 * GB,
    memory_bytes=24 * GB,
    link_bytes_per_s=32 * GB,
    weight_bandwidth_frac={"fp32": 0.84, "bf16": 0.84, "fp16": 0.84, "fp8": 0.84, "int8": 0.84, "int4": 0.84},
    flops_frac=_A100.flops_frac,
    layer_floor_s=_H100.layer_floor_s,
    attn_floor_s=_H100.attn_floor_s,
    all_reduce_s=25 * MICRO,
    engines=_ENGINES,
    error_frac=0.20,
    spec_source="NVIDIA Ada GPU architecture whitepaper (GeForce RTX 4090): 1,008 GB/s, 165.2 TFLOP/s bf16 with 32-bit "
    "accumulation; PCIe 4.0 x16",
    floor_source="assumed: the H100's floor and share of the bandwidth (exllamav2's TinyLlama at 4 bit, 65 µs per layer with "
    "its weights, leaves 33 to 40 µs); all-reduce over PCIe assumed",
)

KNOWN_HARDWARE: tuple[Hardware, ...] = (_A100, _H100, _H200, _RTX_4090)


def find_hardware(name: str) -> Hardware:
    """A device by name or alias, whatever the case.

    Raises:
        UnknownName: with the devices we know.
    """
    for hardware in KNOWN_HARDWARE:
        if name.casefold() in (hardware.name.casefold(), *hardware.aliases):
            return hardware
    known = [hardware.name.casefold() for hardware in KNOWN_HARDWARE]
    raise UnknownName("device", name, known, otherwise="measure this machine: s2d-profile latency")


def num_devices_to_fit(hardware: Hardware, needed_bytes: float, *, headroom_frac: Frac = MEMORY_HEADROOM_FRAC) -> int:
    """The fewest devices, a power of two, whose memory less headroom holds some bytes.

    Raises:
        OutOfDomain: more than one node would be needed.
    """
    usable_bytes = hardware.memory_bytes * (1 - headroom_frac)
    num_devices = 1
    while num_devices * usable_bytes < needed_bytes:
        num_devices *= 2
    if num_devices > MAX_DEVICES:
        raise OutOfDomain(
            f"memory_bytes on {hardware.name}",
            round(needed_bytes),
            low=0,
            high=round(MAX_DEVICES * usable_bytes),
            fix=f"Up to {MAX_DEVICES} devices are priced: take a larger device, a smaller dtype or a shorter output",
        )
    return num_devices
