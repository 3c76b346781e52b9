"""Facts about the device: processor, driver, clocks and power limit.

The host name is never recorded. Facts about a GPU come from NVML (`nvidia-ml-py`) if it is installed, otherwise from torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from perfmodel.core.units import GIGA, MEGA, MILLI, Bytes, Watts, format_bytes, format_number
from s2d.model.torch_device import device_key


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """The machine of a profile. None means unknown."""

    name: str
    """`NVIDIA H200`, or for a CPU its model name."""
    num_threads: int | None = None
    """Threads that torch uses; None on a GPU."""
    driver: str | None = None
    clock_hz: float | None = None
    """The current clock of the SMs."""
    max_clock_hz: float | None = None
    power_limit_w: Watts | None = None
    memory_bytes: Bytes | None = None

    @property
    def label(self) -> str:
        """The known facts on one line: `NVIDIA H200, 1.98 of 1.98 GHz, 700 W, 151 GB`."""
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
    """Facts about the device that torch computes on."""
    if device.type != "cuda":
        key = device_key(torch.device("cpu"), "fp32", "eager")
        return DeviceFacts(name=key.device, num_threads=key.num_threads)
    properties = torch.cuda.get_device_properties(device)
    from_torch = DeviceFacts(name=properties.name, memory_bytes=properties.total_memory)
    handle = nvml_handle(device)
    return from_torch if handle is None else _facts_from_nvml(handle, from_torch)


def nvml_handle(device: torch.device) -> Any | None:
    """NVML's handle of a CUDA device, found by UUID because torch and NVML number devices differently.

    None without `nvidia-ml-py` or its driver, or if NVML does not list the device (a MIG slice).
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


def _facts_from_nvml(handle: Any, from_torch: DeviceFacts) -> DeviceFacts:
    import pynvml

    def read(function: Callable[..., Any], *arguments: Any) -> Any:
        """A reading; None if this board or virtual GPU does not support it."""
        try:
            return function(*arguments)
        except pynvml.NVMLError:
            return None

    name, driver = read(pynvml.nvmlDeviceGetName, handle), read(pynvml.nvmlSystemGetDriverVersion)
    clock_mhz = read(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM)
    max_clock_mhz = read(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM)
    power_limit_mw = read(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    memory = read(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return DeviceFacts(
        name=from_torch.name if name is None else _text(name),
        driver=None if driver is None else _text(driver),
        clock_hz=None if clock_mhz is None else float(clock_mhz * MEGA),
        max_clock_hz=None if max_clock_mhz is None else float(max_clock_mhz * MEGA),
        power_limit_w=None if power_limit_mw is None else float(power_limit_mw * MILLI),
        memory_bytes=from_torch.memory_bytes if memory is None else int(memory.total),
    )


def _text(value: str | bytes) -> str:
    """A name from NVML; older versions of `nvidia-ml-py` return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
