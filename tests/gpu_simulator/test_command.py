"""`python -m tests.gpu_simulator`: a program that finds the simulated device."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_simulator.__main__ import main

SHOWS = "import sys, torch; print(sys.argv, __name__, torch.ones(1, device='cuda').device, torch.cuda.get_device_name())"


def simulated(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.gpu_simulator", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def test_code_a_module_and_a_script_run_as_python_runs_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import beside\n{SHOWS}\nraise SystemExit(beside.CODE)\n", encoding="utf-8")
    (tmp_path / "beside.py").write_text("CODE = 3\n", encoding="utf-8")
    code = simulated("--gpu", "NVIDIA L4", "-c", SHOWS, "--flag")
    assert (code.returncode, code.stdout) == (0, "['-c', '--flag'] __main__ cuda:0 NVIDIA L4\n"), code.stderr
    ran = simulated(str(script), "a", "-b")
    assert (ran.returncode, ran.stdout) == (3, f"{[str(script), 'a', '-b']} __main__ cuda:0 NVIDIA H200\n"), ran.stderr
    module = simulated("-m", "s2d.cli", "--help")
    assert module.returncode == 0, module.stderr


def test_problems_are_printed_and_fail_the_command() -> None:
    reads_early = """
import torch
pinned = torch.zeros(1, pin_memory=True)
pinned.copy_(torch.ones(1, device="cuda"), non_blocking=True)
pinned.tolist()
"""
    found = simulated("-c", reads_early)
    assert found.returncode == 1
    assert "simulated GPU: tolist() reads pinned memory" in found.stderr


@pytest.mark.parametrize("args", [(), ("-c",), ("--gpu",), ("-x",)])
def test_anything_else_shows_the_usage(args: tuple[str, ...], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m tests.gpu_simulator", *args])
    assert main() == 2
    assert capsys.readouterr().err.startswith("usage: python -m tests.gpu_simulator")
