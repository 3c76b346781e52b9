"""The device to plan for: the one named, or the GPU that is here, or the default; and what a plan says of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from calibrate.inputs.find_gpus import present_gpus
from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.core.units import format_frac
from perfmodel.hardware.cpu import CPU_NAME, cpu_hardware, read_cpu
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Hardware
from perfmodel.passes.device_key import EngineMode
from perfmodel.results.plan import Evidence, EvidenceLevel, EvidenceRole

DEFAULT_DEVICE = "a100-80gb"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenDevice:
    """A device and why it is this one."""

    hardware: Hardware
    sha256: str | None
    """Of the user's file it is from; None for the table's."""
    evidence: Evidence | None
    """How it was chosen; None where it was named."""
    num_present: int | None
    """GPUs of its kind that are here; None where the driver was not asked or it was not chosen for being here."""


def choose_device(asked: str | None) -> ChosenDevice:
    """The device of a request.

    Args:
        asked: a name, `cpu`, or a `.toml` or `.json` file; None asks the driver what is here.

    Raises:
        UnknownName: no such device.
        BadFile: the file is no device.
    """
    if asked is None:
        return _present_or_default()
    hardware, sha256 = named_device(asked)
    return ChosenDevice(hardware=hardware, sha256=sha256, evidence=None, num_present=None)


def named_device(asked: str) -> tuple[Hardware, str | None]:
    """A device by name, this machine's CPU, or one from a file with the file's hash.

    Raises:
        UnknownName: no such device.
        BadFile: the file is no device.
    """
    from perfmodel.hardware.hardware_file import is_hardware_file, read_hardware

    if is_hardware_file(asked):
        found = read_hardware(asked)
        return found.hardware, found.sha256
    try:
        return find_hardware(asked), None
    except UnknownName:
        cpu = _this_cpu(asked)
        if cpu is None:
            raise
        return cpu, None


def datasheet_evidence(chosen: ChosenDevice, num_devices: int, engine: EngineMode) -> tuple[Evidence, ...]:
    """How the device was chosen, where it was not named, and what its seconds rest on."""
    roles: tuple[EvidenceRole, ...] = ("draft latency", "target latency")
    text = _datasheet_text(chosen.hardware, engine)
    latency = tuple(Evidence(role=role, level="roofline", description=text, sha256=chosen.sha256) for role in roles)
    if chosen.evidence is None:
        return latency
    too_few = chosen.num_present is not None and chosen.num_present < num_devices
    told = f"{chosen.evidence.description}; {num_devices} are needed" if too_few else chosen.evidence.description
    return (replace(chosen.evidence, description=told), *latency)


def _datasheet_text(hardware: Hardware, engine: EngineMode) -> str:
    """What a row rests on: its datasheet and the kernel times taken, or what was read of a CPU."""
    host_error_frac = hardware.engine_costs(engine).host_error_frac
    error = f"± {format_frac(hardware.error_frac)} (one sigma)"
    error += f"; where launches bind, the host's speed ± {format_frac(host_error_frac)}" if host_error_frac else ""
    if hardware.num_threads is not None:
        return f"{hardware.spec_source}; {hardware.kernels_label}, {error}"
    joint = " and" if hardware.similarity == "itself" else ","
    return f"{hardware.name} datasheet{joint} {hardware.kernels_label}, {error}"


def _this_cpu(asked: str) -> Hardware | None:
    """This machine's CPU, asked for as `cpu` or by its own name, as profiles and plans file it; None for another name."""
    if asked.casefold() == CPU_NAME:
        return cpu_hardware(read_cpu())
    try:
        cpu = read_cpu()
    except UserInputError:
        return None
    return cpu_hardware(cpu) if asked.casefold() == cpu.name.casefold() else None


def _present_or_default() -> ChosenDevice:
    """The kind of GPU that is here most often and in the table, else the default."""
    counts = Counter(gpu.name for gpu in present_gpus())
    seen = ", ".join(f"{count} x {name}" for name, count in counts.most_common())
    for name, count in counts.most_common():
        try:
            hardware = find_hardware(name)
        except UnknownName:
            continue
        return _chosen(hardware, "found", f"NVML sees {seen}", num_present=count)
    default = find_hardware(DEFAULT_DEVICE)
    why = f"NVML sees {seen}, in no table: docs/hardware.md" if seen else "no GPU found here"
    return _chosen(default, "assumed", f"no --device given, {why}", num_present=None)


def _chosen(hardware: Hardware, level: EvidenceLevel, description: str, *, num_present: int | None) -> ChosenDevice:
    evidence = Evidence(role="device", level=level, description=description, sha256=None)
    return ChosenDevice(hardware=hardware, sha256=None, evidence=evidence, num_present=num_present)
