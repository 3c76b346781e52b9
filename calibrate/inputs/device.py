"""Resolve a device: the one requested, or the GPU of this machine, or the default."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from calibrate.inputs.find_gpus import present_gpus
from calibrate.inputs.requests import DeviceRequest
from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.hardware.cpu import CPU_NAME, cpu_hardware, read_cpu
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Hardware
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import EngineMode
from perfmodel.results.plan import Evidence

DEFAULT_DEVICE = "a100-80gb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device, how models run on it, and why it was chosen."""

    hardware: Hardware
    sha256: str | None
    """Of the user's file that describes it; None for a device of the table."""
    dtype: Dtype
    """The one requested, or the device's default."""
    engine: EngineMode
    num_devices: int | None
    """The number requested; None where the models decide it."""
    draft_num_devices: int | None
    """As above."""
    choice: Evidence | None
    """How it was chosen; None if it was requested by name."""
    num_present: int | None
    """GPUs of its kind in this machine; None if it was not chosen for being here."""


def resolve_device(request: DeviceRequest) -> Device:
    """The requested device with all that was left open filled in, except the numbers of devices.

    Raises:
        UnknownName: no such device.
        BadFile: the file does not describe a device.
        UserInputError: the device does not compute in the dtype, or has no such engine mode.
    """
    choice, num_present, sha256 = None, None, None
    if request.device is None:
        hardware, choice, num_present = _present_or_default()
    else:
        hardware, sha256 = named_device(request.device)
    dtype, engine = request.dtype or hardware.default_dtype, request.engine or hardware.default_engine
    hardware.compute_dtype(dtype)
    hardware.engine_costs(engine)
    return Device(
        hardware=hardware,
        sha256=sha256,
        dtype=dtype,
        engine=engine,
        num_devices=request.num_devices,
        draft_num_devices=request.draft_num_devices,
        choice=choice,
        num_present=num_present,
    )


def named_device(name: str) -> tuple[Hardware, str | None]:
    """A device by its name in the table, this machine's CPU, or a file that describes it, with the file's hash.

    Raises:
        UnknownName: no such device.
        BadFile: the file does not describe a device.
    """
    from perfmodel.hardware.hardware_file import is_hardware_file, read_hardware

    if is_hardware_file(name):
        described = read_hardware(name)
        return described.hardware, described.sha256
    try:
        return find_hardware(name), None
    except UnknownName:
        cpu = _this_cpu(name)
        if cpu is None:
            raise
        return cpu, None


def same_device(name: str, other: str) -> bool:
    """Whether two names mean one kind of device: by spelling, by the table, by a file, or as this machine's CPU."""
    if name.casefold() == other.casefold():
        return True
    try:
        hardware, _ = named_device(name)
    except UnknownName:
        return False
    return other.casefold() in hardware.names


def _this_cpu(name: str) -> Hardware | None:
    """This machine's CPU, by `cpu` or by its own name, which profiles and plans keep; None for another name."""
    if name.casefold() == CPU_NAME:
        return cpu_hardware(read_cpu())
    try:
        cpu = read_cpu()
    except UserInputError:
        return None
    return cpu_hardware(cpu) if name.casefold() == cpu.name.casefold() else None


def _present_or_default() -> tuple[Hardware, Evidence, int | None]:
    """The most frequent kind of GPU in this machine that the table knows, and how many there are; else the default."""
    counts = Counter(gpu.name for gpu in present_gpus())
    seen = ", ".join(f"{count} x {name}" for name, count in counts.most_common())
    for name, count in counts.most_common():
        try:
            hardware = find_hardware(name)
        except UnknownName:
            continue
        return hardware, Evidence(role="device", level="found", description=f"NVML sees {seen}", sha256=None), count
    reason = f"NVML sees {seen}, in no table: docs/reference/hardware.md" if seen else "no GPU found here"
    choice = Evidence(role="device", level="assumed", description=f"no --device given, {reason}", sha256=None)
    return find_hardware(DEFAULT_DEVICE), choice, None
