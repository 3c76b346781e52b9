"""Kernel efficiencies and host costs of the devices whose kernels were measured.

The floor and the rate of a kernel are fitted together to one set of kernel times; the rate alone is no measurement. Values of
the A100 and the H100 come from the shipped fits, which `calibrate.fit.fit_tables` makes. Other values are assumed; each
`source` lists them. A device without measurements uses the costs of its reference device
(`perfmodel.hardware.hardware.Hardware`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from perfmodel.core.disk import EVIDENCE_FOLDER
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
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.latency_law import FIT_FILE, LatencyFit

A100, H100 = "A100-80GB-SXM", "H100-SXM"
"""Names in the table of the devices with published kernel times."""
A100_BYTES_PER_S: BytesPerS = 2039 * GB
A100_BF16_FLOPS_PER_S: FlopsPerS = 312 * TERA
H100_BYTES_PER_S: BytesPerS = 3350 * GB
"""From the datasheets; `perfmodel.hardware.known_hardware` has the sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchCosts:
    """Host costs of driving a device in one launch mode."""

    host_layer_s: Seconds
    """Launching the kernels of one layer. Hidden if the kernels take longer; 0 if a graph is replayed."""
    host_error_frac: Frac
    """One standard deviation of its relative error. Hosts and software differ more than devices of one kind."""
    pass_s: Seconds
    """Starting one pass."""
    sync_s: Seconds
    """Waiting for a token or a confidence, and reading it."""
    round_s: Seconds
    """A round's bookkeeping."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCosts:
    """Kernel efficiencies and host costs measured or assumed on one device."""

    memory_bytes_per_s: BytesPerS
    """Bandwidth of the device they were measured on, by its datasheet."""
    weight_bandwidth_frac: Mapping[WeightKernels, Frac]
    """Share of that bandwidth at which kernels read weights and scales, unpacking included."""
    gguf_layer_s: Seconds
    """Additional kernel time of a layer in llama.cpp's kernels, which quantise the activations before every product."""
    flops_frac: Frac
    """Share of the peak that large matrix products reach."""
    layer_floor_s: Seconds
    """Kernel time of a layer with no weights to read, without attention."""
    row_layer_s: Seconds
    """Kernel time of a layer for each row, besides its matrix products."""
    attn_floor_s: Seconds
    """Kernel time of a layer's attention over an empty cache."""
    modes: Mapping[LaunchMode, LaunchCosts]
    error_frac: Frac
    """One standard deviation of the relative error of a predicted pass on that device."""
    source: str


_GPU_MODES: dict[LaunchMode, LaunchCosts] = {
    "graph": LaunchCosts(
        host_layer_s=0.0,
        host_error_frac=0.0,
        pass_s=10 * MICRO,
        sync_s=20 * MICRO,
        round_s=50 * MICRO,
        source="assumed: one graph launch, one small copy to the host, a lean loop",
    ),
    "eager": LaunchCosts(
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

_CPU_MODES: dict[LaunchMode, LaunchCosts] = {
    "eager": LaunchCosts(
        host_layer_s=0.0,
        host_error_frac=0.0,
        pass_s=0.0,
        sync_s=10 * MICRO,
        round_s=50 * MICRO,
        source="assumed: host and device are one, launching a layer is part of its floor",
    ),
}

WIDEST_ERROR_FRAC: Frac = 0.5
"""Error on a device to which no measured device is similar. One standard deviation is a factor of 1.6 either way."""

_CPU_COSTS = KernelCosts(
    memory_bytes_per_s=24 * GB,
    weight_bandwidth_frac={"fp32": 1.0, "bf16": 1.0, "fp16": 1.0, "fp8": 1.0, "int8": 0.88, "int4": 0.76, "gguf": 0.60},
    gguf_layer_s=0.0,
    flops_frac=0.35,
    layer_floor_s=50 * MICRO,
    row_layer_s=0.0,
    attn_floor_s=10 * MICRO,
    modes=_CPU_MODES,
    error_frac=WIDEST_ERROR_FRAC,
    source="assumed after this project's runtime on two Zen 4 cores: a small layer in cache takes 60 to 75 µs, six rows "
    "reach a third of the peak; the bandwidth is already what is reached; int8 and int4 shares as on the A100, of 16 bit; "
    "gguf: llama.cpp's q4_k_m at 1.1 billion weights read 24.7 of 40.9 GB/s with one thread",
)


@cache
def shipped_fit(name: str) -> LatencyFit:
    """The shipped fit of the latency law to the public kernel tables of a device, by the device's name.

    Raises:
        BadFile: the file is missing or damaged.
    """
    return FIT_FILE.read(EVIDENCE_FOLDER / f"{name.casefold()}.latency-fit.json").record


_A100_SHARES: Mapping[WeightKernels, Frac] = {"int8": 0.6689, "int4": 0.5786, "gguf": 0.6544}
_A100_GGUF_LAYER_S: Seconds = 79.5 * MICRO
"""With these values and all bytes counted, published speeds are reproduced exactly: gpt-fast's Llama-2-7B on one A100 in int8
(a scale per row, 155.58 tokens/s) and int4 (groups of 32, 5 bits per weight with the LM head, 196.80), and llama.cpp's Q4_K_M
on an A100 PCIe for Llama-3.1-8B (132.32) and Qwen2.5-72B (22.16; ggml-org/llama.cpp#10664).
"""
_H100_SHARES: Mapping[WeightKernels, Frac] = {"int8": 0.72, "int4": 0.63, "gguf": 0.40}
"""Assumed: int8 and int4 slightly above the A100's, as in 16 bit; gguf the same bytes per second as on the A100."""


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
        modes=_GPU_MODES,
        error_frac=0.08,
        source=f"{_fitted_text(fit)}; int8 and int4 shares from gpt-fast's Llama-2-7B rows, "
        "gguf share and time per layer from llama.cpp's Llama-3.1-8B and Qwen2.5-72B; the attention floor is assumed",
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
        modes=_GPU_MODES,
        error_frac=0.10,
        source=f"{_fitted_text(fit)}; the fitted compute rate is too uncertain, so 0.68 of the peak is assumed; int8, int4 and "
        "gguf shares and the attention floor are assumed after the A100's",
    )


def _bandwidth_frac(memory_bytes_per_s: BytesPerS, fit: LatencyFit) -> Frac:
    return 1 / (fit.law.weight_byte_s * memory_bytes_per_s)


def _fitted_text(fit: LatencyFit) -> str:
    """The fitted floor and rates of a layer with their standard errors, and the error of the fit."""
    law, error = fit.law, fit.standard_error
    terms = ", ".join(
        f"{text} ± {format_frac(term_error / value)}"
        for text, value, term_error in (
            (f"floor {format_seconds(law.layer_s)}", law.layer_s, error.layer_s),
            (format_bytes_per_s(1 / law.weight_byte_s), law.weight_byte_s, error.weight_byte_s),
            (format_flops_per_s(1 / law.flop_s), law.flop_s, error.flop_s),
        )
    )
    errors = f"mean error {format_frac(fit.residual_frac)}"
    if fit.held_out_error_frac is not None:
        errors += f", on a held-out shape {format_frac(fit.held_out_error_frac)}"
    return f"{terms}: fitted to kernel tables of microsoft/vidur ({errors})"


_COSTS: Mapping[str, Callable[[], KernelCosts]] = {
    A100: _a100_costs,
    H100: _h100_costs,
    "cpu": lambda: _CPU_COSTS,
}
DEVICES_WITH_COSTS: tuple[str, ...] = tuple(_COSTS)
"""Names of the devices with kernel costs. Those of the CPU are assumed."""


def kernel_costs(name: str) -> KernelCosts:
    """The kernel costs of one of `DEVICES_WITH_COSTS`; reads its shipped fit when first called."""
    return _COSTS[name]()
