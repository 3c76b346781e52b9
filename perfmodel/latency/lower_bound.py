"""The shortest time a pass can take on a device, and checks that refuse shorter times.

    reading    bytes of weights and KV cache, less what caches may keep from the previous pass, over the bandwidth
    computing  FLOP over the peak
    bound      the longer of the two, by the datasheet

A measurement or prediction below the bound is an error: the wrong device or dtype, a clock that does not wait for the device,
wrong shapes, or a fit used far from its samples. CPUs and devices outside the table are not checked: the clock and bandwidth
of a CPU are assumed here, and its caches can hold whole models.

KV caches are counted at 16 bits or more, as in `perfmodel.passes.flops_bytes`.
"""

from dataclasses import dataclass, replace

from perfmodel.core.errors import BelowLowerBound, UnknownName
from perfmodel.core.units import (
    MIB,
    TERA,
    BytesPerS,
    Flops,
    FlopsPerS,
    Seconds,
    format_bytes,
    format_bytes_per_s,
    format_flops_per_s,
    format_number,
    format_seconds,
)
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Hardware
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.flops_bytes import PassSetting, PassWork
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import Line, PassName, PassShape, kind_label
from perfmodel.quantisation.weight_format import WeightFormat

MAX_CACHE_BYTES = 288 * MIB
"""No device of the table keeps more between two passes.

MI300X: 256 MB of Infinity Cache and 4 MB of L2 on each of eight dies (AMD, MI300 series microarchitecture). RTX PRO 6000 128
MB, B200 126 MB, RTX 5090 96 MB, RTX 4090 72 MB, H100 50 MB, A100 40 MB, all L2. One limit for all devices: it is below 2.5 %
of a 7-billion-weight model in 16 bit.
"""

MEMORY_SLACK = 1.05
"""Factor by which memory may exceed its datasheet. Sheets are rounded, or two sheets differ: 7.7 and 8 TB/s for the B200.

An RTX 4090 was overclocked by 10 %, but kernels reach less than the sheet: about 80 % in
`perfmodel.hardware.kernel_efficiency`.
"""

CLOCK_SLACK = 1.25
"""Factor by which computing may exceed its datasheet: peaks are printed at a boost clock that is not a limit.

An RTX 4090 reached 101 TFLOP/s in fp32; its sheet prints 82.6 (Wccftech, 2022-10-11).
"""

_TF32_FRAC = 0.5
"""Share of the 16-bit peak that fp32 weights reach where TF32 is allowed."""
_GGUF_ARITHMETIC: Dtype = "int8"
"""llama.cpp's kernels quantise activations to 8 bits and multiply integers where that is faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerBound:
    """The shortest time of one pass on one device."""

    read_bytes: float
    bytes_per_s: BytesPerS
    flops: Flops
    flops_per_s: FlopsPerS

    @property
    def read_s(self) -> Seconds:
        """Time to read the bytes that no cache holds."""
        return max(0.0, self.read_bytes - MAX_CACHE_BYTES) / self.bytes_per_s

    @property
    def compute_s(self) -> Seconds:
        """Time to compute the FLOP."""
        return self.flops / self.flops_per_s

    @property
    def seconds(self) -> Seconds:
        """The longer of the two, by the datasheet."""
        return max(self.read_s, self.compute_s)

    @property
    def refused_below_s(self) -> Seconds:
        """The same on the fastest device that may be sold under this datasheet."""
        return max(self.read_s / MEMORY_SLACK, self.compute_s / CLOCK_SLACK)

    @property
    def reason(self) -> str:
        """What takes the longer time: `computing 57.5 TFLOP at 312 TFLOP/s`."""
        if self.read_s >= self.compute_s:
            read = f"{format_bytes(self.read_bytes)} less the {format_bytes(MAX_CACHE_BYTES)} that caches may keep"
            return f"reading {read} at {format_bytes_per_s(self.bytes_per_s)}"
        return f"computing {format_number(self.flops / TERA)} TFLOP at {format_flops_per_s(self.flops_per_s)}"

    def check(self, seconds: Seconds, subject: str, device: str, *, fix: str) -> None:
        """Refuse a time that no device can reach.

        Args:
            seconds: measured or predicted.
            subject: the pass and the source of its time: `the profile of llama-2-7b on NVIDIA H200: a verify pass`.
            device: name of the device, for the message.
            fix: what to do, a sentence without its full stop.

        Raises:
            BelowLowerBound: gives the bound and its reason.
        """
        if seconds < self.refused_below_s:
            given, bound = format_seconds(seconds), format_seconds(self.seconds)
            raise BelowLowerBound(subject, given=given, bound=bound, reason=f"{self.reason} on {device}", fix=fix)


def work_lower_bound(work: PassWork, cached_tokens: float, hardware: Hardware, weights: WeightFormat) -> LowerBound:
    """The lower bound of some work. Work is counted per device."""
    return LowerBound(
        read_bytes=work.weight_bytes + work.window_kv_bytes + cached_tokens * work.kv_bytes_per_cached_token,
        bytes_per_s=hardware.memory_bytes_per_s,
        flops=work.flops + work.window_attn_flops + cached_tokens * work.attn_flops_per_cached_token,
        flops_per_s=_peak_flops_per_s(hardware, weights),
    )


def _peak_flops_per_s(hardware: Hardware, weights: WeightFormat) -> FlopsPerS:
    """The fastest rate at which any matrix may be multiplied: as stored or unpacked; fp32 perhaps through TF32."""
    peaks, unpacked = hardware.peak_flops_per_s, hardware.peak_flops_per_s[hardware.default_dtype]
    stored = {_GGUF_ARITHMETIC if share.kernels == "gguf" else share.kernels for share in weights.layers}
    return max(*(peaks.get(dtype, 0.0) for dtype in stored), _TF32_FRAC * unpacked if stored == {"fp32"} else unpacked)


def pass_lower_bound(setting: PassSetting, shape: PassShape, hardware: Hardware) -> LowerBound:
    """The lower bound of one pass. Layers with a window read the cached tokens up to the window."""
    at_context = replace(setting, context_tokens=round(shape.cached_tokens))
    work = at_context.work(shape.kind, shape.stage, shape.rows)
    return work_lower_bound(work, shape.cached_tokens, hardware, setting.weights)


def check_pass(seconds: Seconds, setting: PassSetting, shape: PassShape, hardware: Hardware, *, source: str, fix: str) -> None:
    """Refuse a time of a pass below its lower bound.

    Args:
        source: where the time is from: `the profile of llama-2-7b on NVIDIA H200`.

    Raises:
        BelowLowerBound: gives the bound and its reason.
    """
    rows = f"{shape.rows} row{'' if shape.rows == 1 else 's'}"
    over = f"{rows} over {round(shape.cached_tokens)} cached tokens in {setting.weights.label}"
    subject = f"{source}: a {kind_label(shape.kind)} pass of {over}"
    pass_lower_bound(setting, shape, hardware).check(seconds, subject, hardware.name, fix=fix)


def check_profile(profile: LatencyProfile) -> None:
    """Refuse a profile in which the median pass of some shape is below its lower bound; devices outside the table pass.

    The bound is taken at the fewest cached tokens of the shape: no correct pass is refused.

    Raises:
        BelowLowerBound: names the shape.
    """
    hardware = known_accelerator(profile.device)
    if hardware is None:
        return
    source = f"the profile of {profile.model.name} on {profile.device.num_devices} x {profile.device.device}"
    fix = "Check the dtype and that the clock waits for the device, then profile again: s2d-profile latency"
    for (kind, stage, rows), passes in profile.samples.by_name().items():
        upper_median_s = sorted(sample.seconds for sample in passes)[len(passes) // 2]
        fewest_cached = min(sample.cached_tokens for sample in passes)
        shape = PassShape(kind=kind, stage=stage, rows=rows, cached_tokens=fewest_cached)
        check_pass(upper_median_s, profile.setting, shape, hardware, source=source, fix=fix)


def check_line(line: Line, setting: PassSetting, name: PassName, hardware: Hardware) -> None:
    """Refuse a fitted price below the lower bound with nothing cached or at the context.

    Two points suffice. Between them the bound is convex in the cached tokens, except for the bend at a window; beyond the
    window, windowed layers are priced as if it were full.

    Raises:
        BelowLowerBound: names the pass.
    """
    kind, stage, rows = name
    source = f"the fitted price of {setting.model.name} on {setting.num_devices} x {hardware.name}"
    fix = "Fit again with wider models, or leave the fit out: the datasheet prices it"
    for cached_tokens in (0, setting.context_tokens or 0):
        shape = PassShape(kind=kind, stage=stage, rows=rows, cached_tokens=cached_tokens)
        check_pass(line.at(cached_tokens), setting, shape, hardware, source=source, fix=fix)


def known_accelerator(device: DeviceKey) -> Hardware | None:
    """The table row of an accelerator; None for a CPU and for a device outside the table."""
    if device.num_threads is not None:
        return None
    try:
        return find_hardware(device.device)
    except UnknownName:
        return None
