"""Where torch computes, under the name that profiles, plans and reports file seconds by."""

import re

import torch

from perfmodel.core.errors import UserInputError
from perfmodel.hardware.cpu import this_cpu_name
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import DeviceKey, EngineMode
from perfmodel.passes.kernels import Kernels


def use_device(name: str) -> None:
    """Make a device the one that torch times and launches on.

    Raises:
        UserInputError: it is none that this runtime computes on, or not here.
    """
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise UserInputError(f"--device {name}: expected cpu, cuda, or cuda:N for one of several GPUs.")
    if name == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserInputError(f"--device {name}: torch finds no CUDA device here. Give --device cpu, or install its CUDA build.")
    if found[1] is not None:
        number, num_devices = int(found[1]), torch.cuda.device_count()
        if number >= num_devices:
            raise UserInputError(f"--device {name}: this machine has {num_devices} CUDA devices. Give a number below that.")
        torch.cuda.set_device(number)


def engine_for(asked: EngineMode | None, device: str, num_devices: int) -> EngineMode:
    """How passes are launched on so many devices alike; where nothing is asked, as graphs on a single GPU.

    Raises:
        UserInputError: graphs on a CPU, which has none, or on several devices, whose passes are ordered one by one.
    """
    has_graphs = torch.device(device).type == "cuda" and num_devices == 1
    if asked == "graph" and not has_graphs:
        where = "a CPU" if num_devices == 1 else f"{num_devices} devices"
        raise UserInputError(
            f"engine graph on {where}: expected eager there, as CUDA graphs are for one GPU. Give --engine eager."
        )
    return asked or ("graph" if has_graphs else "eager")


def device_key(
    device: torch.device, dtype: Dtype, engine: EngineMode, num_devices: int = 1, *, kernels: Kernels | None = None
) -> DeviceKey:
    """The key of seconds measured here and now, on so many devices alike."""
    is_cuda = device.type == "cuda"
    return DeviceKey(
        device=torch.cuda.get_device_name(device) if is_cuda else this_cpu_name(),
        num_devices=num_devices,
        num_threads=None if is_cuda else torch.get_num_threads(),
        dtype=dtype,
        engine=engine,
        kernels=kernels,
    )
