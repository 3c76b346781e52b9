"""All commands on a GPU in sequence: profile, plan, run, compare, and the latency law of a device."""

import json
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import device_check
import pytest
import torch

import s2d.model.check_kernels
import s2d.model.cuda_graphs
from calibrate.commands.compare_cli import main_compare
from calibrate.commands.plan_cli import main_plan
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.provenance import make_provenance
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.kernels import STANDARD_KERNELS, parse_kernels
from perfmodel.passes.latency_law import FIT_FILE
from perfmodel.passes.latency_profile import PROFILE_FILE
from perfmodel.results.plan import PLAN_FILE
from perfmodel.results.report import REPORT_FILE, RunReport
from profiler.commands.profile_cli import main_profile
from profiler.latency import kernel_trial, profiling_job
from profiler.latency.measure_latency import measure_latency
from s2d.commands.run_cli import main_run
from s2d.decoding.pair import ModelPair
from s2d.model.check_kernels import runnable_kernels
from shared.logit_gaps import STATED_GAP
from tests.gpu.conftest import POLICY, ROLES, Evidence, profile_argv, run_argv, short_measurements, with_drafting_policy
from tests.profiler.conftest import Folders

pytestmark = [pytest.mark.e2e, pytest.mark.gpu]


def current_device(dtype: str, **changes: object) -> DeviceKey:
    fields = {"num_devices": 1, "num_threads": None, "mode": "graph", "kernels": STANDARD_KERNELS}
    return DeviceKey(device=torch.cuda.get_device_name(), dtype=dtype, **fields | changes)


def test_a_profile_measures_captured_passes_with_the_fastest_kernels(evidence: Evidence) -> None:
    runnable = runnable_kernels("cuda", evidence.dtype, "graph")
    assert len(runnable) == 8
    for profile in evidence.profiles:
        assert tuple(trial.kernels for trial in profile.kernel_trials) == runnable
        assert profile.device == current_device(evidence.dtype, kernels=profile.device.kernels)
        assert profile.device.kernels in runnable
        assert len(profile.samples)
    assert {"ahead", "segment", "exit"} < set(evidence.profiles[0].samples.kind)
    assert f"the fastest of {len(runnable)}" in evidence.stdout
    assert torch.cuda.get_device_name() in evidence.stdout
    trace = TRACE_FILE.read(evidence.folder / "trace.npz").record
    assert len(trace.header.prompts) == 3
    assert len(trace.off_path)


def test_a_plan_is_for_the_device_and_the_kernels_of_its_profiles(evidence: Evidence, plan: Path) -> None:
    planned = PLAN_FILE.read(plan).record
    assert planned.device == evidence.profiles[1].device
    assert planned.device.kernels is not None
    assert {part.role: part.level for part in planned.evidence} == {
        "draft latency": "measured",
        "target latency": "measured",
        "acceptance": "traced",
    }
    hashes = [PROFILE_FILE.read(path).sha256 for path in evidence.profile_paths]
    text = plan.read_text("utf-8")
    assert all(sha256 in text for sha256 in hashes)


def test_a_run_is_checked_and_compared_with_its_plan(
    evidence: Evidence, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafting, report_file = with_drafting_policy(plan, tmp_path / "plan.json"), tmp_path / "report.json"
    assert main_run(run_argv(evidence.models, drafting, "--check", "-o", str(report_file))) == 0
    report = REPORT_FILE.read(report_file).record
    assert report.device == PLAN_FILE.read(plan).record.device
    assert report.plan_arm.policy == POLICY
    assert sum(run.rounds.num_drafted for run in report.plan_arm.runs) > 0
    _assert_checked(report, num_prompts=2)
    capsys.readouterr()
    files = ["--plan", str(drafting), "--report", str(report_file)]
    assert main_compare([*files, *evidence.profile_flags]) == 0
    assert "priced   measured rounds" in capsys.readouterr().out


def _assert_checked(report: RunReport, num_prompts: int) -> None:
    assert report.check is not None
    assert report.check.num_prompts == num_prompts
    assert report.check.worst_gap <= STATED_GAP
    assert report.check.num_equal + len(report.check.divergences) == num_prompts


def test_a_plan_runs_unchanged_on_the_device_of_its_profiles(evidence: Evidence, plan: Path, tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    assert main_run(run_argv(evidence.models, plan, "--check", "-o", str(report_file))) == 0
    assert REPORT_FILE.read(report_file).record.plan_arm.policy == PLAN_FILE.read(plan).record.chosen.policy
    _assert_checked(REPORT_FILE.read(report_file).record, num_prompts=2)


def test_a_conversation_that_outgrows_its_caches_gets_new_ones(
    evidence: Evidence, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, report_file = tmp_path / "prompts.jsonl", tmp_path / "report.json"
    turns = ["w6 w7", " ".join(["w8 w9 w10"] * 10), "w11"]
    prompts.write_text(json.dumps({"question_id": 81, "category": "a", "turns": turns}) + "\n", encoding="utf-8")
    created = _record_sessions(monkeypatch)
    argv = run_argv(
        evidence.models, with_drafting_policy(plan, tmp_path / "plan.json"), "--chat", "--check", "-o", str(report_file)
    )
    argv[argv.index("--prompts") + 1] = str(prompts)
    assert main_run(argv) == 0
    assert len(created) == 2  # the second one is large enough for both later turns
    report = REPORT_FILE.read(report_file).record
    assert [run.name for run in report.plan_arm.runs] == ["81/1", "81/2", "81/3"]
    _assert_checked(report, num_prompts=3)


def _record_sessions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    created: list[int] = []
    session = ModelPair.session

    def recorded(self: ModelPair, max_tokens: int) -> object:
        created.append(max_tokens)
        return session(self, max_tokens)

    monkeypatch.setattr(ModelPair, "session", recorded)
    return created


def test_a_law_can_be_fitted_to_both_profiles_of_a_pair(evidence: Evidence, tmp_path: Path) -> None:
    fit = tmp_path / "pair.fit.json"
    assert main_plan(["fit", *map(str, evidence.profile_paths), "-o", str(fit)]) == 0
    assert FIT_FILE.read(fit).record.device == evidence.profiles[1].device


def test_the_law_of_a_device_can_be_profiled_fitted_and_used_for_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short_measurements(monkeypatch)
    shapes = ["--depths", "1", "2", "--hidden-sizes", "64", "128", "--rows", "1", "2", "4", "--context-tokens", "16", "48"]
    folder, fit, plan = tmp_path / "law", tmp_path / "law.fit.json", tmp_path / "plan.json"
    argv = ["law", *shapes, "--device", "cuda", "--dtype", "bf16", "--budget", "2", "-o", str(folder)]
    assert main_profile(argv) == 0
    profiles = sorted(folder.glob("*.latency.json"))
    keys = {PROFILE_FILE.read(path).record.device for path in profiles}
    assert len(keys) == 1
    assert main_plan(["fit", *map(str, profiles), "-o", str(fit)]) == 0
    assert main_plan(["--fit", str(fit), "--target", "vicuna-7b", "-o", str(plan)]) == 0
    assert PLAN_FILE.read(plan).record.device == keys.pop()


def test_an_interrupted_profile_continues_with_the_recorded_kernels(
    models: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["latency", *profile_argv(models, tmp_path, "fp32")]

    def interrupted(*args, **options) -> None:
        measure_latency(*args, **options, clock=count().__next__)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        short_measurements(patched)
        patched.setattr(profiling_job, "measure_latency", interrupted)
        assert main_profile([*argv, "--budget", "3"]) == 130
    kept = PROFILE_FILE.read(tmp_path / "draft.latency.partial.json").record
    assert len(kept.kernel_trials) == 4
    short_measurements(monkeypatch)
    monkeypatch.setattr(kernel_trial, "try_kernels", lambda *_, **__: pytest.fail("kernels were timed again"))
    assert main_profile([*argv, "--budget", "3"]) == 0
    assert "continuing with the" in capsys.readouterr().err
    for role in ROLES:
        profile = PROFILE_FILE.read(tmp_path / f"{role}.latency.json").record
        assert (profile.device, profile.kernel_trials) == (kept.device, kept.kernel_trials)
    assert len(PROFILE_FILE.read(tmp_path / "draft.latency.json").record.samples) > len(kept.samples)


def test_requested_kernels_are_used_by_profile_plan_and_run(
    models: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_measurements(monkeypatch)
    monkeypatch.setattr(kernel_trial, "try_kernels", lambda *_, **__: pytest.fail("kernels were timed"))
    label, evidence = "output-major,varlen,fused", tmp_path / "profile"
    assert main_profile([*profile_argv(models, evidence, "bf16"), "--budget", "6", "--kernels", label]) == 0
    profiles = [evidence / f"{role}.latency.json" for role in ROLES]
    flags = [word for path in profiles for word in ("--profile", str(path))]
    plan, report_file = tmp_path / "plan.json", tmp_path / "report.json"
    assert main_plan([*flags, "--trace", str(evidence / "trace.npz"), "-o", str(plan)]) == 0
    assert main_run(run_argv(models, with_drafting_policy(plan, plan), "--check", "-o", str(report_file))) == 0
    expected = current_device("bf16", kernels=parse_kernels(label))
    devices = [PROFILE_FILE.read(path).record.device for path in profiles]
    assert [*devices, PLAN_FILE.read(plan).record.device, REPORT_FILE.read(report_file).record.device] == [expected] * 4
    assert not PROFILE_FILE.read(profiles[0]).record.kernel_trials
    _assert_checked(REPORT_FILE.read(report_file).record, num_prompts=2)


@pytest.mark.parametrize(
    ("dtype", "label", "message"),
    [
        ("bf16", "output-major,flash,fused", "expected three names joined by commas: input-major or output-major, products or"),
        ("bf16", "fastest", "; or measured, or standard."),
        ("fp32", "output-major,varlen,fused", "kernels output-major,varlen,fused do not run on cuda in fp32 with mode graph"),
    ],
)
def test_kernels_that_cannot_run_end_with_a_single_message_and_exit_code_2(
    models: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, label: str, message: str
) -> None:
    out = tmp_path / "out"
    assert main_profile([*profile_argv(models, out, dtype), "--kernels", label]) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert [line.partition(":")[0] for line in stderr.splitlines()] == ["prompts", "s2d-profile"]
    assert not out.exists()


def test_a_plan_whose_kernels_cannot_run_is_refused(
    evidence: Evidence, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, path = PLAN_FILE.read(plan).record, tmp_path / "plan.json"
    kernels = parse_kernels("output-major,varlen,fused")
    changed = replace(stored, device=replace(stored.device, kernels=kernels))
    PLAN_FILE.write(path, changed, make_provenance(argv=("test",)))
    monkeypatch.setattr(s2d.model.check_kernels, "_torch_has_varlen", lambda: False)
    assert main_run(run_argv(evidence.models, path)) == 2
    stderr = capsys.readouterr().err
    assert f"kernels {kernels.label} do not run on cuda in {evidence.dtype} with mode graph" in stderr
    assert "Install the PyTorch of the plan's profile" in stderr
    assert [line.partition(":")[0] for line in stderr.splitlines()] == ["prompts", "s2d-run"]


def test_the_device_check_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(device_check, "TARGETS", device_check.TARGETS[:1])  # in full it takes minutes in the simulator
    monkeypatch.setattr(device_check, "SPECS", device_check.SPECS[:1])
    monkeypatch.setattr(device_check, "NEW_TOKENS", 8)
    monkeypatch.setattr(s2d.model.cuda_graphs, "GRAPH_ROW_WIDTHS", (1, 2, 4, 8))
    monkeypatch.setattr(sys, "argv", ["device_check.py", "--device", "cuda", "--quick", "-o", str(tmp_path)])
    assert device_check.run(device_check._parser().parse_args()) == 0
    assert '"is_correct": true' in capsys.readouterr().out.splitlines()[-1]
