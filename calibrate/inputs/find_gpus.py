"""Which GPUs are here: asked of the driver's own library (NVML), which needs no package of ours."""

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
"""NVML_DEVICE_NAME_V2_BUFFER_SIZE, which also holds a UUID (NVML_DEVICE_UUID_V2_BUFFER_SIZE)."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver names it."""

    name: str
    """`NVIDIA A100-SXM4-80GB`."""
    uuid: str


def present_gpus() -> tuple[Gpu, ...]:
    """The GPUs this process may use, in the driver's order; none without a driver that answers."""
    try:
        nvml = ctypes.CDLL(_LIBRARY)
        if nvml.nvmlInit_v2() != _SUCCESS:
            return ()
        try:
            return visible_gpus(tuple(_gpus(nvml)), os.environ.get(_VISIBLE))
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return ()


def visible_gpus(gpus: Sequence[Gpu], setting: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves: numbers or beginnings of UUIDs, up to the first that is neither; None is all."""
    if setting is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for entry in setting.split(","):
        found = _named(gpus, entry.strip())
        if found is None:
            break
        chosen.append(found)
    return tuple(chosen)


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    return next((gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)), None)


def _gpus(nvml: Any) -> Iterator[Gpu]:
    """Every GPU that the driver counts and names."""
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _SUCCESS:
        return
    for place in range(count.value):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(place), ctypes.byref(handle)) == _SUCCESS:
            yield Gpu(name=_text(nvml.nvmlDeviceGetName, handle), uuid=_text(nvml.nvmlDeviceGetUUID, handle))


def _text(ask: Any, handle: ctypes.c_void_p) -> str:
    """What NVML writes into a buffer; empty where it does not."""
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    return buffer.value.decode(errors="replace") if ask(handle, buffer, ctypes.c_uint(_TEXT_BYTES)) == _SUCCESS else ""
