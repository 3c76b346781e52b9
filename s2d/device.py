"""Where torch computes, under the name that profiles, plans and reports file seconds by."""

import platform
from pathlib import Path

import torch

from perfmodel.errors import UserInputError
from perfmodel.profile import DeviceKey, Dtype

_CPU_INFO = Path("/proc/cpuinfo")


def check_device(name: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        UserInputError: a CUDA device, and there is none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserInputError(f"--device {name}: torch finds no CUDA device here. Give --device cpu, or install its CUDA build")


def device_key(device: torch.device, dtype: Dtype) -> DeviceKey:
    """The key of seconds measured here and now. The runtime is eager on every device."""
    is_cuda = device.type == "cuda"
    return DeviceKey(
        device=torch.cuda.get_device_name(device) if is_cuda else _cpu_label(),
        num_devices=1,
        num_threads=None if is_cuda else torch.get_num_threads(),
        dtype=dtype,
        engine="eager",
    )


def cpu_name(cpu_info: str) -> str | None:
    """The model name in the text of Linux's `/proc/cpuinfo`; None when it names none."""
    for line in cpu_info.splitlines():
        field, _, value = line.partition(":")
        if field.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return None


def _cpu_label() -> str:
    named = cpu_name(_CPU_INFO.read_text(encoding="utf-8")) if _CPU_INFO.exists() else None
    return named or platform.processor() or platform.machine()
