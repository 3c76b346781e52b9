"""Where torch computes, under the name that profiles, plans and reports file seconds by."""

import torch

from perfmodel.cpu import this_cpu_name
from perfmodel.errors import UserInputError
from perfmodel.profile import DeviceKey, Dtype


def check_device(name: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        UserInputError: a CUDA device, and there is none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserInputError(f"--device {name}: torch finds no CUDA device here. Give --device cpu, or install its CUDA build")


def device_key(device: torch.device, dtype: Dtype, num_devices: int = 1) -> DeviceKey:
    """The key of seconds measured here and now, on so many devices alike. The runtime is eager on every device."""
    is_cuda = device.type == "cuda"
    return DeviceKey(
        device=torch.cuda.get_device_name(device) if is_cuda else this_cpu_name(),
        num_devices=num_devices,
        num_threads=None if is_cuda else torch.get_num_threads(),
        dtype=dtype,
        engine="eager",
    )
