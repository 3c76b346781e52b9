"""Finds a device by its name in the table, as this machine's CPU, or from a user's file."""

from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.hardware.cpu import CPU_NAME, cpu_hardware, read_cpu
from perfmodel.hardware.find_hardware import FoundDevice, find_hardware
from perfmodel.hardware.hardware import Hardware


def find_device(name: str) -> FoundDevice:
    """A device by its name in the table, this machine's CPU (`cpu` or its own name), or a file that describes a device.

    Raises:
        UnknownName: no such device; lists the nearest names.
        BadFile: the file does not describe a device.
    """
    from perfmodel.hardware.hardware_file import is_hardware_file, read_hardware

    if is_hardware_file(name):
        return read_hardware(name)
    try:
        return FoundDevice(hardware=find_hardware(name), sha256=None)
    except UnknownName:
        cpu = _this_cpu(name)
        if cpu is None:
            raise
        return FoundDevice(hardware=cpu, sha256=None)


def same_device(name: str, other: str) -> bool:
    """Whether two names mean one kind of device: by spelling, by the table, by a file, or as this machine's CPU."""
    if name.casefold() == other.casefold():
        return True
    try:
        return other.casefold() in find_device(name).hardware.names
    except UnknownName:
        return False


def _this_cpu(name: str) -> Hardware | None:
    """This machine's CPU by `cpu` or by its own name; None for another name."""
    if name.casefold() == CPU_NAME:
        return cpu_hardware(read_cpu())
    try:
        cpu = read_cpu()
    except UserInputError:
        return None
    return cpu_hardware(cpu) if name.casefold() == cpu.name.casefold() else None
