"""Environments of engines: found by a marker, and refused by name."""

import sys
from pathlib import Path

import pytest

from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.core.provenance import make_provenance
from s2d.engines.environments import (
    ENVIRONMENT_FILE,
    MARKER,
    EngineEnvironment,
    engine_environment,
    engine_program,
    engine_python,
    engines_folder,
    find_program,
    is_installed,
)
from s2d.engines.recipes import NOT_INSTALLED_HERE, RECIPES


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path))
    return tmp_path


def put_environment(folder: Path, engine: str, programs: tuple[str, ...] = ()) -> None:
    """An environment with a stand-in for its interpreter."""
    (folder / engine / "bin").mkdir(parents=True)
    (folder / engine / "bin" / "python").touch()
    record = EngineEnvironment(engine=engine, packages=("a==1",), programs=programs, version="1")
    ENVIRONMENT_FILE.write(folder / engine / MARKER, record, make_provenance())


def test_the_folder_of_engines_is_the_variable_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S2D_ENGINES", raising=False)
    assert engines_folder() == Path.home() / ".cache" / "s2d" / "engines"
    monkeypatch.setenv("S2D_ENGINES", "/some/where")
    assert engines_folder() == Path("/some/where")


def test_an_environment_counts_only_with_its_marker(engines: Path) -> None:
    (engines / "vllm" / "bin").mkdir(parents=True)
    (engines / "vllm" / "bin" / "python").touch()
    assert not is_installed("vllm")
    assert engine_environment("vllm") is None
    with pytest.raises(UserInputError, match="run s2d-engines install vllm, or set S2D_ENGINES"):
        engine_python("vllm")
    put_environment(engines, "openvino")
    assert is_installed("openvino")
    assert engine_python("openvino") == engines / "openvino" / "bin" / "python"


def test_a_program_is_found_only_where_it_was_built(engines: Path) -> None:
    assert engine_program("llama.cpp", "llama-server") is None
    put_environment(engines, "llama.cpp", programs=("llama-server",))
    (engines / "llama.cpp" / "bin" / "llama-server").touch()
    assert engine_program("llama.cpp", "llama-server") == engines / "llama.cpp" / "bin" / "llama-server"
    assert engine_program("llama.cpp", "llama-perplexity") is None


def test_a_linked_environment_needs_no_marker_but_an_interpreter(engines: Path, tmp_path: Path) -> None:
    own = tmp_path / "my own; $x"
    (own / "bin").mkdir(parents=True)
    (engines / "sglang").symlink_to(own)
    assert not is_installed("sglang")
    with pytest.raises(UserInputError, match=r"'sglang': its environment .* has no interpreter, expected bin/python"):
        engine_python("sglang")
    (own / "bin" / "python").touch()
    (own / "bin" / "tool").touch()
    assert engine_python("sglang") == engines / "sglang" / "bin" / "python"
    assert find_program("sglang", "tool") == engines / "sglang" / "bin" / "tool"


@pytest.mark.usefixtures("engines")
def test_our_runtime_and_transformers_run_in_this_interpreter_if_they_have_no_other() -> None:
    assert engine_python("s2d") == engine_python("transformers") == Path(sys.executable)


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("onnxruntim", "unknown engine 'onnxruntim': did you mean 'onnxruntime'"),
        ("sglang", "engine 'sglang' is not installed by s2d-engines: its packages are for GPUs"),
        ("tensorrt-llm", "engine 'tensorrt-llm' is not installed by s2d-engines: it runs on NVIDIA GPUs only"),
    ],
)
def test_an_engine_without_a_recipe_is_refused_with_what_to_do(engine: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message) as refused:
        engine_python(engine)
    assert isinstance(refused.value, UnknownName) == (engine not in NOT_INSTALLED_HERE)


def test_every_package_is_pinned_and_torch_in_one_version_only() -> None:
    packages = [package for recipe in RECIPES.values() for package in recipe.packages]
    assert not [package for package in packages if "==" not in package]
    assert {package for package in packages if package.startswith("torch==")} == {"torch==2.13.0"}
    assert not [name for name, recipe in RECIPES.items() if recipe.package not in recipe.packages]
