"""Tiny models on disk and their profile on a GPU: a real one, or the simulated one if there is none."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from perfmodel.core.provenance import make_provenance
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.policies.policy import Policy
from perfmodel.results.plan import PLAN_FILE
from profiler.commands.profile_cli import main_profile
from profiler.latency import kernel_trial, profiling_job
from profiler.latency.measure_latency import measure_latency
from s2d.loading.load_model import load_tokenizer
from tests.gpu_simulator import Simulator, simulated_gpu
from tests.profiler.conftest import TARGET, Folders, write_pair

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}w20"
POLICY = Policy(exits=(1, 4), thresholds=(0.6,), tokens=2)
NUM_RUNS = 14
ROLES = ("draft", "target")


@contextlib.contextmanager
def real_or_simulated_gpu() -> Iterator[Simulator | None]:
    """A real GPU (None), or the simulator, whose list of problems must stay empty."""
    if torch.cuda.is_available():
        yield None
        return
    with simulated_gpu() as simulator:
        yield simulator
    assert not simulator.problems


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Objects that are not in a cycle are freed at once; others stay."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def used_bytes() -> int:
    """Memory of tensors, without cuBLAS workspaces, which are allocated again when needed."""
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Files and output of one `s2d-profile`."""

    models: Folders
    folder: Path
    dtype: Dtype
    stdout: str
    max_workspaces: int | None
    """Largest number of cuBLAS workspaces at the same time; None on a real GPU."""
    leaked_bytes: int
    """Memory that the command still held after its end."""

    @property
    def profile_flags(self) -> list[str]:
        return [word for path in self.profile_paths for word in ("--profile", str(path))]

    @property
    def profile_paths(self) -> list[Path]:
        return [self.folder / f"{role}.latency.json" for role in ROLES]

    @property
    def profiles(self) -> list[LatencyProfile]:
        return [PROFILE_FILE.read(path).record for path in self.profile_paths]


def profile_argv(models: Folders, folder: Path, dtype: Dtype, *more: str) -> list[str]:
    """Arguments of a short measurement on the GPU."""
    inputs = ["--target", str(models.target), "--draft", str(models.draft), "--prompts", str(models.prompts), "--split", "all"]
    sizes = ["--num-prompts", "3", "--max-new-tokens", "20", "--draft-cap", "2", "--budget", str(NUM_RUNS)]
    return [*inputs, *sizes, "--device", "cuda", "--dtype", dtype, "-o", str(folder), *more]


def run_argv(models: Folders, plan: Path, *more: str) -> list[str]:
    """Arguments of a run of a plan on two short texts."""
    inputs = ["--plan", str(plan), "--target", str(models.target), "--draft", str(models.draft)]
    return [*inputs, "--prompts", str(models.prompts), "--split", "all", "--num-prompts", "2", "--max-new-tokens", "16", *more]


def with_drafting_policy(plan: Path, to: Path) -> Path:
    """Write the plan with a policy that drafts: with the times of the simulator no policy pays."""
    stored = PLAN_FILE.read(plan).record
    changed = replace(stored, chosen=replace(stored.chosen, policy=POLICY))
    PLAN_FILE.write(to, changed, make_provenance(argv=("test",)))
    return to


def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time kernels on a single layer, twice, and count a second of budget per profiling run: simulated times mean nothing."""
    monkeypatch.setattr(kernel_trial, "try_kernels", partial(kernel_trial.try_kernels, num_passes=2))
    monkeypatch.setattr(
        profiling_job, "measure_latency", lambda *args, **options: measure_latency(*args, **options, clock=count().__next__)
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    written = write_pair(tmp_path_factory.mktemp("pair"), TARGET)
    tokenizer = load_tokenizer(written.target)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(written.target)
    return written


@pytest.fixture(scope="session", params=["bf16", "fp16"])
def evidence(request: pytest.FixtureRequest, models: Folders, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Both profiles and the trace of the tiny pair, with the kernels that were measured as fastest."""
    folder, stdout = tmp_path_factory.mktemp(f"profile-{request.param}"), io.StringIO()
    with real_or_simulated_gpu() as simulator, pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(stdout):
        short_measurements(monkeypatch)
        with without_garbage_collection():
            before = used_bytes()
            assert main_profile(profile_argv(models, folder, request.param, "--off-path", "1")) == 0
            leaked = used_bytes() - before
    max_workspaces = simulator.workspaces.max_live if simulator else None
    return Evidence(
        models=models,
        folder=folder,
        dtype=request.param,
        stdout=stdout.getvalue(),
        max_workspaces=max_workspaces,
        leaked_bytes=leaked,
    )


@pytest.fixture(scope="session")
def plan(evidence: Evidence) -> Path:
    """A plan made from this evidence. Planning needs no GPU."""
    from calibrate.commands.plan_cli import main_plan

    path = evidence.folder / "plan.json"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main_plan([*evidence.profile_flags, "--trace", str(evidence.folder / "trace.npz"), "-o", str(path)]) == 0
    return path
