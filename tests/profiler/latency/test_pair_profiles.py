"""The two latency profiles of a pair: their passes, and plans and fits made from them."""

import json
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import gather_evidence
from perfmodel.hardware.hardware import Hardware
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.passes.passes import PASS_MODEL
from profiler.commands.profile_cli import main_profile
from tests.profiler.conftest import EXITS, Folders

pytestmark = pytest.mark.e2e

SEGMENTS = range(len(EXITS))


@pytest.fixture(scope="module")
def evidence(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles and trace of a tiny pair, measured on this machine."""
    out = tmp_path_factory.mktemp("evidence")
    models = ["--target", str(folders.target), "--draft", str(folders.draft), "--prompts", str(folders.prompts)]
    sizes = ["--split", "all", "--num-prompts", "3", "--max-new-tokens", "24", "--draft-cap", "3", "--budget", "1"]
    assert main_profile([*models, *sizes, "-o", str(out)]) == 0
    return out


def profile(evidence: Path, role: str) -> LatencyProfile:
    return PROFILE_FILE.read(evidence / f"{role}.latency.json").record


def test_each_profile_of_a_pair_has_exactly_the_passes_of_its_model(evidence: Path) -> None:
    passes = {(role, sample.kind, sample.stage) for role in ("draft", "target") for sample in profile(evidence, role).samples}
    assert all(PASS_MODEL[kind] == role for role, kind, _ in passes)
    of_draft = {("draft", kind, stage) for kind in ("segment", "exit", "draft_prefill") for stage in SEGMENTS}
    of_target = {("target", kind, 0) for kind in ("verify", "round", "target_prefill")}
    assert passes == of_draft | of_target


def on_gpu(evidence: Path, role: str, hardware: Hardware, folder: Path) -> Path:
    """The profile with the name of a GPU. The seconds of this machine are far above the GPU's lower bound."""
    envelope = json.loads((evidence / f"{role}.latency.json").read_text("utf-8"))
    envelope["body"]["device"] |= {"device": hardware.name, "num_threads": None, "mode": "graph"}
    path = folder / f"{role}.latency.json"
    path.write_text(json.dumps(envelope), encoding="utf-8")
    return path


def test_a_pair_profiled_on_any_known_gpu_can_be_planned(evidence: Path, tmp_path: Path) -> None:
    trace = evidence / "trace.npz"
    for hardware in KNOWN_HARDWARE:
        profiles = tuple(on_gpu(evidence, role, hardware, tmp_path) for role in ("draft", "target"))
        _, pricing = gather_evidence(PlanRequest(trace=trace, profiles=profiles))
        assert pricing.device.device == hardware.name
        assert {part.level for part in pricing.evidence} == {"measured"}
    files = [word for path in profiles for word in ("--profile", str(path))]
    assert main_plan([*files, "--trace", str(trace)]) == 0


def test_the_law_is_fitted_to_both_files_of_a_pair(evidence: Path, tmp_path: Path) -> None:
    files = [str(evidence / f"{role}.latency.json") for role in ("draft", "target")]
    assert main_plan(["fit", *files, "-o", str(tmp_path / "device.fit.json")]) == 0
