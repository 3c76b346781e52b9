"""Finds a device of the table by name or alias."""

from dataclasses import dataclass

from perfmodel.core.errors import UnknownName
from perfmodel.core.near_names import dashed_name
from perfmodel.hardware.hardware import Hardware
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDevice:
    """A device, and the file that describes it."""

    hardware: Hardware
    sha256: str | None
    """Hash of the file; None for a device of the table and for this machine's CPU."""


def find_hardware(name: str) -> Hardware:
    """A device of the table by name or alias, in any case.

    Raises:
        UnknownName: lists the nearest names.
    """
    plain = dashed_name(name)
    for hardware in KNOWN_HARDWARE:
        if name.casefold() in hardware.names or plain in map(dashed_name, hardware.names):
            return hardware
    known = [hardware.name.casefold() for hardware in KNOWN_HARDWARE]
    aliases = {alias: hardware.name.casefold() for hardware in KNOWN_HARDWARE for alias in hardware.aliases}
    otherwise = (
        "describe it in a file: --device my-gpu.toml (docs/reference/hardware.md), or plan for this machine's cpu: --device cpu"
    )
    raise UnknownName("device", name, known, aliases=aliases, listed_in="docs/reference/hardware.md", otherwise=otherwise)
