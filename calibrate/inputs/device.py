"""Resolve a device: the requested device, the GPU of this machine, or the default."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from calibrate.inputs.find_gpus import present_gpus
from calibrate.inputs.requests import DeviceRequest
from perfmodel.core.errors import UnknownName
from perfmodel.hardware.find_device import find_device
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Hardware
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import LaunchMode
from perfmodel.results.plan import Evidence

DEFAULT_DEVICE = "a100-80gb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device, how models run on it, and why it was chosen."""

    hardware: Hardware
    sha256: str | None
    """Hash of the user's device file; None for a device in the table and for this machine's CPU."""
    dtype: Dtype
    """The requested dtype, or the device's default."""
    mode: LaunchMode
    num_devices: int | None
    """The requested number; None: the fewest that hold the models."""
    draft_num_devices: int | None
    """The requested number; None: the number that drafts faster."""
    choice: Evidence | None
    """Why it was chosen; None if the user named it."""
    num_present: int | None
    """GPUs of this kind in this machine; None if the device was not chosen because it is present."""


def resolve_device(request: DeviceRequest) -> Device:
    """The requested device with defaults filled in, except the numbers of devices.

    Raises:
        UnknownName: no such device.
        BadFile: the file does not describe a device.
        UserInputError: the device does not compute in the dtype, or has no such launch mode.
    """
    choice, num_present, sha256 = None, None, None
    if request.device is None:
        hardware, choice, num_present = _present_or_default()
    else:
        named = find_device(request.device)
        hardware, sha256 = named.hardware, named.sha256
    dtype, mode = request.dtype or hardware.default_dtype, request.mode or hardware.default_mode
    hardware.compute_dtype(dtype)
    hardware.launch_costs(mode)
    return Device(
        hardware=hardware,
        sha256=sha256,
        dtype=dtype,
        mode=mode,
        num_devices=request.num_devices,
        draft_num_devices=request.draft_num_devices,
        choice=choice,
        num_present=num_present,
    )


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
