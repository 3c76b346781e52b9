"""A device is found by name, as this machine's CPU, or in a file."""

from pathlib import Path

import pytest

from perfmodel.core.errors import UnknownName
from perfmodel.hardware import find_device as find_device_module
from perfmodel.hardware.find_device import find_device, same_device
from perfmodel.hardware.find_hardware import find_hardware
from tests.perfmodel.hardware.test_cpu import x86
from tests.perfmodel.hardware.test_hardware_file import TOML, written


@pytest.fixture(autouse=True)
def this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_device_module, "read_cpu", lambda: x86("avx2"))


def test_a_name_is_looked_up_in_the_table_first() -> None:
    device = find_device("a100")
    assert (device.hardware, device.sha256) == (find_hardware("a100"), None)


def test_this_cpu_is_found_as_cpu_and_by_its_own_name() -> None:
    assert find_device("CPU").hardware == find_device("a cpu").hardware
    assert find_device("cpu").hardware.name == "A CPU"
    with pytest.raises(UnknownName, match="unknown device 'another cpu'"):
        find_device("another cpu")


def test_a_device_of_a_file_comes_with_the_hash_of_the_file(tmp_path: Path) -> None:
    device = find_device(str(written(tmp_path, TOML)))
    assert device.hardware.name == "NVIDIA RTX A6000"
    assert device.sha256 is not None
    assert len(device.sha256) == 64


def test_names_of_one_device_are_the_same_device(tmp_path: Path) -> None:
    path = str(written(tmp_path, TOML))
    same = [("A100", "a100-80gb-sxm"), ("a100", "NVIDIA A100-SXM4-80GB"), ("cpu", "A CPU"), ("My GPU", "my gpu")]
    assert [pair for pair in [*same, (path, "NVIDIA RTX A6000")] if not same_device(*pair)] == []
    assert not same_device("a100", "h100-sxm")
    assert not same_device("no such device", "a100-80gb-sxm")
