"""The device of a plan: named, described in a file, found through the driver, or assumed."""

import ctypes
import json
from pathlib import Path
from typing import Any

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.inputs import device as module
from calibrate.inputs import find_gpus
from calibrate.inputs.device import resolve_device
from calibrate.inputs.find_gpus import Gpu, present_gpus, visible_gpus
from calibrate.inputs.requests import DeviceRequest
from perfmodel.core.units import GB
from perfmodel.hardware import find_device
from perfmodel.hardware.cpu import Cpu
from perfmodel.results.plan import PLAN_FILE

L4, A6000 = "NVIDIA L4", "NVIDIA RTX A6000"
FOUR = tuple(Gpu(name=L4, uuid=f"GPU-{letter}1234") for letter in "abcd")
MY_GPU = {
    "name": A6000,
    "memory_bytes": 48_000_000_000,
    "memory_bytes_per_s": 768e9,
    "reference_device": "a100",
    "similarity": "neighbour",
    "spec_source": "its datasheet",
    "links": [],
    "peak_flops_per_s": {"fp32": 38.7e12, "fp16": 154.8e12, "bf16": 154.8e12},
}


class FakeNvml:
    """NVML as ctypes sees it: status codes out, values written through pointers and into buffers."""

    def __init__(self, gpus: tuple[Gpu, ...], *, init: int = 0) -> None:
        self.gpus, self.init, self.is_open = gpus, init, False

    def nvmlInit_v2(self) -> int:  # noqa: N802
        self.is_open = self.init == 0
        return self.init

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.is_open = False
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, buffer: Any, size: ctypes.c_uint) -> int:  # noqa: N802
        buffer.value = self.gpus[(handle.value or 0) - 1].name.encode()
        return 0

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, buffer: Any, size: ctypes.c_uint) -> int:  # noqa: N802
        buffer.value = self.gpus[(handle.value or 0) - 1].uuid.encode()
        return 0


def with_gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    gpus = tuple(Gpu(name=name, uuid=f"GPU-{index}") for index, name in enumerate(names))
    monkeypatch.setattr(module, "present_gpus", lambda: gpus)


def understood(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The device line of a plan, unfolded."""
    assert main_plan(["--target", "vicuna-7b", *arguments]) == 0
    text = capsys.readouterr().out
    return " ".join(text[text.index("\ndevice") : text.index("\nworkload")].split())


def test_every_gpu_is_read_and_the_driver_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(FOUR)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert present_gpus() == FOUR
    assert not nvml.is_open


def test_without_a_driver_or_with_one_that_fails_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_gpus, "_LIBRARY", "no-such-library.so")
    assert present_gpus() == ()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeNvml(FOUR, init=9))
    assert present_gpus() == ()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert present_gpus() == ()


@pytest.mark.parametrize(
    ("setting", "letters"),
    [
        (None, "abcd"),
        ("2", "c"),
        ("3, 0", "da"),
        ("GPU-b", "b"),
        ("", ""),
        ("-1", ""),
        ("1,9,0", "b"),
        ("MIG-1", ""),
    ],
)
def test_only_visible_gpus_count(setting: str | None, letters: str) -> None:
    assert [gpu.uuid[4] for gpu in visible_gpus(FOUR, setting)] == list(letters)


def test_a_present_gpu_is_the_default_device_and_the_text_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gpus(monkeypatch, L4, L4)
    assert understood(capsys) == "device 1 x L4, bf16, graph (found: NVML sees 2 x NVIDIA L4)"


def test_a_plan_may_need_more_gpus_than_are_present(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gpus(monkeypatch, "Tesla T4")
    assert understood(capsys) == "device 2 x T4, fp16, graph (found: NVML sees 1 x Tesla T4; 2 are needed)"


def test_the_most_frequent_known_kind_of_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, A6000, A6000, A6000, "Tesla T4", L4, L4)
    chosen = resolve_device(DeviceRequest())
    assert (chosen.hardware.name, chosen.num_present) == ("L4", 2)


def test_an_unknown_gpu_is_named_and_the_default_is_assumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gpus(monkeypatch, A6000)
    assert understood(capsys) == (
        "device 1 x A100-80GB-SXM, bf16, graph (assumed: no --device given, NVML sees 1 x NVIDIA RTX A6000, in no table: "
        "docs/reference/hardware.md)"
    )


def test_a_named_device_needs_no_explanation_and_no_driver(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "present_gpus", lambda: pytest.fail("the driver was read"))
    assert understood(capsys, "--device", "h200") == "device 1 x H200-SXM, bf16, graph"


def test_this_machines_cpu_can_be_planned_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = Cpu(name="A CPU", vendor="", family="", num_cores=8, clock_hz=3e9, flags=frozenset({"avx2"}), memory_bytes=64 * GB)
    monkeypatch.setattr(find_device, "read_cpu", lambda: cpu)
    assert understood(capsys, "--device", "cpu") == "device 1 x A CPU, 8 threads, fp32, eager"
    assert main_plan(["--target", "vicuna-7b", "--device", "cpu", "--explain"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "roofline: estimated from 8 cores at 3.00 GHz" in text
    assert "nothing measured: s2d-profile latency gives real numbers, ± 50.0 % (one sigma)" in text
    assert "s2d-profile latency --target" not in text
    assert "--device cuda" not in text


def test_a_device_from_a_file_is_identified_by_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my-gpu.json"
    path.write_text(json.dumps(MY_GPU), encoding="utf-8")
    output = tmp_path / "plan.json"
    assert understood(capsys, "--device", str(path), "-o", str(output)) == f"device 1 x {A6000}, bf16, graph"
    latency = [part for part in PLAN_FILE.read(output).record.evidence if part.role.endswith("latency")]
    assert {part.sha256 for part in latency} == {resolve_device(DeviceRequest(device=str(path))).sha256}
    assert "kernel times scaled from A100-80GB-SXM (neighbour), ± 20.0 %" in latency[0].description


def test_a_bad_device_file_ends_with_2_and_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my-gpu.json"
    path.write_text(json.dumps(MY_GPU | {"memory_byte": 1}), encoding="utf-8")
    assert main_plan(["--target", "vicuna-7b", "--device", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"s2d-plan: '{path}': device: unknown key 'memory_byte' (did you mean 'memory_bytes'?). docs/reference/hardware.md has "
        "an "
        "example.\n"
    )
    assert captured.out == ""
