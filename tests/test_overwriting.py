"""No command overwrites its own input: checks every output of every command against every possible input."""

import argparse
import os
import tomllib
from collections.abc import Callable, Sequence
from copy import copy
from importlib import import_module
from pathlib import Path

import pytest

from perfmodel.core.console import add_verbose_flag, make_parser, run_command
from perfmodel.core.overwriting import MODEL_FILES, OutputFolder, check_outputs, output_file
from profiler.commands.profile_cli import main_profile
from s2d.commands.run_cli import main_run
from s2d.commands.train_cli import main_train
from s2d.loading.model_folder import FAMILY_FOLDER
from tests.s2d.prompts.kinds_of_tokenizers import tokenizer_of
from tests.stubs import TinySpec, tiny_llama

ROOT = Path(__file__).parent.parent
SUBCOMMANDS = {
    "s2d-plan": ((), ("export",), ("validate",), ("design",), ("fit",)),
    "s2d-compare": ((),),
    "s2d-profile": ((), ("latency",), ("acceptance",), ("law",), ("engine",)),
    "s2d-run": ((),),
    "s2d-train": (("draft",), ("calibrate",), ("exits",), ("trim",), ("reference",)),
    "s2d-engines": (("list",), ("show",), ("install",), ("convert",)),
}
PATHS = {
    "s2d-plan": "--trace --profile --fit > -o",
    "s2d-plan export": "--plan --trace --prompts > -o",
    "s2d-plan validate": "> -o",
    "s2d-plan design": ">",
    "s2d-plan fit": "FILE --tables > -o",
    "s2d-compare": "--plan --report --engine-metrics --profile --fit --plain-metrics > -o",
    "s2d-profile": "--prompts > -o",
    "s2d-profile latency": "--prompts > -o",
    "s2d-profile acceptance": "--prompts > -o",
    "s2d-profile law": "> -o",
    "s2d-profile engine": "--plan --prompts > --work -o",
    "s2d-run": "--plan --prompts > --outputs -o",
    "s2d-train draft": "--text > -o",
    "s2d-train exits": ">",
    "s2d-train calibrate": "--prompts >",
    "s2d-train trim": "--text > -o",
    "s2d-train reference": "> -o --work",
    "s2d-engines list": ">",
    "s2d-engines show": ">",
    "s2d-engines install": "> --folder",
    "s2d-engines convert": "> OUT",
}
"""The path arguments of every command: read > written."""
CONTENT = "worth keeping"
Main = Callable[[Sequence[str]], int]


def commands() -> dict[str, tuple[Main, tuple[str, ...]]]:
    """Every installed command and its subcommand."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert scripts.keys() == SUBCOMMANDS.keys()
    entries = {}
    for script, entry_point in scripts.items():
        module, _, name = entry_point.partition(":")
        for subcommand in SUBCOMMANDS[script]:
            entries[" ".join((script, *subcommand))] = (getattr(import_module(module), name), subcommand)
    return entries


def parser_actions(command: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.Action]:
    """The arguments of a command's parser."""
    main, subcommand = commands()[command]
    parsers: list[argparse.ArgumentParser] = []
    real = argparse.ArgumentParser.parse_args

    def spy(parser: argparse.ArgumentParser, *args: object) -> argparse.Namespace:
        parsers.append(parser)
        return real(parser, *args)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", spy)
        assert main([*subcommand, "--help"]) == 0
    [parser] = parsers
    actions = []
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            actions.append(action)
            continue
        known = {name for names in SUBCOMMANDS[parser.prog] for name in names}
        assert set(action.choices) == known, "a subcommand is missing in SUBCOMMANDS"
        if subcommand:
            return action.choices[subcommand[0]]._actions
    return actions


def is_output(action: argparse.Action) -> bool:
    return action.type is output_file or isinstance(action.type, OutputFolder)


def may_be_a_file(action: argparse.Action) -> bool:
    is_named = action.type in (Path, None) and action.choices is None and action.nargs != 0
    return is_named and action.metavar != "TEXT"


def label(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def any_value(action: argparse.Action) -> str:
    if action.choices:
        return str(next(iter(action.choices)))
    for value in ("1", "1,2", "0.5"):
        try:
            action.type(value) if callable(action.type) else value
        except (argparse.ArgumentTypeError, ValueError):
            continue
        return value
    raise AssertionError(f"{label(action)}: give a value that it accepts")


def given(action: argparse.Action, value: str) -> list[str]:
    values = [value] * (action.nargs if isinstance(action.nargs, int) else 1)
    return [*action.option_strings[:1], *values]


def command_line(actions: Sequence[argparse.Action], chosen: dict[str, str]) -> list[str]:
    """A command line with the chosen values, and any value for other required arguments."""
    argv: list[str] = []
    for action in actions:
        if label(action) in chosen:
            argv += given(action, chosen[label(action)])
        elif action.required and action.option_strings:
            argv += given(action, any_value(action))
    return argv


def test_every_path_argument_is_known_as_read_or_written(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    paths = {}
    for command in commands():
        actions = parser_actions(command, monkeypatch)
        written = [label(action) for action in actions if is_output(action)]
        read = [label(action) for action in actions if action.type is Path]
        paths[command] = " ".join([*read, ">", *written])
        stray = [label(action) for action in actions if action.dest in ("output", "outputs", "work") and not is_output(action)]
        assert not stray, f"{command}: {stray} are written: their type must be output_file or OutputFolder"
    assert paths == PATHS


@pytest.mark.parametrize("link", ["the file itself", "a symbolic link", "a hard link"])
def test_no_command_overwrites_a_file_that_it_reads(link: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, num_cases = [], 0
    for command, (main, subcommand) in commands().items():
        actions = parser_actions(command, monkeypatch)
        for output in filter(is_output, actions):
            for read in filter(may_be_a_file, actions):
                if output.type is not output_file and not output.type.written:
                    continue  # a new folder
                folder = tmp_path / f"case-{num_cases}"
                chosen, source = chosen_names(output, read, folder, link)
                before = sorted(folder.rglob("*"))
                code = main([*subcommand, *command_line(actions, chosen)])
                message = capsys.readouterr().err
                is_unchanged = source.read_text() == CONTENT and sorted(folder.rglob("*")) == before
                num_cases += 1
                if not (code == 2 and is_unchanged and f"would overwrite {label(read)}" in message):
                    wrong.append(f"{command} {label(output)} = {label(read)}: {code}, {message}")
    assert not wrong
    assert num_cases > 20


def chosen_names(output: argparse.Action, read: argparse.Action, case_folder: Path, link: str) -> tuple[dict[str, str], Path]:
    """The names of an input and of an output that would overwrite it, and the file of the input."""
    case_folder.mkdir()
    source, name = case_folder / "input.json", case_folder / "input.json"
    if isinstance(output.type, OutputFolder):
        folder = case_folder / f"out{output.type.suffix}"
        folder.mkdir()
        source = name = folder / output.type.written[0].replace("*", "x")
    source.write_text(CONTENT)
    if link != "the file itself":
        name = case_folder / "link.json"
        name.symlink_to(source) if link == "a symbolic link" else os.link(source, name)
    written = case_folder / "out" if isinstance(output.type, OutputFolder) else source
    return {label(output): str(written), label(read): str(name)}, source


def folder_command(*argv: str) -> int:
    parser = make_parser("s2d-test", "", "")
    parser.add_argument("--target")
    parser.add_argument("--targets")
    parser.add_argument("--prompt", metavar="TEXT")
    parser.add_argument("-o", type=output_file)
    parser.add_argument("--outputs", type=output_file)
    add_verbose_flag(parser)
    return run_command(parser, argv, lambda args: 0)


@pytest.mark.parametrize("name", [pattern.replace("*", "x") for pattern in MODEL_FILES])
def test_a_file_of_a_model_folder_that_is_read_is_not_overwritten(name: str, tmp_path: Path, capsys) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(CONTENT)
    assert folder_command("--target", str(tmp_path), "-o", str(tmp_path / name)) == 2
    assert f"s2d-test: -o {str(tmp_path / name)!r} would overwrite --target {str(tmp_path)!r}" in capsys.readouterr().err
    (tmp_path / "report.json").touch()
    assert folder_command("--target", str(tmp_path), "-o", str(tmp_path / "report.json")) == 0


def test_every_file_of_the_shipped_models_counts_as_read() -> None:
    for folder in (FAMILY_FOLDER / "draft", FAMILY_FOLDER / "target-16"):
        assert {file for pattern in MODEL_FILES for file in folder.glob(pattern)} == set(folder.iterdir())


def test_every_model_file_that_transformers_writes_counts_as_read(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama_2")
    tiny_llama(TinySpec(vocab_size=len(tokenizer))).save_pretrained(tmp_path, max_shard_size="20KB")
    with_templates = copy(tokenizer)
    with_templates.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    with_templates.save_pretrained(tmp_path)
    covered = {file for pattern in MODEL_FILES for file in tmp_path.glob(pattern)}
    written = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert {"chat_template.jinja", "tool_use.jinja", "model.safetensors.index.json"} < {file.name for file in written}
    assert covered == written


def test_every_part_of_a_comma_list_is_read_and_text_is_not_a_file(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").touch()
    assert folder_command("--targets", "b.json,a.json", "-o", "a.json") == 2
    assert folder_command("--prompt", "a.json", "-o", "a.json") == 0
    assert folder_command("--target", "a.json", "-o", "b.json") == 0


def test_two_outputs_must_be_different_files(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_command("-o", "a.json", "--outputs", "./a.json") == 2
    assert (
        "-o 'a.json' and --outputs 'a.json' are the same file: expected two files. Give another path" in capsys.readouterr().err
    )
    Path("a.json").touch()
    os.link("a.json", "b.json")
    assert folder_command("-o", "a.json", "--outputs", "b.json") == 2
    assert folder_command("-o", "a.json", "--outputs", "c.json") == 0
    assert main_run(["--plan", "plan.json", "--outputs", "x.json", "-o", "x.json"]) == 2


def test_prompts_may_be_in_the_folder_of_a_profile(tmp_path: Path, capsys) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.touch()
    assert main_profile(["--target", "nowhere", "--draft", "nowhere", "--prompts", str(prompts), "-o", str(tmp_path)]) == 2
    assert "would overwrite" not in capsys.readouterr().err
    assert main_train(["trim", "--draft", "nowhere", "--text", str(prompts), "--tokens", "9", "-o", str(tmp_path / "new")]) == 2
    assert "would overwrite" not in capsys.readouterr().err


def test_a_value_that_cannot_be_a_path_is_ignored() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target")
    parser.add_argument("-o", type=output_file)
    check_outputs(parser, parser.parse_args(["--target", "a\0b", "-o", "x"]))
    check_outputs(parser, parser.parse_args(["--target", "x" * 5000, "-o", "x"]))
