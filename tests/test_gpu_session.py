"""The commands of a GPU session run with tiny models of the same kinds: on a CPU, and on a simulated GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from perfmodel.passes.latency_profile import PROFILE_FILE

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu_session.sh"
STEPS = ("first", "check", "plain", "transformers", "law", "llama-3.1-8b")
"""Every kind of step. The others run at_scale.py with other models."""
SIMULATED_STEPS = ("first", "13b", "law")
"""Every kind of step that captures passes, except `check`, whose functions `first` calls on fewer pairs."""
MAX_CALL_S, MAX_SESSION_S = 600, 850


def session(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(["bash", str(SCRIPT), *args], capture_output=True, text=True, check=False, env=variables)


def results(folder: Path) -> dict[str, dict]:
    return {
        path.relative_to(folder).as_posix(): json.loads(path.read_text("utf-8"))
        for path in folder.rglob("*.json")
        if "latency" not in path.name
    }


def all_done(folder: Path, *steps: str) -> bool:
    lines = [line.split() for line in (folder / "summary.txt").read_text("utf-8").splitlines()]
    return [(words[0], words[-1]) for words in lines] == [(step, "done") for step in steps]


def plan_from(folder: Path) -> dict:
    """The plan of s2d-plan from a step's evidence."""
    profiles = [word for role in ("draft", "target") for word in ("--profile", str(folder / f"{role}.latency.json"))]
    assert main_plan([*profiles, "--trace", str(folder / "trace.npz"), "-o", str(folder / "plan.json")]) == 0
    return json.loads((folder / "plan.json").read_text("utf-8"))["body"]


def test_a_tiny_session_runs_every_kind_of_step_and_keeps_its_evidence(tmp_path: Path) -> None:
    ran = session("--tiny", str(tmp_path), *STEPS)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert all_done(tmp_path, *STEPS[:5], "law-fit", STEPS[5]), ran.stderr
    assert ran.stdout.endswith((tmp_path / "summary.txt").read_text("utf-8"))
    kept = results(tmp_path)
    first = kept["first_minutes.quick.json"]["result"]
    assert not first["failed"]
    assert first["num_checks"] == 10
    assert kept["device_check.quick.json"]["result"]["is_correct"]
    generated = kept["generate_at_scale.quick.json"]
    assert generated["result"]["best_hf_assisted_tokens_per_pass"] > 1.5
    assert generated["details"]["arms"][0]["tokens_per_pass"] == 1
    at_scale = kept["llama-3.1-8b/at_scale.llama-3.1-8b.quick.json"]
    assert at_scale["result"]["target"] == "tiny llama-3.1-8b"
    assert at_scale["result"]["acceptance_stands_in"]
    assert not at_scale["result"]["is_whole"]
    assert {arm["arm"] for arm in at_scale["details"]["arms"]} > {"plain"}
    assert "plain/at_scale.llama-2-7b.plain.quick.json" in kept
    assert "law/law.fit.json" in kept
    plan = plan_from(tmp_path / "llama-3.1-8b")
    assert plan["target"]["name"] == "tiny llama-3.1-8b"
    assert {evidence["level"] for evidence in plan["evidence"]} == {"measured", "published"}


def test_a_tiny_session_runs_on_a_simulated_gpu_and_keeps_evidence_of_that_device(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.gpu_simulator "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    folder = tmp_path / "out"
    ran = session("--tiny", str(folder), *SIMULATED_STEPS, PYTHON=str(python), DEVICE="cuda")
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert all_done(folder, *SIMULATED_STEPS, "law-fit"), ran.stderr
    first = results(folder)["first_minutes.quick.json"]["result"]
    assert not first["failed"]
    assert first["memory_bytes"] <= first["predicted_memory_bytes"]
    assert first["datasheet_bandwidth_frac"] < 1
    profile = PROFILE_FILE.read(folder / "13b" / "target.latency.json")
    assert profile.provenance.device.startswith("NVIDIA H200")
    assert profile.record.device.device == "NVIDIA H200"
    assert profile.record.device.kernels in [trial.kernels for trial in profile.record.kernel_trials]
    assert plan_from(folder / "13b")["device"]["device"] == "NVIDIA H200"


def test_the_time_limits_fit_a_session_and_match_the_table() -> None:
    text = SCRIPT.read_text("utf-8")
    parts = [[], []]
    number = -1
    for line in text[: text.index("set -uo")].splitlines():
        number = int(part[1]) - 1 if (part := re.match(r"#   part (\d)", line)) else 2 if "#   by name" in line else number
        if number in (0, 1) and (row := re.match(r"#     (\S+) +(\d+) ", line)):
            parts[number].append((row[1], int(row[2])))
    sums = [sum(limit_s for _, limit_s in part) for part in parts]
    assert max(sums) < MAX_CALL_S
    assert sum(sums) <= MAX_SESSION_S
    for name, limit_s in [*parts[0], *parts[1]]:
        assert re.search(rf"(step|at_scale) {re.escape(name)} {limit_s} ", text), name


def test_a_failed_step_is_reported_and_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho the reason >&2\nexit 3\n", encoding="utf-8")
    broken.chmod(0o755)
    command = ["bash", str(SCRIPT), "--tiny", str(tmp_path / "out"), "first", "70b"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHON": str(broken)})
    assert ran.returncode == 1
    lines = (tmp_path / "out" / "summary.txt").read_text("utf-8").splitlines()
    assert [line.split()[0] for line in lines] == ["first", "70b"]
    assert all(line.endswith("failed (3): the reason") for line in lines)


def test_a_missing_folder_or_an_unknown_step_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    no_arguments = session()
    assert no_arguments.returncode == 2
    assert "part 2\n" in no_arguments.stderr
    unknown = session("--tiny", str(tmp_path / "out"), "first", "71b")
    assert unknown.returncode == 2
    assert "unknown part or step '71b'" in unknown.stderr
    assert not (tmp_path / "out").exists()
    without_folder = session("--tiny", "7b")
    assert without_folder.returncode == 2
    assert "'7b' is the name of a part or step: expected a folder first" in without_folder.stderr
