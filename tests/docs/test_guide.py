"""Every command of the guide parses, every engine has a page, and the page of one engine runs as written."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfmodel.engines.known_engines import ENGINES
from s2d.engines.environments import is_installed
from tests.test_overwriting import commands

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(GUIDE.glob("*.md"))]
PARSED = 7
PAGE_LINES = 110
NOT_RUN = "Generated, not run here."
SHORTER = {"s2d-profile": "--num-prompts 3 --max-new-tokens 32", "s2d-profile engine": "--repeats 1"}
"""Flags that the test adds to the commands of a page, so that it takes a minute."""
SCRIPT = "#!{python}\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n"


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def simple_commands(block: str) -> Iterator[list[str]]:
    """The words of every command, without variables that are set for it alone."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|()<>"):
                yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def engine_page(engine: str) -> Path:
    return GUIDE / f"serve-with-{engine.replace('.', '-')}.md"


def test_every_command_of_the_guide_parses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mains = {command.split()[0]: main for command, (main, _) in commands().items()}
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *args: object) -> argparse.Namespace:
        parse_args(parser, *args)
        raise SystemExit(PARSED)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    wrong, num_parsed = [], 0
    for page in PAGES:
        for words in (words for block in shell_blocks(page) for words in simple_commands(block)):
            if not words or words[0] not in mains:
                continue
            num_parsed += 1
            if mains[words[0]](words[1:]) != PARSED:
                wrong.append(f"{page.name}: {shlex.join(words)}: {capsys.readouterr().err}")
    assert not wrong
    assert num_parsed > 80


def test_every_engine_has_a_page_that_states_whether_it_was_run() -> None:
    overview = (GUIDE / "plan-for-an-engine.md").read_text(encoding="utf-8")
    wrong = []
    for engine in (engine for engine in ENGINES.values() if not engine.runs_exits):
        page = engine_page(engine.name)
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        is_stated = (NOT_RUN in text) == (engine.run_here is None) and f"--engine {engine.name}" in text
        if not is_stated or f"({page.name})" not in overview or len(text.splitlines()) > PAGE_LINES:
            wrong.append(page.name)
    assert not wrong


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if engine.run_here is None])
def test_a_page_of_an_engine_that_was_not_run_names_the_documented_version(engine: str) -> None:
    assert ENGINES[engine].versions in engine_page(engine).read_text(encoding="utf-8").replace("\n", " ")


def shortened(block: str) -> str:
    """The commands of a block with fewer prompts and tokens."""
    for command, flags in SHORTER.items():
        block = re.sub(rf"^{command}(?= )(.*)$", rf"\g<0> {flags}", block, flags=re.MULTILINE)
    return block


@pytest.mark.e2e
def test_the_page_of_onnx_runtime_runs_as_written(tmp_path: Path) -> None:
    if not is_installed("onnxruntime"):
        pytest.skip("onnxruntime is not in $S2D_ENGINES: s2d-engines install onnxruntime")
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    for script, entry_point in scripts.items():
        module, _, name = entry_point.partition(":")
        (programs / script).write_text(SCRIPT.format(python=sys.executable, module=module, name=name), encoding="utf-8")
        (programs / script).chmod(0o755)
    [until_export, serve, smoke_test, compare] = shell_blocks(engine_page("onnxruntime"))
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(*blocks: str) -> str:
        command = ["bash", "-euo", "pipefail", "-c", shortened("\n".join(blocks))]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run("\n".join(line for line in until_export.splitlines() if not line.startswith("s2d-engines install")))
    assert "PASSED" in run(serve, smoke_test)
    assert "acceptance" in run(compare)
