"""What kernels reach of a datasheet, and what the host adds: fitted to measured kernel times, or said to be assumed.

A floor and a rate below the datasheet's are fitted together: they are one reading of one set of kernel times, not two
charges. Those of the A100 and the H100 are read from the fits in the box (`calibrate.fit.fit_tables` makes them), not typed. A
device that nobody measured borrows the costs of a reference_device (`perfmodel.hardware.hardware.Hardware`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from perfmodel.core.units import (
    GB,
    MICRO,
    TERA,
    BytesPerS,
    FlopsPerS,
    Frac,
    Seconds,
    format_bytes_per_s,
    format_flops_per_s,
    format_frac,
    format_seconds,
)
from perfmodel.models.dtypes import WeightKernels
from perfmodel.passes.device_key import EngineMode
from perfmodel.passes.latency_law import FIT_FILE, LatencyFit

A100, H100 = "A100-80GB-SXM", "H100-SXM"
"""The devices whose kernels were timed by others, as the table names them."""
A100_BYTES_PER_S: BytesPerS = 2039 * GB
A100_BF16_FLOPS_PER_S: FlopsPerS = 312 * TERA
H100_BYTES_PER_S: BytesPerS = 3350 * GB
"""From their datasheets; sources are in `perfmodel.hardware.known_hardware`."""

EVIDENCE = Path(__file__).parents[1] / "evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What the host adds when it drives a device in one engine mode."""

    host_layer_s: Seconds
    """Launching one layer's kernels, hidden where the kernels take longer; 0 where a graph is replayed."""
    host_error_frac: Frac
    """One standard deviation of the reference_device error of that: hosts and software differ more than devices of one kind."""
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
    weight_bandwidth_frac: Mapping[WeightKernels, Frac]
    """Share of that at which kernels read weights and scales; unpacking is in it."""
    gguf_layer_s: Seconds
    """Kernel time of one layer on top where llama.cpp's kernels read it: they quantise the activations before every product."""
    flops_frac: Frac
    """Share of the peak that large matrix products reach."""
    layer_floor_s: Seconds
    """Kernel time of one layer whose weights are nothing, attention apart."""
    row_layer_s: Seconds
    """The same for each row, besides its matrix products."""
    attn_floor_s: Seconds
    """Kernel time of one layer's attention whose cache is empty."""
    engines: Mapping[EngineMode, EngineCosts]
    error_frac: Frac
    """One standard deviation of the reference_device error of a predicted pass on that device."""
    source: str


_GPU_ENGINES: dict[EngineMode, EngineCosts] = {
    "graph": EngineCosts(
        host_layer_s=0.0,
        host_error_frac=0.0,
        pass_s=10 * MICRO,
        sync_s=20 * MICRO,
        round_s=50 * MICRO,
        source="assumed: one graph launch, one small copy to the host, a lean loop",
    ),
    "eager": EngineCosts(
        host_layer_s=690 * MICRO,
        host_error_frac=0.4,
        pass_s=0.0,
        sync_s=20 * MICRO,
        round_s=500 * MICRO,
        source="690 µs per layer: geometric mean of two transformers stacks on A100 hosts, 760 µs (Vicuna-7B, "
        "hemingkx/Spec-Bench#4) and 620 µs (Llama-2-13B, SafeAILab/EAGLE#65), the head's launches within it; error: their "
        "scatter about it and that of a plain PyTorch loop, 1210 µs (pytorch.org, accelerating-generative-ai-2); sync and "
        "round assumed",
    ),
}

_CPU_ENGINES: dict[EngineMode, EngineCosts] = {
    "eager": EngineCosts(
        host_layer_s=0.0,
        host_error_frac=0.0,
        pass_s=0.0,
        sync_s=10 * MICRO,
        round_s=50 * MICRO,
        source="assumed: host and device are one, launching a layer is part of its floor",
    ),
}

WIDEST_ERROR_FRAC: Frac = 0.5
"""Where nothing of the kind was measured: a factor of 1.6 either way is one standard deviation."""

_CPU_COSTS = KernelCosts(
    memory_bytes_per_s=24 * GB,
    weight_bandwidth_frac={"fp32": 1.0, "bf16": 1.0, "fp16": 1.0, "fp8": 1.0, "int8": 0.88, "int4": 0.76, "gguf": 0.60},
    gguf_layer_s=0.0,
    flops_frac=0.35,
    layer_floor_s=50 * MICRO,
    row_layer_s=0.0,
    attn_floor_s=10 * MICRO,
    engines=_CPU_ENGINES,
    error_frac=WIDEST_ERROR_FRAC,
    source="assumed after this project's runtime on two Zen 4 cores: a small layer in cache takes 60 to 75 µs, six rows "
    "reach a third of the peak; the bandwidth is already what is reached; int8 and int4 shares as on the A100, of 16 bit; "
    "gguf: llama.cpp's q4_k_m at 1.1 billion weights read 24.7 of 40.9 GB/s with one thread",
)


@cache
def shipped_fit(name: str) -> LatencyFit:
    """The latency law fitted to the public kernel tables of a device, by the device's name.

    Raises:
        BadFile: it is not in the box, or no longer whole.
    """
    return FIT_FILE.read(EVIDENCE / f"{name.casefold()}.latency-fit.json").record


_A100_SHARES: Mapping[WeightKernels, Frac] = {"int8": 0.6689, "int4": 0.5786, "gguf": 0.6544}
_A100_GGUF_LAYER_S: Seconds = 79.5 * MICRO
"""At these, published speeds are exact, with all bytes counted: gpt-fast's Llama-2-7B on one A100 in int8 (a scale per row,
155.58 tokens/s) and int4 (groups of 32, 5 bits a weight with the LM head, 196.80), and llama.cpp's Q4_K_M on an A100 PCIe of
Llama-3.1-8B (132.32) and Qwen2.5-72B (22.16; ggml-org/llama.cpp#10664).
"""
_H100_SHARES: Mapping[WeightKernels, Frac] = {"int8": 0.72, "int4": 0.63, "gguf": 0.40}
"""Assumed: int8 and int4 a little above the A100's, as 16 bit is; gguf as many bytes per second as there."""


@cache
def _a100_costs() -> KernelCosts:
    fit = shipped_fit(A100)
    share = _bandwidth_frac(A100_BYTES_PER_S, fit)
    return KernelCosts(
        memory_bytes_per_s=A100_BYTES_PER_S,
        weight_bandwidth_frac={"fp32": share, "bf16": share, "fp16": share, "fp8": 0.65, **_A100_SHARES},
        gguf_layer_s=_A100_GGUF_LAYER_S,
        flops_frac=1 / (fit.law.flop_s * A100_BF16_FLOPS_PER_S),
        layer_floor_s=fit.law.layer_s,
        row_layer_s=fit.law.row_layer_s,
        attn_floor_s=10 * MICRO,
        engines=_GPU_ENGINES,
        error_frac=0.08,
        source=f"{_fitted_text(fit)}; int8 and int4 shares from gpt-fast's Llama-2-7B rows, "
        "gguf share and time per layer from llama.cpp's Llama-3.1-8B and Qwen2.5-72B; attention floor assumed",
    )


@cache
def _h100_costs() -> KernelCosts:
    fit = shipped_fit(H100)
    share = _bandwidth_frac(H100_BYTES_PER_S, fit)
    return KernelCosts(
        memory_bytes_per_s=H100_BYTES_PER_S,
        weight_bandwidth_frac={"fp32": share, "bf16": share, "fp16": share, "fp8": share, **_H100_SHARES},
        gguf_layer_s=_A100_GGUF_LAYER_S,
        flops_frac=0.68,
        layer_floor_s=fit.law.layer_s,
        row_layer_s=fit.law.row_layer_s,
        attn_floor_s=7.4 * MICRO,
        engines=_GPU_ENGINES,
        error_frac=0.10,
        source=f"{_fitted_text(fit)}; that compute rate is too loose and 0.68 of the peak assumed, as are int8, int4 and gguf "
        "shares and attention floor, after the A100's",
    )


def _bandwidth_frac(memory_bytes_per_s: BytesPerS, fit: LatencyFit) -> Frac:
    return 1 / (fit.law.weight_byte_s * memory_bytes_per_s)


def _fitted_text(fit: LatencyFit) -> str:
    """What a fit says of layers, each number with its standard error, and what it is off by."""
    law, error = fit.law, fit.standard_error
    found = ", ".join(
        f"{text} ± {format_frac(error_of / value)}"
        for text, value, error_of in (
            (f"floor {format_seconds(law.layer_s)}", law.layer_s, error.layer_s),
            (format_bytes_per_s(1 / law.weight_byte_s), law.weight_byte_s, error.weight_byte_s),
            (format_flops_per_s(1 / law.flop_s), law.flop_s, error.flop_s),
        )
    )
    off = f"mean error {format_frac(fit.residual_frac)}"
    if fit.held_out_error_frac is not None:
        off += f", on a shape left out {format_frac(fit.held_out_error_frac)}"
    return f"{found}: fitted to kernel tables of microsoft/vidur ({off})"


_COSTS: Mapping[str, Callable[[], KernelCosts]] = {
    "A100-80GB-SXM": _a100_costs,
    "H100-SXM": _h100_costs,
    "cpu": lambda: _CPU_COSTS,
}
DEVICES_WITH_COSTS: tuple[str, ...] = tuple(_COSTS)
"""Names of the devices whose kernel costs are known; those of a CPU are nobody's measurement."""


def kernel_costs(name: str) -> KernelCosts:
    """The kernel costs of one of `DEVICES_WITH_COSTS`."""
    return _COSTS[name]()
