"""`python -m tests.gpu_simulator` runs a program on the simulated device."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu_simulator.__main__ import main

pytestmark = pytest.mark.e2e

PRINT_DEVICE = "import sys, torch; print(sys.argv, __name__, torch.ones(1, device='cuda').device, torch.cuda.get_device_name())"
READ_EARLY = """
import torch
pinned = torch.zeros(1, pin_memory=True)
pinned.copy_(torch.ones(1, device="cuda"), non_blocking=True)
pinned.tolist()
"""


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command in this process; returns its exit code."""

    def run(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["python -m tests.gpu_simulator", *args])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        return main()

    return run


def test_code_runs_as_python_runs_it(simulated: Callable[..., int], capsys) -> None:
    assert simulated("--gpu", "NVIDIA L4", "-c", PRINT_DEVICE, "--flag") == 0
    assert capsys.readouterr().out == "['-c', '--flag'] __main__ cuda:0 NVIDIA L4\n"


def test_a_script_can_import_modules_beside_it_and_sets_the_exit_code(simulated, tmp_path: Path, capsys) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import beside_the_script\n{PRINT_DEVICE}\nraise SystemExit(beside_the_script.CODE)\n", encoding="utf-8")
    (tmp_path / "beside_the_script.py").write_text("CODE = 3\n", encoding="utf-8")
    assert simulated(str(script), "a", "-b") == 3
    assert capsys.readouterr().out == f"{[str(script), 'a', '-b']} __main__ cuda:0 NVIDIA H200\n"


def test_a_module_runs_as_main(simulated: Callable[..., int], capsys) -> None:
    assert simulated("-m", "json.tool", "--help") == 0
    assert capsys.readouterr().out.startswith("usage:")


def test_problems_are_printed_and_fail_the_command() -> None:
    command = [sys.executable, "-m", "tests.gpu_simulator", "-c", READ_EARLY]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert completed.returncode == 1
    assert "simulated GPU: tolist() reads pinned memory" in completed.stderr


@pytest.mark.parametrize("args", [(), ("-c",), ("--gpu",), ("-x",)])
def test_other_arguments_print_the_usage(args: tuple[str, ...], simulated: Callable[..., int], capsys) -> None:
    assert simulated(*args) == 2
    assert capsys.readouterr().err.startswith("usage: python -m tests.gpu_simulator")
