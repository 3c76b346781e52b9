"""GPUs of this machine, from the driver's NVML library through ctypes.

The profiler reads NVML through nvidia-ml-py, which only the `gpu` extra installs. The planner works without that extra.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_SUCCESS = 0
_TEXT_BYTES = 96
"""NVML_DEVICE_NAME_V2_BUFFER_SIZE, which is also enough for a UUID (NVML_DEVICE_UUID_V2_BUFFER_SIZE)."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver names it."""

    name: str
    """`NVIDIA A100-SXM4-80GB`."""
    uuid: str


def present_gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process may use, in the driver's order; empty without a working driver."""
    try:
        nvml = ctypes.CDLL(_LIBRARY)
        if nvml.nvmlInit_v2() != _SUCCESS:
            return ()
        try:
            return visible_gpus(tuple(_all_gpus(nvml)), os.environ.get(_VISIBLE))
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return ()


def visible_gpus(gpus: Sequence[Gpu], setting: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible.

    Args:
        gpus: all of them, in the driver's order.
        setting: numbers or prefixes of UUIDs, separated by commas. CUDA ignores the first invalid entry and all after it.
            None: all GPUs are visible.
    """
    if setting is None:
        return tuple(gpus)
    visible: list[Gpu] = []
    for entry in map(str.strip, setting.split(",")):
        if entry.isdecimal():
            gpu = gpus[int(entry)] if int(entry) < len(gpus) else None
        else:
            gpu = next((gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)), None)
        if gpu is None:
            break
        visible.append(gpu)
    return tuple(visible)


def _all_gpus(nvml: Any) -> Iterator[Gpu]:
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _SUCCESS:
        return
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == _SUCCESS:
            yield Gpu(name=_read_text(nvml.nvmlDeviceGetName, handle), uuid=_read_text(nvml.nvmlDeviceGetUUID, handle))


def _read_text(getter: Any, handle: ctypes.c_void_p) -> str:
    """The text that an NVML getter writes into a buffer; empty if it fails."""
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    return buffer.value.decode(errors="replace") if getter(handle, buffer, ctypes.c_uint(_TEXT_BYTES)) == _SUCCESS else ""
