"""The speed of light: seconds below which no device of the table can run a pass, and the gate that refuses such seconds.

    reading    bytes of weights and KV cache, less what caches may keep from the pass before, over the bandwidth
    computing  FLOP over the peak
    light      the longer of the two, by the datasheet

A measurement or a prediction below it is an error, not a record: another device or dtype than was said, a clock that did not
wait for the device, wrong shapes, or a fit asked for what it never saw. Devices that are in no table and CPUs are not
gated: a CPU's clock and bandwidth are assumed here, and its caches hold whole models.

KV caches are counted at 16 bits or more, as `perfmodel.passes.flops_bytes` has them.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

from perfmodel.core.errors import BelowLowerBound, UnknownName
from perfmodel.core.units import (
    MIB,
    TERA,
    BytesPerS,
    Flops,
    FlopsPerS,
    Seconds,
    Tokens,
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
from perfmodel.passes.flops_bytes import PassSetting, PassWork, setting_of
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import Line, PassKind, PassSamples, PassShape, kind_label
from perfmodel.quantisation.weight_format import WeightFormat

MAX_CACHE_BYTES = 288 * MIB
"""No device of the table keeps more between two passes.

MI300X: 256 MB of Infinity Cache and 4 MB of L2 on each of eight dies (AMD, MI300 series microarchitecture). RTX PRO 6000 128
MB, B200 126 MB, RTX 5090 96 MB, RTX 4090 72 MB, H100 50 MB, A100 40 MB, all L2. One bound for all: it is below 2.5 % of a
7-billion-weight model in 16 bit.
"""

MEMORY_SLACK = 1.05
"""Memory may be so much faster than its sheet, as a factor, which is rounded or one of two: the B200's say 7.7 and 8 TB/s.

An RTX 4090's was overclocked by 10 %, but kernels reach less than the sheet: about 80 % in `perfmodel.hardware.kernel_efficiency`.
"""

CLOCK_SLACK = 1.25
"""The same of computing: peaks are printed at a boost clock that is no limit.

An RTX 4090 was driven to 101 TFLOP/s in fp32 where its sheet says 82.6 (Wccftech, 2022-10-11).
"""

_TF32_FRAC = 0.5
"""Of the 16-bit peak: what fp32 weights reach where TF32 is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """The least that one pass can take on one device."""

    read_bytes: float
    bytes_per_s: BytesPerS
    flops: Flops
    flops_per_s: FlopsPerS

    @property
    def read_s(self) -> Seconds:
        """To read what no cache holds."""
        return max(0.0, self.read_bytes - MAX_CACHE_BYTES) / self.bytes_per_s

    @property
    def compute_s(self) -> Seconds:
        """To multiply."""
        return self.flops / self.flops_per_s

    @property
    def seconds(self) -> Seconds:
        """The longer of the two, by the datasheet."""
        return max(self.read_s, self.compute_s)

    @property
    def refused_below_s(self) -> Seconds:
        """The same on the fastest part that may bear the datasheet's name."""
        return max(self.read_s / MEMORY_SLACK, self.compute_s / CLOCK_SLACK)

    @property
    def text(self) -> str:
        """Which of the two binds, and why: half a sentence."""
        if self.read_s / MEMORY_SLACK >= self.compute_s / CLOCK_SLACK:
            what = f"{format_bytes(self.read_bytes)} less {format_bytes(MAX_CACHE_BYTES)} that caches may keep"
            return f"reading {what} at {format_bytes_per_s(self.bytes_per_s)} takes at least {format_seconds(self.read_s)}"
        what = f"{format_number(self.flops / TERA)} TFLOP"
        return f"computing {what} at {format_flops_per_s(self.flops_per_s)} takes at least {format_seconds(self.compute_s)}"


_ARITHMETIC_OF_GGUF: Dtype = "int8"
"""llama.cpp's kernels quantise activations to 8 bits and multiply integers where that is faster."""


def light(work: PassWork, cached_tokens: float, hardware: Hardware, weights: WeightFormat) -> Light:
    """The speed of light of some work, which is per device."""
    return Light(
        read_bytes=work.weight_bytes + work.window_kv_bytes + cached_tokens * work.kv_bytes_per_cached_token,
        bytes_per_s=hardware.memory_bytes_per_s,
        flops=work.flops + work.window_attn_flops + cached_tokens * work.attn_flops_per_cached_token,
        flops_per_s=_peak_flops_per_s(hardware, weights),
    )


def _peak_flops_per_s(hardware: Hardware, weights: WeightFormat) -> FlopsPerS:
    """The fastest that any matrix may be multiplied: as it is stored or unpacked, fp32 perhaps through TF32."""
    peaks, unpacked = hardware.peak_flops_per_s, hardware.peak_flops_per_s[hardware.default_dtype]
    stored = {_ARITHMETIC_OF_GGUF if share.kernels == "gguf" else share.kernels for share in weights.layers}
    return max(*(peaks.get(dtype, 0.0) for dtype in stored), _TF32_FRAC * unpacked if stored == {"fp32"} else unpacked)


def pass_light(setting: PassSetting, shape: PassShape, hardware: Hardware) -> Light:
    """The speed of light of one pass; layers with a window read what is cached, up to it."""
    at = replace(setting, context_tokens=round(shape.cached_tokens))
    return light(at.work(shape.kind, shape.stage, shape.rows), shape.cached_tokens, hardware, setting.weights)


def check_pass(what: str, seconds: Seconds, setting: PassSetting, shape: PassShape, hardware: Hardware, *, fix: str) -> None:
    """Refuse seconds of a pass that nothing could have taken.

    Args:
        what: whose pass, where: `the profile of llama-2-7b on NVIDIA H200`.

    Raises:
        BelowLowerBound: says how long it takes at least, and why.
    """
    limit = pass_light(setting, shape, hardware)
    if seconds < limit.refused_below_s:
        rows = f"{shape.rows} row{'' if shape.rows == 1 else 's'}"
        over = f"{rows} over {round(shape.cached_tokens)} cached tokens in {setting.weights.label}"
        one = f"a {kind_label(shape.kind)} pass of {over}"
        raise BelowLowerBound(
            f"{what}: {one}", given=format_seconds(seconds), least=f"on {hardware.name} {limit.text}", fix=fix
        )


def check_profile(profile: LatencyProfile) -> None:
    """Refuse a profile whose middle pass of some shape is faster than light; one of a device that is not gated passes.

    Held against the fewest cached tokens of its shape, so that no honest pass is refused.

    Raises:
        BelowLowerBound: names the shape.
    """
    hardware = gated_hardware(profile.device)
    if hardware is None:
        return
    setting = setting_of(profile)
    what = f"the profile of {profile.model.name} on {profile.device.num_devices} x {profile.device.device}"
    fix = "Check the dtype and that the clock waits for the device, then profile again: s2d-profile latency"
    for (kind, stage, rows), passes in _by_shape(profile.samples).items():
        fewest, _ = min(passes)
        middle_s = sorted(seconds for _, seconds in passes)[len(passes) // 2]
        shape = PassShape(kind=kind, stage=stage, rows=rows, cached_tokens=fewest)
        check_pass(what, middle_s, setting, shape, hardware, fix=fix)


def _by_shape(samples: PassSamples) -> dict[tuple[PassKind, int, int], list[tuple[Tokens, Seconds]]]:
    """Cached tokens and seconds of every pass by kind, stage and rows."""
    passes = defaultdict(list)
    columns = (samples.kind, samples.stage, samples.rows, samples.cached_tokens, samples.seconds)
    for kind, stage, rows, cached, seconds in zip(*columns, strict=True):
        passes[kind, stage, rows].append((cached, seconds))
    return passes


def check_line(line: Line, setting: PassSetting, kind: PassKind, stage: int, rows: int, hardware: Hardware) -> None:
    """Refuse a fitted price, seconds with nothing cached and per cached token, that is faster than light.

    It is held against light with nothing cached and at the context: light rises ever steeper between them, but for the bend at
    a window, beyond which windowed layers are priced as though it were full.

    Raises:
        BelowLowerBound: says where.
    """
    what = f"the fitted price of {setting.model.name} on {setting.num_devices} x {hardware.name}"
    fix = "Fit again with wider models, or leave the fit out: the datasheet prices it"
    for cached_tokens in (0, setting.context_tokens or 0):
        shape = PassShape(kind=kind, stage=stage, rows=rows, cached_tokens=cached_tokens)
        check_pass(what, line.at(cached_tokens), setting, shape, hardware, fix=fix)


def gated_hardware(device: DeviceKey) -> Hardware | None:
    """The row of the table that an accelerator is in; None for a CPU and for what is in no row."""
    if device.num_threads is not None:
        return None
    try:
        return find_hardware(device.device)
    except UnknownName:
        return None
