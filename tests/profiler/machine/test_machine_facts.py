"""Facts about a CPU, and about a GPU with and without NVML."""

import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from profiler.machine.machine_facts import DeviceFacts, device_facts
from profiler.machine.measure_energy import nvml_sensor


def test_the_cpu_is_named_and_the_host_is_not() -> None:
    facts = device_facts(torch.device("cpu"))
    assert facts.name
    assert platform.node() not in facts.label
    assert facts.num_threads == torch.get_num_threads()


def test_a_label_leaves_out_unknown_facts() -> None:
    assert DeviceFacts(name="a device").label == "a device"
    assert DeviceFacts(name="a device", num_threads=1).label == "a device, 1 thread"
    full = DeviceFacts(name="a device", clock_hz=1.2e9, max_clock_hz=1.98e9, power_limit_w=700.0, memory_bytes=151 * 10**9)
    assert full.label == "a device, 1.20 of 1.98 GHz, 700 W, 151 GB"


class NVMLError(Exception):
    """The error of a call that NVML does not support."""


READINGS: dict[str, Any] = {
    "nvmlDeviceGetName": "NVIDIA H200",
    "nvmlSystemGetDriverVersion": "570.1",
    "nvmlDeviceGetClockInfo": 1200,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=151 * 10**9),
    "nvmlDeviceGetPowerUsage": 90_000,
}
READ = DeviceFacts(
    name="NVIDIA H200",
    driver="570.1",
    clock_hz=1.2e9,
    max_clock_hz=1.98e9,
    power_limit_w=700.0,
    memory_bytes=151 * 10**9,
)
CUDA = torch.device("cuda")


def fake_nvml(monkeypatch: pytest.MonkeyPatch, *, failing: str | None, **changed: Any) -> None:
    """Replace NVML by constants, with one call that fails. torch knows the name and the memory."""

    def call(name: str, reading: Any) -> Callable[..., Any]:
        def answer(*args: Any) -> Any:
            if name == failing:
                raise NVMLError("Not Supported")
            return reading

        return answer

    others = {"nvmlInit": None, "nvmlDeviceGetHandleByUUID": "a handle"}
    calls = {name: call(name, reading) for name, reading in (others | READINGS | changed).items()}
    module = SimpleNamespace(NVMLError=NVMLError, NVML_CLOCK_SM=1, **calls)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = SimpleNamespace(uuid="1-2", name="torch's name", total_memory=150 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_facts_of_a_gpu_come_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, failing=None)
    assert device_facts(CUDA) == READ
    fake_nvml(monkeypatch, failing=None, nvmlDeviceGetName=b"NVIDIA H200", nvmlSystemGetDriverVersion=b"570.1")
    assert device_facts(CUDA) == READ


@pytest.mark.parametrize(
    ("failing", "unknown"),
    [
        ("nvmlDeviceGetName", {"name": "torch's name"}),
        ("nvmlSystemGetDriverVersion", {"driver": None}),
        ("nvmlDeviceGetClockInfo", {"clock_hz": None}),
        ("nvmlDeviceGetMaxClockInfo", {"max_clock_hz": None}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_w": None}),
        ("nvmlDeviceGetMemoryInfo", {"memory_bytes": 150 * 10**9}),
        ("nvmlDeviceGetPowerUsage", {}),
    ],
)
def test_unsupported_readings_are_left_out(failing: str, unknown: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, failing=failing)
    facts = device_facts(CUDA)
    assert facts == replace(READ, **unknown)
    assert facts.label
    assert (nvml_sensor(CUDA) is None) == (failing == "nvmlDeviceGetPowerUsage")


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_without_a_driver_or_a_handle_the_facts_come_from_torch(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, failing=failing)
    assert device_facts(CUDA) == DeviceFacts(name="torch's name", memory_bytes=150 * 10**9)
    assert nvml_sensor(CUDA) is None


@pytest.mark.gpu
def test_nvml_and_torch_agree_on_the_name_of_a_gpu() -> None:
    device = torch.device("cuda")
    assert device_facts(device).name == torch.cuda.get_device_name(device)
