"""A CPU read from system files of other machines, and of this one."""

import pytest

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import GB, GIGA
from perfmodel.hardware.cpu import Cpu, cpu_hardware, parse_cpu, read_cpu

X86 = """processor\t: {number}
vendor_id\t: {vendor}
cpu family\t: {family}
model name\t: {name}
cpu MHz\t\t: 2000.000
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse2 {flags}
"""
ARM = "processor\t: {number}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimdhp bf16\nCPU implementer\t: 0x41\n"


def x86(
    flags: str, *, cores: int = 4, threads: int = 1, vendor: str = "GenuineIntel", family: int = 6, usable: int = 64
) -> Cpu:
    blocks = [
        X86.format(number=core, core=core, vendor=vendor, family=family, name=" A   CPU ", flags=flags)
        for core in range(cores)
        for _ in range(threads)
    ]
    return parse_cpu("\n".join(blocks), max_clock_khz=None, num_usable=usable, memory_bytes=64 * GB)


@pytest.mark.parametrize(
    ("cpu", "fp32_flops_per_cycle"),
    [
        (x86(""), 8),
        (x86("avx2 fma"), 32),
        (x86("avx2 avx512f"), 64),
        (x86("avx2 avx512f", vendor="AuthenticAMD", family=25), 32),
        (x86("avx2 avx512f", vendor="AuthenticAMD", family=26), 64),
    ],
)
def test_the_peak_is_cores_times_clock_times_flop_per_cycle(cpu: Cpu, fp32_flops_per_cycle: int) -> None:
    assert cpu_hardware(cpu).peak_flops_per_s["fp32"] == 4 * 2 * GIGA * fp32_flops_per_cycle


def test_a_dtype_needs_its_instructions() -> None:
    plain, vectors, matrices = (cpu_hardware(x86(f"avx512f {flags}")) for flags in ("", "avx512_bf16", "avx512_bf16 amx_bf16"))
    assert set(plain.peak_flops_per_s) == {"fp32"}
    assert plain.default_dtype == "fp32"
    assert plain.compute_dtype("int8") == "fp32"
    per_core_and_cycle = matrices.peak_flops_per_s["bf16"] / (4 * 2 * GIGA)
    assert per_core_and_cycle == 1024
    assert vectors.peak_flops_per_s["bf16"] == 2 * vectors.peak_flops_per_s["fp32"]
    with pytest.raises(UserInputError, match="A CPU does not compute in bf16: it computes in fp32, and int8 and int4 weights"):
        plain.compute_dtype("bf16")


def test_only_usable_physical_cores_count() -> None:
    assert x86("avx2", cores=8, threads=2).num_cores == 8
    assert x86("avx2", cores=8, threads=2, usable=3).num_cores == 3


def test_an_arm_cpu_has_its_features_and_an_assumed_clock() -> None:
    text = "\n".join(ARM.format(number=number) for number in range(4))
    cpu = parse_cpu(text, max_clock_khz=None, num_usable=4, memory_bytes=8 * GB)
    assert (cpu.num_cores, cpu.clock_hz) == (4, 2.5 * GIGA)
    hardware = cpu_hardware(cpu)
    assert hardware.peak_flops_per_s["fp32"] == 4 * 2.5 * GIGA * 16
    assert {"bf16", "fp16"} <= set(hardware.peak_flops_per_s)


def test_the_highest_clock_is_used_if_the_system_reports_it() -> None:
    cpu = parse_cpu("", max_clock_khz="3400000\n", num_usable=2, memory_bytes=8 * GB)
    assert (cpu.clock_hz, cpu.num_cores) == (3.4 * GIGA, 2)
    assert cpu.name
    without_clock = parse_cpu("processor : 0\ncpu MHz : 0.000\n", max_clock_khz=None, num_usable=2, memory_bytes=8 * GB)
    assert without_clock.clock_hz == 2.5 * GIGA


def test_bandwidth_grows_with_cores_up_to_that_of_the_memory() -> None:
    rates = [cpu_hardware(x86("avx2", cores=cores)).memory_bytes_per_s for cores in (1, 2, 8, 16, 32)]
    assert rates == [12 * GB, 24 * GB, 51.2 * GB, 51.2 * GB, 204.8 * GB]


def test_the_labels_of_a_cpu_name_its_missing_measurement() -> None:
    hardware = cpu_hardware(x86("avx2"))
    assert hardware.name == "A CPU"
    assert hardware.error_frac == 0.5
    assert hardware.kernels_label == "nothing measured: s2d-profile latency gives real numbers"
    assert hardware.spec_source == "estimated from 4 cores at 2.00 GHz, 32 fp32 FLOP per core and cycle, bandwidth assumed"
    assert (hardware.default_mode, hardware.max_devices, hardware.num_threads) == ("eager", 1, 4)
    with pytest.raises(UserInputError, match=r"A CPU has no graph mode: it has eager. Give --mode eager."):
        hardware.launch_costs("graph")


def test_this_machine_can_be_read() -> None:
    hardware = cpu_hardware(read_cpu())
    assert hardware.memory_bytes > GB
    assert hardware.peak_flops_per_s["fp32"] > GIGA
