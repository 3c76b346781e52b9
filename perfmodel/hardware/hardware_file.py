"""Reads a device from a user's TOML or JSON file with the fields of a table row.

name = "NVIDIA RTX A6000"        as nvidia-smi shows it
memory_bytes = 48e9
memory_bytes_per_s = 768e9
reference_device = "a100"        its kernel costs are used
similarity = "neighbour"         to the reference device; sets the error
spec_source = "NVIDIA RTX A6000 datasheet"
links = [{ kind = "pcie", bytes_per_s = 32e9, max_devices = 8 }]
[peak_flops_per_s]
fp32 = 38.7e12
fp16 = 154.8e12
bf16 = 154.8e12
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from perfmodel.core.codec import DecodeError, decode_record, unique_keys
from perfmodel.core.disk import PathLike, read_bytes
from perfmodel.core.errors import BadFile, UnknownName
from perfmodel.core.near_names import near_keys
from perfmodel.hardware.cpu import CPU_NAME
from perfmodel.hardware.find_hardware import FoundDevice, find_hardware
from perfmodel.hardware.hardware import SIMILARITY_ERROR_FRAC, Hardware

HARDWARE_FILE_SUFFIXES = (".toml", ".json")

_FIX = "docs/reference/hardware.md has an example"
_NOT_IN_A_FILE = ("aliases", "num_threads")
_INTEGER_KEYS = ("memory_bytes",)
"""Integers that a file may write as `48e9`, which TOML and JSON read as a float."""


def is_hardware_file(text: str) -> bool:
    """Whether a `--device` value is a file, by its suffix."""
    return Path(text).suffix.casefold() in HARDWARE_FILE_SUFFIXES


def read_hardware(path: PathLike) -> FoundDevice:
    """A device from a user's file.

    Raises:
        BadFile: unreadable, an unknown or missing key, a wrong type, or a value that no device has.
    """
    import hashlib

    data = read_bytes(path)
    parsed = _parsed(path, data)
    try:
        return FoundDevice(hardware=decode_hardware(parsed), sha256=hashlib.sha256(data).hexdigest())
    except DecodeError as err:
        raise BadFile(path, str(err), _FIX) from err


def decode_hardware(parsed: object) -> Hardware:
    """A device from the parsed content of a file.

    Raises:
        DecodeError: not the fields of a device; names the field.
    """
    if not isinstance(parsed, dict):
        raise DecodeError("device", f"expected an object, got {type(parsed).__name__}")
    _check_keys(parsed)
    integers = {key: int(parsed[key]) for key in _INTEGER_KEYS if isinstance(parsed[key], float) and parsed[key].is_integer()}
    fixed = {
        "aliases": [],
        "num_threads": None,
        "reference_device": _reference_device(parsed["reference_device"]),
        "similarity": _similarity(parsed["similarity"]),
    }
    hardware = decode_record(parsed | integers | fixed, Hardware, "device")
    _check_name(hardware)
    return hardware


def _parsed(path: PathLike, data: bytes) -> object:
    import tomllib

    is_toml = Path(path).suffix.casefold() == ".toml"
    try:
        text = data.decode()
        return tomllib.loads(text) if is_toml else json.loads(text, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as err:
        raise BadFile(path, "this is not a text file", _FIX) from err
    except (ValueError, RecursionError) as err:
        raise BadFile(path, f"this is not {'TOML' if is_toml else 'JSON'} ({err})", _FIX) from err


def _check_keys(parsed: dict[str, Any]) -> None:
    """Refuse unknown and missing keys. A file has the fields of a row except `_NOT_IN_A_FILE`."""
    expected = [field.name for field in fields(Hardware) if field.name not in _NOT_IN_A_FILE]
    for key in parsed:
        if key not in expected:
            near = near_keys(key, expected)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise DecodeError("device", f"unknown key {key!r}{hint}")
    missing = [key for key in expected if key not in parsed]
    if missing:
        raise DecodeError("device", f"missing key {', '.join(map(repr, missing))}")


def _reference_device(given: object) -> str:
    """The table's name of a device whose kernels were measured."""
    from perfmodel.hardware.known_hardware import KNOWN_HARDWARE

    measured = [hardware for hardware in KNOWN_HARDWARE if hardware.similarity == "itself"]
    for hardware in measured:
        if isinstance(given, str) and given.casefold() in hardware.names:
            return hardware.name
    known = " or ".join(repr(hardware.name.casefold()) for hardware in measured)
    raise DecodeError("device.reference_device", f"expected a device whose kernels were measured, {known}, got {given!r}")


def _similarity(given: object) -> object:
    """A similarity that a file may give: all but `itself`."""
    if given not in SIMILARITY_ERROR_FRAC:
        raise DecodeError("device.similarity", f"expected one of {', '.join(map(repr, SIMILARITY_ERROR_FRAC))}, got {given!r}")
    return given


def _check_name(hardware: Hardware) -> None:
    """Refuse names that already mean a table row or this machine's CPU."""
    if hardware.name.casefold() == CPU_NAME:
        raise DecodeError("device.name", f"{hardware.name!r} is the name of this machine's CPU: give another name")
    try:
        known = find_hardware(hardware.name)
    except UnknownName:
        return
    raise DecodeError("device.name", f"{hardware.name!r} is the name of the known device {known.name}: give another name")
