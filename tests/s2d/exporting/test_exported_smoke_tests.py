"""An exported smoke test passes in each installed engine, and fails where the draft is another one."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import s2d
from perfmodel.policies.policy import Policy
from perfmodel.results.plan import Candidate, Plan
from s2d.engines.environments import engine_python, is_installed
from s2d.loading.load_model import export_exit
from s2d.loading.model_folder import find_model

ENGINES = ("onnxruntime", "openvino", "llama.cpp", "vllm", "transformers", "mlx-lm")
POLICY = Policy(exits=(4,), tokens=8)
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short profile of the reference family, with a trace of ten prompts."""
    folder = tmp_path_factory.mktemp("profile")
    s2d.profile(
        "ref-target-32",
        draft="ref-draft",
        device="cpu",
        num_prompts=10,
        max_new_tokens=48,
        budget_s=3,
        output=folder / "profile",
    )
    return folder / "profile"


def planned(profile: Path, engine: str) -> Plan:
    trace = s2d.Trace.load(profile / "trace.npz")
    plan = s2d.plan(trace=profile / "trace.npz", profiles=sorted(profile.glob("*.latency.json")))
    chosen = Candidate(name="plan", policy=POLICY, rounds=s2d.replay(trace, POLICY), speedup=plan.chosen.speedup)
    return replace(plan, engine=engine, chosen=chosen)


def run_smoke_test(engine: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it where the folder has been moved to, in the engine's Python, as the README writes."""
    moved = folder.with_name("moved it's $HOME")
    folder.rename(moved)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [engine_python(engine), moved / "smoke_test.py"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_keeps_the_plan(engine: str, profile: Path, tmp_path: Path) -> None:
    if not is_installed(engine):
        pytest.skip(f"{engine} is not installed: s2d-engines install {engine}")
    s2d.export(planned(profile, engine), tmp_path / "served", trace=profile / "trace.npz")
    done = run_smoke_test(engine, tmp_path / "served")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "text equals plain decoding in 10 of 10 prompts" in done.stdout


def test_a_draft_of_other_weights_is_found(profile: Path, tmp_path: Path) -> None:
    s2d.export(planned(profile, "transformers"), tmp_path / "served", trace=profile / "trace.npz")
    draft = tmp_path / "served" / "draft"
    settings = (draft / "generation_config.json").read_text(encoding="utf-8")
    shutil.rmtree(draft)
    export_exit(find_model("ref-target-16"), 1, draft)  # an exit that was never trained to predict
    (draft / "generation_config.json").write_text(settings, encoding="utf-8")
    done = run_smoke_test("transformers", tmp_path / "served")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED: the engine rejects almost every drafted token" in done.stdout
