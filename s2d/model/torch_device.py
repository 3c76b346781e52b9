"""The torch device of a run, and its key in profiles, plans and reports."""

import re

import torch

from perfmodel.core.errors import UserInputError
from perfmodel.hardware.cpu import this_cpu_name
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import DeviceKey, LaunchMode
from perfmodel.passes.kernels import Kernels


def default_device() -> str:
    """Torch's name of the GPU if there is one, else of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_device(name: str) -> None:
    """Make a device torch's current device: new events and streams belong to it.

    Raises:
        UserInputError: the name is not cpu, cuda or cuda:N, or the machine has no such device.
    """
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UserInputError(f"--device {name}: expected cpu, cuda, or cuda:N for one of several GPUs.")
    if name == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserInputError(f"--device {name}: torch finds no CUDA device here. Use --device cpu, or install torch for CUDA.")
    if match[1] is not None:
        index, num_devices = int(match[1]), torch.cuda.device_count()
        if index >= num_devices:
            raise UserInputError(
                f"--device {name}: this machine has {num_devices} CUDA devices, expected an index below {num_devices}."
            )
        torch.cuda.set_device(index)


def mode_for(requested: LaunchMode | None, device: str, num_devices: int) -> LaunchMode:
    """How passes are launched. If nothing is requested: as graphs on a single GPU, eagerly elsewhere.

    Raises:
        UserInputError: graphs are requested on a CPU, which has none, or on several devices, which run passes one at a time.
    """
    has_graphs = torch.device(device).type == "cuda" and num_devices == 1
    if requested == "graph" and not has_graphs:
        where = "a CPU" if num_devices == 1 else f"{num_devices} devices"
        raise UserInputError(f"mode graph on {where}: expected eager, because CUDA graphs need one GPU. Use --mode eager.")
    return requested or ("graph" if has_graphs else "eager")


def device_key(
    device: torch.device, dtype: Dtype, mode: LaunchMode, num_devices: int = 1, *, kernels: Kernels | None = None
) -> DeviceKey:
    """The key of times measured on this machine, on one or several devices of the same kind."""
    is_cuda = device.type == "cuda"
    return DeviceKey(
        device=torch.cuda.get_device_name(device) if is_cuda else this_cpu_name(),
        num_devices=num_devices,
        num_threads=None if is_cuda else torch.get_num_threads(),
        dtype=dtype,
        mode=mode,
        kernels=kernels,
    )
