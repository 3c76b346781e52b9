"""Commands: exit codes, messages, tables and progress."""

import argparse
import io
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perfmodel.core.console import (
    Progress,
    add_common_flags,
    keep_progress,
    make_parser,
    print_err,
    print_out,
    run_command,
    table,
    without_flag,
)
from perfmodel.core.errors import UnknownName

Command = Callable[[argparse.Namespace], int]


def raising(error: BaseException) -> Command:
    def command(_: argparse.Namespace) -> int:
        raise error

    return command


def run(command: Command, *argv: str) -> int:
    parser = make_parser("s2d-test", "Test.", "s2d-test --json")
    add_common_flags(parser, result="plan")
    return run_command(parser, argv, command)


def test_a_command_returns_its_exit_code_and_prints_to_both_streams(capsys: pytest.CaptureFixture[str]) -> None:
    def command(args: argparse.Namespace) -> int:
        print_out(f"{args.json} {args.output}")
        print_err("note")
        return 0

    assert run(command, "--json", "-o", "a.json") == 0
    assert capsys.readouterr() == ("True a.json\n", "note\n")


def test_log_records_are_notes_and_warnings_and_notes_of_other_packages_need_verbose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(_: argparse.Namespace) -> int:
        for name in ("calibrate.inputs.target", "somebody"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
                logging.getLogger(name).log(level, "%s at %d", name, level)
        return 0

    assert run(command) == 0
    ours = [
        "note: calibrate.inputs.target at 20",
        "warning: calibrate.inputs.target at 30",
        "warning: calibrate.inputs.target at 40",
    ]
    assert capsys.readouterr().err.splitlines() == [*ours, "warning: somebody at 30", "warning: somebody at 40"]
    assert run(command, "-v") == 0
    more = ["note: calibrate.inputs.target at 10", *ours, "note: somebody at 20"]
    assert capsys.readouterr().err.splitlines() == [*more, "warning: somebody at 30", "warning: somebody at 40"]


def test_help_ends_with_code_zero_and_shows_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(AssertionError()), "--help") == 0
    assert capsys.readouterr().out.endswith("example:\n  s2d-test --json\n")


def test_an_unknown_option_is_one_line_and_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    for option, hint in (("--jsn", ": did you mean '--json'?"), ("--jsn=1", ": did you mean '--json'?"), ("--frog", ".")):
        assert run(raising(AssertionError()), option) == 2
        message = f"s2d-test: unknown option {option.removesuffix('=1')!r}{hint} See s2d-test --help.\n"
        assert capsys.readouterr().err == message
    assert run(raising(AssertionError()), "-z") == 2
    assert capsys.readouterr().err == "s2d-test: unrecognized arguments: -z. See s2d-test --help.\n"


def test_words_after_a_double_dash_are_not_options() -> None:
    parser = make_parser("s2d-test", "Test.", "s2d-test -- --a")
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["--", "--frog"]).words == ["--frog"]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("q4-k-m", "did you mean 'q4_0' or 'q4_k_m'? s2d-test --help lists all 7"),
        ("float", "s2d-test --help lists all 7"),
    ],
)
def test_a_long_list_of_choices_is_not_printed(capsys: pytest.CaptureFixture[str], value: str, hint: str) -> None:
    parser = make_parser("s2d-test", "Test.", "s2d-test --dtype fp32")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16", "int8", "q4_0", "q4_k_m", "q6_k"))
    assert run_command(parser, ["--dtype", value], raising(AssertionError())) == 2
    message = f"s2d-test: argument --dtype: unknown value {value!r}: {hint}.\n"
    assert capsys.readouterr().err == message


def test_wrong_input_is_one_message_with_its_notes_and_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    error = UnknownName("device", "h100x", ["h100"], listed_in="docs/reference/hardware.md")
    error.add_note("while reading --profile cpu.json")
    assert run(raising(error)) == 2
    assert capsys.readouterr() == (
        "",
        "s2d-test: unknown device 'h100x': did you mean 'h100'? docs/reference/hardware.md lists all 1.\n"
        "while reading --profile cpu.json\n",
    )


def test_a_fault_of_s2d_is_named_as_such_and_shows_its_traceback_with_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    message = "s2d-test: KeyError: 'x'\nThis is a fault of s2d: please run the command again with -v and report the output.\n"
    assert run(raising(KeyError("x"))) == 1
    assert capsys.readouterr().err == message
    assert run(raising(KeyError("x")), "-v") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert printed.endswith(message)


def test_an_interrupt_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "s2d-test: interrupted\n"


def test_an_interrupt_of_long_work_names_the_partial_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"

    def command(_: argparse.Namespace) -> int:
        with keep_progress(path):
            path.write_text("{}")
            raise KeyboardInterrupt

    assert run(command) == 130
    message = f"s2d-test: interrupted: the partial result is in {str(path)!r}. Repeat the command to continue.\n"
    assert capsys.readouterr().err == message


def test_an_interrupt_before_the_first_result_names_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: argparse.Namespace) -> int:
        with keep_progress(tmp_path / "profile.json"):
            raise KeyboardInterrupt

    assert run(command) == 130
    assert capsys.readouterr().err == "s2d-test: interrupted: there is no partial result.\n"


def test_a_missing_package_names_the_extra_that_installs_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))) == 2
    expected = "s2d-test: this needs torch, which is not installed: pip install 's2d[run]'\n"
    assert capsys.readouterr().err == expected


def test_a_missing_module_of_s2d_is_a_fault_of_s2d(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ModuleNotFoundError("No module named 's2d.x'", name="s2d.x"))) == 1
    assert "This is a fault of s2d" in capsys.readouterr().err


def test_a_full_disk_is_not_a_fault_of_s2d(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(OSError(28, "No space left on device", "a.bin"))) == 2
    assert "no space left to write 'a.bin'" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    script = (
        "import sys; from perfmodel.core.console import *\n"
        "def command(args):\n    [print_out('x' * 1000) for _ in range(1000)]\n    return 0\n"
        "parser = make_parser('s2d-test', '', '')\nadd_common_flags(parser, result='plan')\n"
        "sys.exit(run_command(parser, [], command))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.parametrize("given", [["-o", "a b"], ["-oa"], ["--output", "-x"], ["--output=a"], ["-o", "a", "--output=b"]])
def test_a_flag_is_removed_from_a_command_in_every_form(given: list[str]) -> None:
    others = ["s2d-plan", "--output-tokens", "9", "--json"]
    assert without_flag([*others, *given], "-o", "--output") == others
    assert without_flag([*others[:1], *given, *others[1:]], "-o", "--output") == others


def test_a_table_aligns_words_left_and_numbers_right() -> None:
    text = table([["exit 6", "0.71"], ["exit 12", "10.25"]], headers=["exit", "agreed"])
    assert text == "exit     agreed\n-------  ------\nexit 6     0.71\nexit 12   10.25"


def test_a_table_takes_an_alignment_per_column_and_leaves_no_spaces_at_line_ends() -> None:
    assert table([["1", "b"]], headers=["n", "name"], align="rl") == "n  name\n-  ----\n1  b"
    assert table([], headers=["a", "b"]) == "a  b\n-  -"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress_text(stream: io.StringIO, seconds_per_step: float) -> str:
    now_s = [0.0]
    with Progress("latency", 4, stream=stream, clock=lambda: now_s[0]) as progress:
        for step in range(4):
            now_s[0] += seconds_per_step
            progress.step(f"step {step}")
    return stream.getvalue()


def test_progress_prints_a_line_every_ten_seconds_without_a_terminal() -> None:
    assert progress_text(io.StringIO(), 6.0) == (
        "latency  2/4  50.0 %  12 s left  step 1\nlatency  4/4  100.0 %  done in 24 s  step 3\n"
    )


def test_progress_redraws_one_line_on_a_terminal() -> None:
    text = progress_text(Terminal(), 6.0)
    assert text.count("\n") == 1
    drawn = text.rstrip("\n").split("\r")[1:]
    assert drawn[0] == "latency  1/4  25.0 %  18 s left  step 0"
    assert drawn[3] == "latency  4/4  100.0 %  done in 24 s  step 3"


def test_preparation_before_the_first_unit_does_not_count() -> None:
    now_s, stream = [0.0], io.StringIO()
    progress = Progress("engine", 2, stream=stream, clock=lambda: now_s[0])
    now_s[0] = 1000.0
    progress.restart()
    now_s[0] = 1012.0
    progress.step()
    progress.restart()  # of no effect after a unit
    assert stream.getvalue() == "engine  1/2  50.0 %  12 s left\n"


def test_core_loads_no_third_party_packages() -> None:
    script = (
        "import sys\n"
        "from perfmodel.core import codec, console, errors, files, provenance, units\n"
        "sys.exit(', '.join({'numpy', 'torch', 'scipy', 'rich', 'logging', 'zipfile', 'subprocess'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stderr == "\n"
