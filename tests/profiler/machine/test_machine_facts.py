"""What machine this is."""

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


def facts(**known: object) -> DeviceFacts:
    unknown = dict.fromkeys(("num_threads", "driver", "clock_hz", "max_clock_hz", "power_limit_w", "memory_bytes"), None)
    return DeviceFacts(**({"name": "a device"} | unknown | known))  # type: ignore[arg-type]


def test_this_cpu_has_a_name_which_is_not_the_name_of_the_host() -> None:
    found = device_facts(torch.device("cpu"))
    assert found.name
    assert platform.node() not in found.label
    assert found.num_threads == torch.get_num_threads()


def test_a_label_leaves_out_what_is_not_known() -> None:
    assert facts().label == "a device"
    assert facts(num_threads=1).label == "a device, 1 thread"
    full = facts(clock_hz=1.2e9, max_clock_hz=1.98e9, power_limit_w=700.0, memory_bytes=151 * 10**9)
    assert full.label == "a device, 1.20 of 1.98 GHz, 700 W, 151 GB"


class NVMLError(Exception):
    """What every call of NVML raises, whatever it does not support."""


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
    num_threads=None,
    driver="570.1",
    clock_hz=1.2e9,
    max_clock_hz=1.98e9,
    power_limit_w=700.0,
    memory_bytes=151 * 10**9,
)
CUDA = torch.device("cuda")


def fake_nvml(monkeypatch: pytest.MonkeyPatch, *, failing: str | None, **changed: Any) -> None:
    """NVML in whose place nothing is, one call of which raises; torch knows the name and the memory."""

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


def test_a_gpu_is_asked_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_reading_that_a_board_does_not_support_is_left_out(
    failing: str, unknown: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvml(monkeypatch, failing=failing)
    found = device_facts(CUDA)
    assert found == replace(READ, **unknown)
    assert found.label
    assert (nvml_sensor(CUDA) is None) == (failing == "nvmlDeviceGetPowerUsage")


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_without_a_driver_or_a_handle_torch_is_asked(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, failing=failing)
    assert device_facts(CUDA) == facts(name="torch's name", memory_bytes=150 * 10**9)
    assert nvml_sensor(CUDA) is None


@pytest.mark.gpu
def test_a_gpu_is_found_by_nvml_under_the_name_torch_gives_it() -> None:
    device = torch.device("cuda")
    assert device_facts(device).name == torch.cuda.get_device_name(device)
