"""No command answers an unknown name with a long list of known names."""

import argparse
import ast
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.engine_metrics.read_engine_metrics import read_engine_metrics
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.errors import MAX_LISTED_NAMES, UnknownName
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.models.find_model import find_draft
from profiler.commands.profile_cli import main_profile
from s2d.commands.engines_cli import main_engines
from s2d.commands.train_cli import main_train
from s2d.model.torch_dtypes import torch_dtype
from tests.calibrate.factories import make_trace, provenance
from tests.test_layering import MODULES
from tests.test_overwriting import commands

MAX_MESSAGE_CHARS = 320
SPECULATED = next((Path(__file__).parent / "data" / "engine_metrics").glob("onnxruntime*.json*"))
Run = Callable[[Path], object]


def trace_of_many_categories(folder: Path) -> str:
    trace = make_trace()
    prompts = tuple(replace(prompt, category=f"kind {number}") for number, prompt in enumerate(trace.header.prompts))
    path = folder / "trace.npz"
    TRACE_FILE.write(path, replace(trace, header=replace(trace.header, prompts=prompts)), provenance())
    return str(path)


def config_of_unknown_architecture(folder: Path) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({"architectures": ["FrogForCausalLM"], "model_type": "frog", "vocab_size": 9}))
    return str(path)


BY_COMMAND: dict[str, Run] = {
    "target": lambda _: main_plan(["--target", "frog-7b"]),
    "architecture": lambda folder: main_plan(["--target", config_of_unknown_architecture(folder)]),
    "device": lambda _: main_plan(["--target", "llama-70b", "--device", "frog"]),
    "category": lambda folder: main_plan(["--trace", trace_of_many_categories(folder), "--category", "frog"]),
    "GPU of the public tables": lambda folder: main_plan(["fit", "--tables", str(folder), "--device", "frog"]),
    "model": lambda folder: main_profile(["--target", "frog", "--draft", "ref-draft", "-o", str(folder / "profile")]),
    "engine": lambda _: main_engines(["show", "frog"]),
    "stage": lambda folder: main_train(["reference", "-o", str(folder / "family"), "--stage", "frog"]),
}
BY_FUNCTION: dict[str, Run] = {
    "draft": lambda _: find_draft("frog"),
    "reference_device": lambda _: replace(KNOWN_HARDWARE[0], reference_device="frog"),
    "dtype": lambda _: torch_dtype("frog"),
    "metrics format": lambda _: read_engine_metrics(SPECULATED, file_format="frog"),
}


def kinds_in_code() -> set[str]:
    """The first argument of every `UnknownName(...)`."""
    calls = [
        node
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == UnknownName.__name__
    ]
    kinds = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    return {str(kind) for kind in kinds}


def check_short(message: str, name: str) -> None:
    quoted = re.findall(r"'([^']+)'", message.replace(name, ""))
    assert len(quoted) <= MAX_LISTED_NAMES + 1, message
    assert len(message) <= MAX_MESSAGE_CHARS, message


def test_every_kind_of_name_has_a_case() -> None:
    assert kinds_in_code() == BY_COMMAND.keys() | BY_FUNCTION.keys()


@pytest.mark.parametrize("kind", BY_COMMAND)
def test_a_command_answers_an_unknown_name_with_one_short_message(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert BY_COMMAND[kind](tmp_path) == 2
    message = capsys.readouterr().err
    assert f"unknown {kind} " in message
    check_short(message.replace(str(tmp_path), ""), "frog")


@pytest.mark.parametrize("kind", BY_FUNCTION)
def test_a_function_answers_an_unknown_name_with_one_short_message(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=f"unknown {kind} 'frog'") as caught:
        BY_FUNCTION[kind](tmp_path)
    check_short(str(caught.value), "frog")


def test_no_command_lists_the_choices_of_a_flag_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: list[str] = []
    real = argparse.ArgumentParser.add_argument

    def add_argument(self: argparse.ArgumentParser, *names: str, **options: object) -> argparse.Action:
        if options.get("choices") and names[0].startswith("--"):
            flags.append(names[0])
        return real(self, *names, **options)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_argument)
    num_checked = 0
    for main, subcommand in commands().values():
        flags.clear()
        main([*subcommand, "--help"])
        capsys.readouterr()
        for flag in dict.fromkeys(flags):
            assert main([*subcommand, flag, "frog"]) == 2
            message = capsys.readouterr().err
            if "unknown option" not in message:
                check_short(message, "frog")
                num_checked += 1
    assert num_checked > 5
