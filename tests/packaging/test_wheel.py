"""Wheel and source distribution: built, installed into a clean environment, and used from there."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = "perfmodel/replay/_native.abi3.so"
CONFIG = ("config.json", "model.safetensors", "tokenizer.json", "s2d.json")

pytestmark = pytest.mark.e2e


def build(folder: Path, **environment: str) -> tuple[Path, Path]:
    """The source distribution of the checkout, and the wheel built from that."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert built.returncode == 0, built.stderr[-3000:]
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("dist"))


def environment_without_python() -> dict[str, str]:
    """This process's environment without PYTHONPATH and its kind, which would let the checkout in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def clean_environment(folder: Path, wheel: Path) -> Path:
    """The Python of a new virtual environment that holds the wheel and what it depends on, nothing else."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel]
    installed = subprocess.run(install, capture_output=True, text=True, check=False, env=environment_without_python())
    assert installed.returncode == 0, installed.stderr[-3000:]
    return python


def run_in(python: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of the environment, started away from the checkout."""
    words = [python.parent / command[0], *command[1:]]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder, env=environment_without_python())


@pytest.fixture(scope="module")
def clean(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_environment(tmp_path_factory.mktemp("clean") / "venv", built[1])


def test_the_wheel_holds_the_compiled_replay_for_every_python_from_3_11_on(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert "-cp311-abi3-" in built[1].name
    assert NATIVE in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]


def test_wheel_and_source_hold_every_file_of_the_packages(built: tuple[Path, Path]) -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    packages = ("perfmodel/", "calibrate/", "s2d/", "profiler/")
    ours = {name for name in listed if name.startswith(packages) and (ROOT / name).exists()}
    in_wheel = set(zipfile.ZipFile(built[1]).namelist())
    assert sorted(ours - in_wheel) == sorted(name for name in ours if "/native/" in name), "only the C sources stay out"
    with tarfile.open(built[0]) as source:
        in_source = {name.partition("/")[2] for name in source.getnames()}
    outside = {
        name for name in listed if name.startswith(("tests/", "docs/", "examples/")) or name in ("constraints.txt", "README.md")
    }
    assert not sorted(name for name in ours | outside if (ROOT / name).exists() and name not in in_source)


def test_a_plan_from_the_wheel_is_the_plan_of_the_checkout(clean: Path, tmp_path: Path) -> None:
    flags = ("--target", "llama-70b", "--device", "h100")
    planned = run_in(clean, tmp_path, "s2d-plan", *flags)
    assert planned.returncode == 0, planned.stderr
    assert planned.stderr == ""
    here = [
        sys.executable,
        "-c",
        "import sys; from calibrate.commands.plan_cli import main_plan; sys.exit(main_plan(sys.argv[1:]))",
    ]
    expected = subprocess.run([*here, *flags], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert planned.stdout == expected


def test_the_public_api_works_without_torch_in_a_clean_environment(clean: Path, tmp_path: Path) -> None:
    program = "import s2d, sys; print(s2d.plan('llama-70b', device='h100').tokens_per_s > 1, 'torch' in sys.modules)"
    shown = run_in(clean, tmp_path, "python", "-c", program)
    assert shown.stdout.split() == ["True", "False"], shown.stderr


def test_a_command_that_needs_torch_says_how_to_install_it(clean: Path, tmp_path: Path) -> None:
    refused = run_in(clean, tmp_path, "s2d-profile", "--target", "ref-target-16", "--draft", "ref-draft")
    assert refused.returncode == 2
    assert "pip install" in refused.stderr
    assert "s2d[run]" in refused.stderr


def test_without_a_compiler_the_wheel_works_and_says_what_it_loses(tmp_path: Path) -> None:
    _, wheel = build(tmp_path / "dist", CC="no-compiler-here")
    assert NATIVE not in zipfile.ZipFile(wheel).namelist()
    python = clean_environment(tmp_path / "venv", wheel)
    planned = run_in(python, tmp_path, "s2d-plan", "--target", "vicuna-7b", "--device", "a100-80gb")
    assert planned.returncode == 0, planned.stderr
    assert "exit" in planned.stdout
    assert "C compiler" in planned.stderr
