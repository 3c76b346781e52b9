"""What machine this is."""

import platform

import pytest
import torch

from profiler.device import DeviceFacts, device_facts


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


@pytest.mark.gpu
def test_a_gpu_is_found_by_nvml_under_the_name_torch_gives_it() -> None:
    device = torch.device("cuda")
    assert device_facts(device).name == torch.cuda.get_device_name(device)
