"""The help of every command and subcommand has a purpose and an example that parses."""

import argparse
import shlex

import pytest

from tests.test_overwriting import commands

PARSED = 7


def test_every_help_has_a_purpose_and_an_example_that_parses(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *args: object) -> argparse.Namespace:
        parse_args(parser, *args)
        raise SystemExit(PARSED)

    wrong = []
    for command, (main, subcommand) in commands().items():
        assert main([*subcommand, "--help"]) == 0
        shown, _, example = capsys.readouterr().out.partition("\nexample:\n")
        program, *argv = shlex.split(example)
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
            is_parsed = main(argv) == PARSED
        usage, *paragraphs = shown.split("\n\n")
        has_purpose = not paragraphs[0].startswith(("options:", "positional arguments:"))
        if not (" ".join((program, *argv)).startswith(command) and is_parsed and has_purpose and usage.startswith("usage: ")):
            wrong.append(f"{command}: {example}{capsys.readouterr().err}")
    assert not wrong
