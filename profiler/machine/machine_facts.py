"""What machine this is: its processor, driver, clocks and power limit. Never its name.

A GPU is asked through NVML (`nvidia-ml-py`) where that is installed, and through torch where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from perfmodel.core.units import GIGA, MEGA, MILLI, Bytes, Watts, format_bytes, format_number
from s2d.model.torch_device import device_key

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a reader of a profile wants to know about the machine it was taken on."""

    name: str
    """`NVIDIA H200`, or for a CPU its model name."""
    num_threads: int | None
    """Threads torch computes with; None on a GPU."""
    driver: str | None
    clock_hz: float | None
    """Of the SMs, now; None where nobody says."""
    max_clock_hz: float | None
    power_limit_w: Watts | None
    memory_bytes: Bytes | None

    @property
    def label(self) -> str:
        """`NVIDIA H200, 1.98 of 1.98 GHz, 700 W, 151 GB`: one line, unknown facts left out."""
        clocks = (self.clock_hz, self.max_clock_hz)
        parts = [
            self.name,
            f"{self.num_threads} thread{'s' if self.num_threads != 1 else ''}" if self.num_threads else "",
            " of ".join(format_number(hz / GIGA) for hz in clocks if hz) + " GHz" if any(clocks) else "",
            f"{self.power_limit_w:.0f} W" if self.power_limit_w else "",
            format_bytes(self.memory_bytes) if self.memory_bytes else "",
        ]
        return ", ".join(part for part in parts if part)


def device_facts(device: torch.device) -> DeviceFacts:
    """Ask the machine about the device that torch computes on."""
    if device.type != "cuda":
        return _cpu_facts()
    with_nvml = _gpu_facts_from_nvml(device)
    return with_nvml or _gpu_facts_from_torch(device)


def nvml_handle(device: torch.device) -> Any | None:
    """NVML's handle of a torch CUDA device, found by UUID because the two number devices differently.

    None without `nvidia-ml-py`, without its driver, or where NVML does not list the device (a MIG slice).
    """
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return None


def _cpu_facts() -> DeviceFacts:
    key = device_key(torch.device("cpu"), "fp32", "eager")
    return DeviceFacts(
        name=key.device,
        num_threads=key.num_threads,
        driver=None,
        clock_hz=None,
        max_clock_hz=None,
        power_limit_w=None,
        memory_bytes=None,
    )


def _gpu_facts_from_torch(device: torch.device) -> DeviceFacts:
    found = torch.cuda.get_device_properties(device)
    return DeviceFacts(
        name=found.name,
        num_threads=None,
        driver=None,
        clock_hz=None,
        max_clock_hz=None,
        power_limit_w=None,
        memory_bytes=found.total_memory,
    )


def _gpu_facts_from_nvml(device: torch.device) -> DeviceFacts | None:
    handle = nvml_handle(device)
    if handle is None:
        return None
    import pynvml

    of_torch = _gpu_facts_from_torch(device)
    sm = pynvml.NVML_CLOCK_SM
    return DeviceFacts(
        name=_or_none(lambda: _text(pynvml.nvmlDeviceGetName(handle))) or of_torch.name,
        num_threads=None,
        driver=_or_none(lambda: _text(pynvml.nvmlSystemGetDriverVersion())),
        clock_hz=_or_none(lambda: float(pynvml.nvmlDeviceGetClockInfo(handle, sm) * MEGA)),  # NVML: MHz
        max_clock_hz=_or_none(lambda: float(pynvml.nvmlDeviceGetMaxClockInfo(handle, sm) * MEGA)),  # NVML: MHz
        power_limit_w=_or_none(lambda: float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) * MILLI)),  # NVML: mW
        memory_bytes=_or_none(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)) or of_torch.memory_bytes,
    )


def _or_none(read: Callable[[], T]) -> T | None:
    """A reading, or None: virtual GPUs and some boards do not support all of them."""
    import pynvml

    try:
        return read()
    except pynvml.NVMLError:
        return None


def _text(said: str | bytes) -> str:
    """Older versions of `nvidia-ml-py` answer in bytes."""
    return said.decode(errors="replace") if isinstance(said, bytes) else said
