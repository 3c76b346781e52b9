"""Kernels are timed interleaved, chosen once, and recorded in the profiles."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import profiler.latency.kernel_trial
import s2d.model.decoder
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import MIB, Seconds
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels, KernelTrial
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from profiler.latency.kernel_trial import ChosenKernels, choose_kernels, recorded_kernels, trial_model, try_kernels
from s2d.decoding.clock import Clock
from s2d.loading.memory import PairPlacement
from s2d.model.buffers import PassBuffers
from s2d.model.check_kernels import runnable_kernels
from s2d.model.cuda_graphs import GraphDecoder
from s2d.model.torch_device import device_key
from tests.calibrate.factories import CPU, DRAFT, TARGET, make_profile, provenance
from tests.gpu_simulator import simulated_gpu

FUSED = replace(STANDARD_KERNELS, norm="fused")
TRIALS = (
    KernelTrial(kernels=STANDARD_KERNELS, draft_layer_s=2e-5, draft_head_s=1e-5, target_layer_s=2e-5, target_head_s=1e-5),
    KernelTrial(kernels=FUSED, draft_layer_s=1e-5, draft_head_s=1e-5, target_layer_s=1e-5, target_head_s=1e-5),
)
HERE = replace(CPU, kernels=None)


def pair_on(device: str, target: ModelGeometry = TARGET, draft: DraftGeometry = DRAFT) -> PairPlacement:
    mode = "graph" if device == "cuda" else "eager"
    return PairPlacement(target=target, draft=draft, dtype="fp32", device=torch.device(device), mode=mode)


def chosen(requested: str | None, device: str = "cpu", recorded: ChosenKernels | None = None) -> ChosenKernels:
    return choose_kernels(requested, pair_on(device), recorded=recorded)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the timing; lists the devices that were timed."""
    devices: list[str] = []

    def trials(models: PairPlacement, **options) -> tuple[KernelTrial, ...]:
        devices.append(str(models.device))
        return TRIALS

    monkeypatch.setattr(profiler.latency.kernel_trial, "try_kernels", trials)
    return devices


def test_a_gpu_times_kernels_by_default_and_a_cpu_on_request(timed: list[str]) -> None:
    assert chosen(None) == ChosenKernels(kernels=STANDARD_KERNELS, trials=())
    assert chosen("standard", "cuda") == ChosenKernels(kernels=STANDARD_KERNELS, trials=())
    assert not timed
    assert chosen("measured") == chosen(None, "cuda") == ChosenKernels(kernels=FUSED, trials=TRIALS)
    assert timed == ["cpu", "cuda"]


def test_named_kernels_are_used_without_a_trial(timed: list[str]) -> None:
    assert chosen("input-major,products,fused") == ChosenKernels(kernels=FUSED, trials=())
    assert not timed
    with pytest.raises(UserInputError, match=r"--kernels: kernels 'fast': expected three names .*; or measured, or standard"):
        chosen("fast")
    with pytest.raises(UserInputError, match="--kernels: kernels '': expected three names"):
        chosen("")
    with pytest.raises(UserInputError, match="do not run on cpu in fp32 with mode eager"):
        chosen("input-major,varlen,fused")


def test_the_measured_kernels_of_an_earlier_profile_are_not_timed_again(timed: list[str]) -> None:
    earlier = ChosenKernels(kernels=FUSED, trials=TRIALS)
    assert chosen("measured", recorded=earlier) == earlier
    assert chosen("standard", recorded=earlier).kernels == STANDARD_KERNELS
    assert not timed


def test_the_given_kernels_of_an_earlier_profile_are_timed_only_on_request(timed: list[str]) -> None:
    given = ChosenKernels(kernels=STANDARD_KERNELS, trials=())
    assert chosen(None, "cuda", recorded=given) == given
    assert not timed
    assert chosen("measured", "cuda", recorded=given) == ChosenKernels(kernels=FUSED, trials=TRIALS)


def profile_with(kernels: Kernels | None) -> LatencyProfile:
    profile = make_profile(TARGET, (), "b" * 64, DRAFT.model.name)
    return replace(profile, device=replace(profile.device, kernels=kernels), kernel_trials=TRIALS if kernels else ())


def test_recorded_kernels_come_from_finished_and_unfinished_profiles_of_the_same_device(tmp_path: Path) -> None:
    assert recorded_kernels(tmp_path, HERE) is None
    (tmp_path / "draft.latency.json").write_text("{", encoding="utf-8")  # reported when the file is needed
    for name in ("target.latency.json", "target.latency.partial.json"):
        PROFILE_FILE.write(tmp_path / name, profile_with(FUSED), provenance())
        assert recorded_kernels(tmp_path, HERE) == ChosenKernels(kernels=FUSED, trials=TRIALS)
        assert recorded_kernels(tmp_path, replace(HERE, dtype="bf16")) is None
        (tmp_path / name).unlink()
    PROFILE_FILE.write(tmp_path / "target.latency.json", profile_with(None), provenance())
    assert recorded_kernels(tmp_path, HERE) is None


def test_all_runnable_kernels_are_timed_on_both_layer_shapes() -> None:
    target = replace(TARGET, num_layers=3, hidden_size=64, intermediate_size=96, num_heads=2, num_kv_heads=1, head_dim=32)
    draft = DraftGeometry(kind="separate", model=replace(target, num_layers=2, hidden_size=32), exit_layers=(2,))
    trials = try_kernels(pair_on("cpu", target, draft), min_weight_bytes=1, num_passes=2)
    assert [trial.kernels for trial in trials] == list(runnable_kernels("cpu", "fp32", "eager"))
    assert all(min(trial.draft_layer_s, trial.draft_head_s, trial.target_layer_s, trial.target_head_s) > 0 for trial in trials)


def test_on_a_gpu_every_timed_pass_is_launched_after_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class RecordingClock(Clock):
        def start(self) -> None:
            acts.append("start")
            super().start()

        def lap_seconds(self) -> list[Seconds]:
            acts.append("read")
            return super().lap_seconds()

    acts: list[str] = []
    monkeypatch.setattr(profiler.latency.kernel_trial, "Clock", RecordingClock)
    run = GraphDecoder.forward_segment
    monkeypatch.setattr(GraphDecoder, "forward_segment", lambda *args: (acts.append("pass"), run(*args))[1])
    target = replace(TARGET, num_layers=1, hidden_size=64, intermediate_size=96, num_heads=2, num_kv_heads=1, head_dim=32)
    draft = DraftGeometry(kind="separate", model=target, exit_layers=(1,))
    with simulated_gpu():
        try_kernels(pair_on("cuda", target, draft), min_weight_bytes=1, num_passes=1)
    reads = [place for place, act in enumerate(acts) if act == "read"]
    assert reads
    assert all(acts[place - 3 : place] == ["pass", "start", "pass"] for place in reads)


@pytest.mark.parametrize("fault", ["wrong numbers", "an error"])
def test_kernels_with_other_results_or_errors_are_left_out(fault: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def faulty(eps: float, x: Tensor, values: Tensor, b: PassBuffers) -> Tensor:
        if fault == "an error":
            raise RuntimeError("no kernel for this device\nand more about it")
        return torch.rms_norm(values, values.shape[1:], None, 1.0)

    monkeypatch.setattr(s2d.model.decoder, "_normed_fused", faulty)
    target = replace(TARGET, num_layers=2, hidden_size=64, intermediate_size=96, num_heads=2, num_kv_heads=1, head_dim=32)
    draft = DraftGeometry(kind="separate", model=target, exit_layers=(2,))
    trials = try_kernels(pair_on("cpu", target, draft), min_weight_bytes=1, num_passes=1)
    assert {trial.kernels.norm for trial in trials} == {"two-step"}
    stderr = capsys.readouterr().err
    expected = "do not run here (no kernel for this device)" if fault == "an error" else "% from the standard ones"
    assert "warning: kernels input-major,products,fused" in stderr
    assert expected in stderr


def test_a_trial_has_enough_layers_for_the_weight_size() -> None:
    layer_bytes = 2 * TARGET.layer_params
    assert trial_model(TARGET, "bf16", 2 * layer_bytes).num_layers == 2
    assert trial_model(TARGET, "bf16", 2 * layer_bytes + 1).num_layers == 3
    assert trial_model(TARGET, "bf16", 10**6 * MIB).num_layers == TARGET.num_layers


def test_the_key_of_a_device_names_the_kernels() -> None:
    key = device_key(torch.device("cpu"), "fp32", "eager", kernels=FUSED)
    assert key.kernels == FUSED
    assert key.label.endswith(", fp32, eager, input-major,products,fused")
