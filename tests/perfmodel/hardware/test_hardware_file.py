"""A device file is read exactly, or refused with one clear error."""

import json
import re
from pathlib import Path

import pytest

from perfmodel.core.errors import BadFile
from perfmodel.core.units import GB, TERA
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Link
from perfmodel.hardware.hardware_file import is_hardware_file, read_hardware

TOML = """
name = "NVIDIA RTX A6000"
memory_bytes = 48e9
memory_bytes_per_s = 768e9
reference_device = "a100"
similarity = "neighbour"
spec_source = "NVIDIA RTX A6000 datasheet"
links = [{ kind = "pcie", bytes_per_s = 32e9, max_devices = 8 }]

[peak_flops_per_s]
fp32 = 38.7e12
fp16 = 154.8e12
bf16 = 154.8e12
"""
MEASURED = "expected a device whose kernels were measured, 'a100-80gb-sxm' or 'h100-sxm'"
SIMILARITIES = "expected one of 'same-chip', 'neighbour', 'distant', 'unrelated'"


def written(tmp_path: Path, text: str, name: str = "my-gpu.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadFile) as caught:
        read_hardware(path)
    message = str(caught.value)
    assert message.startswith(f"'{path}': ")
    assert message.endswith(". docs/reference/hardware.md has an example.")
    return message.removeprefix(f"'{path}': ").removesuffix(". docs/reference/hardware.md has an example.")


def test_toml_and_json_files_give_the_same_device(tmp_path: Path) -> None:
    import tomllib

    toml = read_hardware(written(tmp_path, TOML))
    same = read_hardware(written(tmp_path, json.dumps(tomllib.loads(TOML)), "my-gpu.json"))
    assert toml.hardware == same.hardware
    assert toml.sha256 != same.sha256


def test_a_device_of_a_file_has_the_costs_of_its_reference_device(tmp_path: Path) -> None:
    hardware = read_hardware(written(tmp_path, TOML)).hardware
    assert (hardware.memory_bytes, hardware.peak_flops_per_s["bf16"]) == (48 * GB, 154.8 * TERA)
    assert hardware.links == (Link(kind="pcie", bytes_per_s=32 * GB, max_devices=8),)
    assert hardware.costs.layer_floor_s == find_hardware("a100").costs.layer_floor_s
    assert (hardware.error_frac, hardware.kernels_label) == (0.20, "kernel times scaled from A100-80GB-SXM (neighbour)")


def test_a_device_may_have_no_links(tmp_path: Path) -> None:
    alone = re.sub(r"links = .*", "links = []", TOML)
    assert read_hardware(written(tmp_path, alone)).hardware.max_devices == 1


def test_a_file_is_recognised_by_its_suffix() -> None:
    assert is_hardware_file("my-gpu.toml")
    assert is_hardware_file("folder/MY.JSON")
    assert not is_hardware_file("a100")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("memory_bytes =", "memory_byte =", "device: unknown key 'memory_byte' (did you mean 'memory_bytes'?)"),
        ("similarity =", "colour =", "device: unknown key 'colour'"),
        ("similarity =", "num_threads = 4\nkind =", "device: unknown key 'num_threads'"),
        ("memory_bytes = 48e9\n", "", "device: missing key 'memory_bytes'"),
        ('name = "NVIDIA RTX A6000"\n', "", "device: missing key 'name'"),
        ("= 48e9", '= "48 GB"', "device.memory_bytes: expected a whole number, got '48 GB'"),
        ("= 48e9", "= 48.5", "device.memory_bytes: expected a whole number, got 48.5"),
        ("= 48e9", "= 48", "device: memory_bytes is 48, expected 100 MB to 100 TB, given in bytes"),
        ("= 768e9", "= 768", "device: memory_bytes_per_s is 768, expected 1.00 GB/s to 100 TB/s, given in bytes per second"),
        ("= 768e9", "= -768e9", "device: memory_bytes_per_s is -7.68e+11, expected 1.00 GB/s"),
        ("= 768e9", "= nan", "device.memory_bytes_per_s: expected a finite number, got nan"),
        ("= 768e9", "= true", "device.memory_bytes_per_s: expected a number, got true"),
        ("fp32 = 38.7e12", "fp32 = 38.7", "device: peak_flops_per_s of fp32 is 38.7, expected 1.00 GFLOP/s"),
        ("bf16 =", "q8_0 =", "device: peak_flops_per_s has q8_0, expected number types: fp32, fp16, bf16, fp8, int8, int4"),
        ("bf16 =", "bf61 =", "device.peak_flops_per_s key: expected one of 11 values such as 'fp32', 'fp16', 'bf16'"),
        ('"pcie"', '"pci"', "device.links[0].kind: expected one of 'nvlink', 'infinity-fabric', 'pcie', got 'pci'"),
        ("bytes_per_s = 32e9", "byte_per_s = 32e9", "device.links[0]: unknown key 'byte_per_s' (did you mean 'bytes_per_s'?)"),
        ("bytes_per_s = 32e9", "bytes_per_s = 32", "device.links[0]: bytes_per_s is 32, expected 100 MB/s to 10.0 TB/s"),
        ("= 8 }", "= 80 }", "device.links[0]: max_devices is 80, expected 2 to 8"),
        ('"a100"', '"4090"', f"device.reference_device: {MEASURED}, got '4090'"),
        ('"a100"', "100", f"device.reference_device: {MEASURED}, got 100"),
        ('"neighbour"', '"itself"', f"device.similarity: {SIMILARITIES}, got 'itself'"),
        ('"NVIDIA RTX A6000"', '"H100"', "device.name: 'H100' is the name of the known device H100-SXM: give another name"),
        ('"NVIDIA RTX A6000"', '"cpu"', "device.name: 'cpu' is the name of this machine's CPU: give another name"),
        ('"NVIDIA RTX A6000"', '""', "device: name or spec_source is empty, expected a name and where the numbers are from"),
    ],
)  # fmt: skip
def test_a_bad_file_is_answered_with_one_clear_error(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert TOML.count(old) == 1
    assert refusal(written(tmp_path, TOML.replace(old, new))).startswith(problem)


def test_all_missing_keys_are_listed_in_one_error(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, 'name = "x"')).startswith("device: missing key 'peak_flops_per_s', 'memory_bytes_per_s', ")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("my.toml", "name =", "this is not TOML (Invalid value"),
        ("my.json", "{", "this is not JSON (Expecting property name"),
        ("my.json", "[1]", "device: expected an object, got list"),
        ("my.json", '{"name": "a", "name": "b"}', "this is not JSON (the key 'name' is repeated)"),
    ],
)
def test_a_file_that_is_not_toml_or_json_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    assert refusal(written(tmp_path, text, name)).startswith(problem)


def test_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe\x00")
    assert refusal(tmp_path / "my.toml") == "this is not a text file"
    with pytest.raises(BadFile, match="no such file"):
        read_hardware(tmp_path / "other.toml")
