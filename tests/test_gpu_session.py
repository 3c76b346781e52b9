"""The GPU session's commands run: on a CPU, with tiny models of the same kinds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu_session.sh"
STEPS = ("facts", "check", "plain", "transformers", "law", "llama-3.1-8b")
"""Every kind of step; the others are at_scale.py with other names."""


def session(*args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(["bash", str(SCRIPT), *args], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_a_tiny_session_runs_every_kind_of_step_and_keeps_its_evidence(tmp_path: Path) -> None:
    ran = session("--tiny", str(tmp_path), *STEPS)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    summary = (tmp_path / "summary.txt").read_text("utf-8")
    ended = [line.split() for line in summary.splitlines()]
    assert {words[-1] for words in ended} == {"done"}, summary
    assert [words[0] for words in ended] == [*STEPS[:5], "law-fit", STEPS[5]]
    assert ran.stdout.endswith(summary)
    kept = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.json")}
    check = json.loads(kept["device_check.quick.json"].read_text("utf-8"))
    assert check["result"]["is_correct"]
    written = json.loads(kept["generate_at_scale.quick.json"].read_text("utf-8"))
    assert written["result"]["best_hf_assisted_tokens_per_pass"] > 1.5
    assert written["details"]["arms"][0]["tokens_per_pass"] == 1
    found = json.loads(kept["llama-3.1-8b/at_scale.llama-3.1-8b.quick.json"].read_text("utf-8"))
    assert found["result"]["target"] == "tiny llama-3.1-8b"
    assert found["result"]["acceptance_stands_in"]
    assert not found["result"]["is_whole"]
    assert {arm["arm"] for arm in found["details"]["arms"]} > {"plain"}
    assert "plain/at_scale.llama-2-7b.plain.quick.json" in kept
    assert "law/law.fit.json" in kept


def test_a_step_that_cannot_run_is_told_and_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho told why >&2\nexit 3\n", encoding="utf-8")
    broken.chmod(0o755)
    command = ["bash", str(SCRIPT), "--tiny", str(tmp_path / "out"), "facts", "70b"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHON": str(broken)})
    assert ran.returncode == 1
    lines = (tmp_path / "out" / "summary.txt").read_text("utf-8").splitlines()
    assert [line.split()[0] for line in lines] == ["facts", "70b"]
    assert all(line.endswith("failed (3): told why") for line in lines)


def test_without_a_folder_or_with_an_unknown_step_it_says_what_there_is(tmp_path: Path) -> None:
    bare = session()
    assert bare.returncode == 2
    assert "part 3  70b" in bare.stderr
    unknown = session("--tiny", str(tmp_path), "71b")
    assert unknown.returncode == 2
    assert "unknown part or step '71b'" in unknown.stderr
