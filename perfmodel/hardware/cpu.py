"""The CPU of this machine as a device, estimated from system files without a measurement.

    peak       cores × clock × FLOP per cycle of the widest vector extension in the CPU flags
    bandwidth  cores × an assumed bandwidth per core, up to the assumed memory bandwidth of a desktop or a server
    memory     the machine's

A roofline from these numbers is right to a factor of about 1.6. `s2d-profile latency` measures the real ones.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import GB, GIGA, KILO, MEGA, Bytes, BytesPerS, format_number
from perfmodel.hardware.hardware import Hardware
from perfmodel.models.dtypes import Dtype

CPU_NAME = "cpu"

CORE_BYTES_PER_S: BytesPerS = 12 * GB
"""Bandwidth of one core. Assumed: one Zen 4 core read 812 MB of fp32 weights in 66 ms."""
DESKTOP_BYTES_PER_S: BytesPerS = 51.2 * GB
"""Two channels of DDR4-3200, JEDEC JESD79-4."""
SERVER_BYTES_PER_S: BytesPerS = 204.8 * GB
"""Eight channels of DDR4-3200."""
MAX_DESKTOP_CORES = 16
"""A machine with more cores is assumed to be a server."""
ASSUMED_CLOCK_HZ = 2.5 * GIGA
"""Used if the system does not report a clock."""

_CPU_INFO = Path("/proc/cpuinfo")
_MAX_CLOCK_KHZ = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")

_SCALAR_FLOPS_PER_CYCLE = 8
"""Four lanes that multiply and add: every 64-bit CPU has them."""
_FLOPS_PER_CYCLE: tuple[tuple[str, int], ...] = (("avx512f", 64), ("avx2", 32), ("asimd", 16))
"""fp32, two fused multiply-add units of 16, 8 or 4 lanes. The first flag that the CPU has counts."""
_ZEN_4 = ("AuthenticAMD", "25")
"""Vendor and family. Its AVX-512 runs on units of 8 lanes."""
_SPEEDUPS: tuple[tuple[str, Dtype, float], ...] = (
    ("avx512_bf16", "bf16", 2),
    ("avx512_fp16", "fp16", 2),
    ("avx_vnni", "int8", 4),
    ("avx512_vnni", "int8", 4),
    ("bf16", "bf16", 2),
    ("asimdhp", "fp16", 2),
    ("amx_bf16", "bf16", 16),
    ("amx_fp16", "fp16", 16),
    ("amx_int8", "int8", 32),
)
"""Factor over fp32 by CPU flag: vector extensions, then AMX (Intel: 1,024 bf16 and 2,048 int8 operations a core and cycle)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A CPU as the system describes it."""

    name: str
    vendor: str
    family: str
    num_cores: int
    """Physical cores that this process may use."""
    clock_hz: float
    flags: frozenset[str]
    memory_bytes: Bytes


def read_cpu() -> Cpu:
    """The CPU of this machine.

    Raises:
        UserInputError: the system does not report its memory.
    """
    cpu_info = _cpu_info()
    max_clock_khz = _MAX_CLOCK_KHZ.read_text(encoding="ascii") if _MAX_CLOCK_KHZ.exists() else None
    return parse_cpu(cpu_info, max_clock_khz=max_clock_khz, num_usable=_num_usable(), memory_bytes=_memory_bytes())


def this_cpu_name() -> str:
    """The name of this CPU in profiles, plans and reports."""
    return _name(next(_blocks(_cpu_info()), {}))


def parse_cpu(cpu_info: str, *, max_clock_khz: str | None, num_usable: int, memory_bytes: Bytes) -> Cpu:
    """A CPU from the text of Linux's `/proc/cpuinfo`; its name from Python's `platform` if the text is empty.

    Args:
        cpu_info: one block of `field : value` lines for each logical processor.
        max_clock_khz: text of cpufreq's `cpuinfo_max_freq`; None if the file does not exist.
        num_usable: logical processors that this process may use.
        memory_bytes: memory of the machine.
    """
    blocks = list(_blocks(cpu_info))
    first = blocks[0] if blocks else {}
    cores = {(block["physical id"], block["core id"]) for block in blocks if {"physical id", "core id"} <= block.keys()}
    return Cpu(
        name=_name(first),
        vendor=first.get("vendor_id", ""),
        family=first.get("cpu family", ""),
        num_cores=min(len(cores) or len(blocks) or num_usable, num_usable),
        clock_hz=_clock_hz(first, max_clock_khz),
        flags=_flags(first),
        memory_bytes=memory_bytes,
    )


def cpu_hardware(cpu: Cpu) -> Hardware:
    """A CPU as a device: all its cores together."""
    per_cycle = _flops_per_cycle(cpu)
    fp32_flops_per_s = cpu.num_cores * cpu.clock_hz * per_cycle
    peaks: dict[Dtype, float] = {"fp32": fp32_flops_per_s}
    for flag, dtype, speedup in _SPEEDUPS:
        if flag in cpu.flags:
            peaks[dtype] = max(peaks.get(dtype, 0.0), fp32_flops_per_s * speedup)
    clock = format_number(cpu.clock_hz / GIGA)
    return Hardware(
        name=cpu.name,
        aliases=(CPU_NAME,),
        peak_flops_per_s=peaks,
        memory_bytes_per_s=_bytes_per_s(cpu.num_cores),
        memory_bytes=cpu.memory_bytes,
        links=(),
        reference_device=CPU_NAME,
        similarity="itself",
        num_threads=cpu.num_cores,
        spec_source=f"estimated from {cpu.num_cores} cores at {clock} GHz, {per_cycle} fp32 FLOP per core and cycle, "
        "bandwidth assumed",
    )


def _cpu_info() -> str:
    return _CPU_INFO.read_text(encoding="utf-8") if _CPU_INFO.exists() else ""


def _name(fields: dict[str, str]) -> str:
    return " ".join(fields.get("model name", "").split()) or platform.processor() or platform.machine() or "CPU"


def _blocks(cpu_info: str) -> Iterator[dict[str, str]]:
    """The fields of each logical processor."""
    return (_fields(block) for block in cpu_info.split("\n\n") if block.strip())


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {field.strip(): value.strip() for field, _, value in pairs}


def _flags(fields: dict[str, str]) -> frozenset[str]:
    """CPU flags (x86) or features (ARM). 64-bit ARM has `asimd` even if no file lists it."""
    listed = fields.get("flags") or fields.get("Features") or ""
    if not listed and platform.machine() in ("arm64", "aarch64"):
        return frozenset({"asimd"})
    return frozenset(listed.split())


def _clock_hz(fields: dict[str, str], max_clock_khz: str | None) -> float:
    """The highest clock, or the present one if the system does not report the highest. Some virtual machines report 0."""
    reported_hz = float(max_clock_khz) * KILO if max_clock_khz is not None else float(fields.get("cpu MHz", 0)) * MEGA
    return reported_hz or ASSUMED_CLOCK_HZ


def _flops_per_cycle(cpu: Cpu) -> int:
    """fp32 FLOP of one core in a cycle."""
    per_cycle = next((flops for flag, flops in _FLOPS_PER_CYCLE if flag in cpu.flags), _SCALAR_FLOPS_PER_CYCLE)
    return min(per_cycle, 32) if (cpu.vendor, cpu.family) == _ZEN_4 else per_cycle


def _bytes_per_s(num_cores: int) -> BytesPerS:
    memory_bytes_per_s = DESKTOP_BYTES_PER_S if num_cores <= MAX_DESKTOP_CORES else SERVER_BYTES_PER_S
    return min(num_cores * CORE_BYTES_PER_S, memory_bytes_per_s)


def _num_usable() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> Bytes:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError) as err:
        raise UserInputError(
            "--device cpu: this system does not report how much memory it has. Describe the CPU in a file: --device "
            "my-cpu.toml (docs/reference/hardware.md)."
        ) from err
