"""`s2d-engines` lists engines and shows one, as text or JSON, without loading anything heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perfmodel.core.codec import decode_record
from perfmodel.engines.engine import Engine
from perfmodel.engines.known_engines import ENGINES
from s2d.commands.engines_cli import main_engines


def test_the_list_names_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_engines(["list"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in ENGINES if name not in shown] == []


def test_the_list_ends_with_what_is_installed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "bin").mkdir()
    (tmp_path / "own" / "bin" / "python").touch()
    (tmp_path / "vllm").symlink_to(tmp_path / "own")
    assert main_engines(["list"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"installed here: s2d, vllm, transformers (environments in {tmp_path})"


def test_json_is_the_records_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_engines(["list", "--json"]) == 0
    assert [decode_record(data, Engine) for data in json.loads(capsys.readouterr().out)] == list(ENGINES.values())
    assert main_engines(["show", "ort", "--json"]) == 0
    assert decode_record(json.loads(capsys.readouterr().out), Engine) == ENGINES["onnxruntime"]


def test_show_prints_options_constraints_and_known_failures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_engines(["show", "llama-cpp"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--spec-draft-n-max", "same-vocabulary", "known bad", "llama-server --help"))


def test_an_unknown_engine_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_engines(["show", "onnxruntim"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "s2d-engines: unknown engine 'onnxruntim': did you mean 'onnxruntime'?" in captured.err


@pytest.mark.e2e
def test_listing_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from s2d.commands.engines_cli import main_engines; main_engines(['list']); "
        "sys.exit(len({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_install_prints_the_commands_that_it_would_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path / "engines"))
    assert main_engines(["install", "ort", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{sys.executable} -m venv {tmp_path / 'engines' / 'onnxruntime'}"
    assert not (tmp_path / "engines").exists()
    assert main_engines(["install", "sglang"]) == 2
    assert "engine 'sglang' is not installed by s2d-engines" in capsys.readouterr().err


def test_convert_writes_what_the_engine_loads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "target.gguf"
    words = ["convert", "--engine", "llama-cpp", "--weights", "q8_0", "ref-target-16", str(out)]
    assert main_engines(words) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert out.read_bytes()[:4] == b"GGUF"
    assert main_engines(words) == 2
    assert "this exists already" in capsys.readouterr().err
