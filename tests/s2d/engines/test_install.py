"""Installation of engines: the commands, and that a failure leaves nothing that looks installed."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import s2d.engines.install
from perfmodel.core.errors import BadFile, UserInputError
from s2d.engines.environments import MARKER, engine_environment, is_installed
from s2d.engines.install import STARTED, InstallRequest, install_commands, install_engine, install_text
from s2d.engines.recipes import RECIPES


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


def test_the_commands_make_an_environment_fill_it_and_check_it(engines: Path) -> None:
    commands = install_commands(InstallRequest(engine="onnxruntime"))
    python = str(engines / "onnxruntime" / "bin" / "python")
    assert commands[0] == (sys.executable, "-m", "venv", str(engines / "onnxruntime"))
    assert commands[1][:4] == (python, "-m", "pip", "install")
    assert "torch==2.13.0" in commands[1]
    assert commands[2] == (python, "-m", "pip", "install", "--no-deps", "onnxruntime-genai==0.18.0")
    assert commands[-1][:2] == (python, "-c")


def test_the_printed_commands_are_quoted_for_a_shell(tmp_path: Path) -> None:
    request = InstallRequest(engine="llama.cpp", folder=tmp_path / "my engines; rm x", from_source=True)
    lines = install_text(request).splitlines()
    assert [tuple(shlex.split(line)) for line in lines] == list(install_commands(request))
    assert any("GGML_NATIVE=ON" in line for line in lines)


def test_only_engines_with_a_source_are_built_from_it(engines: Path) -> None:
    with pytest.raises(UserInputError, match="--from-source: openvino has no build from source here"):
        install_engine(InstallRequest(engine="openvino", from_source=True), print)
    assert not engines.exists()


def failing(monkeypatch: pytest.MonkeyPatch, *commands: tuple[str, ...]) -> None:
    monkeypatch.setattr(s2d.engines.install, "install_commands", lambda request: commands)


def test_a_failed_command_leaves_nothing(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, shown = engines / "vllm", list[str]()
    failing(monkeypatch, ("mkdir", str(folder / "bin")), ("false",), ("echo", "1"))
    with pytest.raises(UserInputError, match="ended with code 1, expected 0: false"):
        install_engine(InstallRequest(engine="vllm"), shown.append)
    assert not folder.exists()
    assert shown == [f"mkdir {folder / 'bin'}", "false"]


def test_a_missing_program_is_an_error_of_the_user(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ("no-such-program-here",), ("echo", "1"))
    with pytest.raises(UserInputError, match="cannot run 'no-such-program-here'"):
        install_engine(InstallRequest(engine="vllm"), print)
    assert not (engines / "vllm").exists()


def test_the_check_at_the_end_shows_why_the_engine_cannot_be_imported(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, (sys.executable, "-c", "import no_such_module"))
    with pytest.raises(UserInputError) as refused:
        install_engine(InstallRequest(engine="vllm"), print)
    assert "No module named 'no_such_module'" in refused.value.__notes__[0]
    assert not (engines / "vllm").exists()


def test_a_whole_installation_has_a_marker_with_its_packages(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = engines / "openvino" / "bin" / "python"
    failing(monkeypatch, ("mkdir", str(python.parent)), ("touch", str(python)), ("echo", "2026.1"))
    assert install_engine(InstallRequest(engine="openvino"), print) == engines / "openvino"
    environment = engine_environment("openvino")
    assert environment is not None
    assert (environment.version, environment.packages) == ("2026.1", RECIPES["openvino"].packages)
    assert not (engines / "openvino" / STARTED).exists()
    with pytest.raises(UserInputError, match="is a whole installation already"):
        install_engine(InstallRequest(engine="openvino"), print)
    assert is_installed("openvino")


def test_an_interrupted_installation_is_made_anew_and_foreign_files_are_kept(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, ("true",), ("echo", "1"))
    folder = engines / "openvino"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(BadFile, match="this exists and is no environment that s2d-engines made"):
        install_engine(InstallRequest(engine="openvino"), print)
    assert (folder / "mine.txt").read_text() == "keep"
    (folder / STARTED).touch()
    install_engine(InstallRequest(engine="openvino"), print)
    assert {path.name for path in folder.iterdir()} == {MARKER}


def test_a_link_to_an_environment_is_never_emptied(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ("true",), ("echo", "1"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / STARTED).touch()
    engines.mkdir()
    (engines / "openvino").symlink_to(tmp_path / "own")
    with pytest.raises(UserInputError, match="is a link to an environment already"):
        install_engine(InstallRequest(engine="openvino"), print)
    assert (tmp_path / "own" / STARTED).exists()


def test_packages_of_this_interpreter_are_hidden_from_the_commands(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    failing(monkeypatch, ("sh", "-c", 'test -z "$PYTHONPATH"'), ("echo", "1"))
    install_engine(InstallRequest(engine="openvino"), print)


def test_an_interrupted_installation_leaves_nothing(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ("true",), ("echo", "1"))

    def interrupt(command: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install_engine(InstallRequest(engine="openvino"), interrupt)
    assert not (engines / "openvino").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path / "file"))
    with pytest.raises(BadFile, match=r"file/openvino': cannot be written: Not a directory"):
        install_engine(InstallRequest(engine="openvino"), print)


@pytest.mark.e2e
def test_an_engine_is_installed_by_the_commands(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe without packages of others: pip itself stands in for the engine, so that nothing is downloaded."""
    recipe = replace(RECIPES["mlx-lm"], package="pip==0", module="pip", needs=("pip",))
    monkeypatch.setitem(RECIPES, "mlx-lm", recipe)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    install_engine(InstallRequest(engine="mlx-lm"), print)
    environment = engine_environment("mlx-lm")
    assert environment is not None
    assert environment.version[0].isdigit()
