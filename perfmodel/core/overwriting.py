"""Refuses a command whose output would overwrite one of its inputs, before any work.

The argument type `output_file` or `OutputFolder` marks an output. Every other argument that names an existing file or folder
is an input, so a new flag is covered without an entry here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from perfmodel.core.errors import UserInputError

MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "s2d.json",
)
"""The files that commands read in a folder given as an argument."""
_PROSE = "TEXT"
"""The metavar of arguments that are text and never a file name."""


def output_file(text: str) -> Path:
    """The type of an argument that names a file to write."""
    return Path(text)


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The type of an argument that names a folder to write in.

    Args:
        written: glob patterns of the existing files that the command overwrites.
        suffix: appended to the folder's name, if the command writes in a folder of another name.
    """

    written: tuple[str, ...] = ()
    suffix: str = ""

    def __call__(self, text: str) -> Path:
        """The folder, as argparse calls a type."""
        return Path(text)

    def files(self, folder: Path) -> list[Path]:
        """The files that would be overwritten."""
        actual = folder.with_name(folder.name + self.suffix) if self.suffix else folder
        return [file for pattern in self.written for file in actual.glob(pattern)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _PathArgument:
    """A path that an argument names or could name."""

    flag: str
    path: Path
    argument_type: object
    """`type` of the argument in its parser."""

    def __str__(self) -> str:
        return f"{self.flag} {str(self.path)!r}"

    @property
    def is_output(self) -> bool:
        return self.argument_type is output_file or isinstance(self.argument_type, OutputFolder)

    @property
    def files(self) -> list[Path]:
        """The files that an output overwrites, or that the command reads for an input."""
        if isinstance(self.argument_type, OutputFolder):
            return self.argument_type.files(self.path)
        try:
            is_folder = not self.is_output and self.path.is_dir()
        except (OSError, ValueError):  # not a path: too long, or with a null character
            return []
        return [file for pattern in MODEL_FILES for file in self.path.glob(pattern)] if is_folder else [self.path]


def check_outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse an output that is also an input, even through links, or that is also another output.

    Args:
        parser: of the command.
        args: the parsed arguments.

    Raises:
        UserInputError: one of these; names both arguments.
    """
    arguments = [argument for action in _actions(parser, args) for argument in _path_arguments(action, args)]
    outputs = [argument for argument in arguments if argument.is_output]
    inputs = [argument for argument in arguments if not argument.is_output]
    for output in outputs:
        for other in inputs:
            if any(_is_same(written, read) for written in output.files for read in other.files):
                raise UserInputError(
                    f"{output} would overwrite {other}, which this command reads: expected another path. Give another path "
                    f"with {output.flag}."
                )
    output_files = [output for output in outputs if output.argument_type is output_file]
    for first, second in combinations(output_files, 2):
        if first.path.resolve() == second.path.resolve() or _is_same(first.path, second.path):
            raise UserInputError(
                f"{first} and {second} are the same file: expected two files. Give another path with {second.flag}."
            )


def _actions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[argparse.Action]:
    """All arguments of a parser and of the chosen subparser, whose arguments replace those of the same name."""
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:  # argparse has no public list of them
        if not isinstance(action, argparse._SubParsersAction):
            actions[action.dest] = action
        elif (subcommand := getattr(args, action.dest)) is not None:
            actions |= {chosen.dest: chosen for chosen in _actions(action.choices[subcommand], args)}
    return list(actions.values())


def _path_arguments(action: argparse.Action, args: argparse.Namespace) -> Iterator[_PathArgument]:
    """Every path that an argument could name: its value, and the parts of a value with commas."""
    if action.choices is not None or action.metavar == _PROSE:
        return
    value = getattr(args, action.dest, None)
    flag = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, Path):
            yield _PathArgument(flag=flag, path=item, argument_type=action.type)
        elif isinstance(item, str):
            for part in dict.fromkeys([item, *item.split(",")]):
                if part:
                    yield _PathArgument(flag=flag, path=Path(part), argument_type=action.type)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # one of them does not exist, or is not a valid path
        return False
