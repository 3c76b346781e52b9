"""No command overwrites what it reads: outputs are held against all inputs before any work.

Outputs are marked by the type of their argument, `output_file` or `OutputFolder`. Every other argument that names an existing
file or folder is an input, so that a new flag is covered without being listed anywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
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
"""What is read of a folder that an argument names."""
_PROSE = "TEXT"
"""The metavar of arguments that are text and never a file's name."""


def output_file(text: str) -> Path:
    """The type of an argument that names a file to write."""
    return Path(text)


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The type of an argument that names a folder to write in.

    Args:
        written: glob patterns of the files that are written there over those that are.
        suffix: of the folder that they are written in, where that has another name.
    """

    written: tuple[str, ...] = ()
    suffix: str = ""

    def __call__(self, text: str) -> Path:
        """The folder, as argparse asks for it."""
        return Path(text)

    def files(self, folder: Path) -> list[Path]:
        """The files that would be overwritten."""
        place = folder.with_name(folder.name + self.suffix) if self.suffix else folder
        return [file for pattern in self.written for file in place.glob(pattern)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """What one argument names."""

    flag: str
    path: Path
    kind: object
    """The argument's type."""

    def __str__(self) -> str:
        return f"{self.flag} {str(self.path)!r}"

    @property
    def is_output(self) -> bool:
        return self.kind is output_file or isinstance(self.kind, OutputFolder)


def check_outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse an output that is an input, through links too, or another output.

    Args:
        parser: of the command.
        args: what it parsed.

    Raises:
        UserInputError: names both.
    """
    named = [one for action in _actions(parser, args) for one in _named(action, args)]
    outputs, inputs = [one for one in named if one.is_output], [one for one in named if not one.is_output]
    for output in outputs:
        for given in inputs:
            if any(_is_same(file, read) for file in _written(output) for read in _read(given)):
                raise UserInputError(
                    f"{output} would overwrite {given}, which this command reads: expected another place. Give another one "
                    f"with {output.flag}."
                )
    files = [one for one in outputs if one.kind is output_file]
    for place, output in enumerate(files):
        for other in files[:place]:
            if output.path.resolve() == other.path.resolve() or _is_same(output.path, other.path):
                raise UserInputError(f"{other} and {output} are one file: expected two. Give another one with {output.flag}.")


def _actions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[argparse.Action]:
    """All arguments of a parser and of the chosen subparser, whose arguments replace those of the same name."""
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:  # argparse has no public list of them
        if not isinstance(action, argparse._SubParsersAction):
            actions[action.dest] = action
        elif (verb := getattr(args, action.dest)) is not None:
            actions |= {chosen.dest: chosen for chosen in _actions(action.choices[verb], args)}
    return list(actions.values())


def _named(action: argparse.Action, args: argparse.Namespace) -> Iterator[_Named]:
    """What an argument could name: itself, and the parts of a list with commas."""
    if action.choices is not None or action.metavar == _PROSE:
        return
    value = getattr(args, action.dest, None)
    flag = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, Path):
            yield _Named(flag=flag, path=one, kind=action.type)
        elif isinstance(one, str):
            for part in dict.fromkeys([one, *one.split(",")]):
                if part:
                    yield _Named(flag=flag, path=Path(part), kind=action.type)


def _written(output: _Named) -> list[Path]:
    return output.kind.files(output.path) if isinstance(output.kind, OutputFolder) else [output.path]


def _read(given: _Named) -> list[Path]:
    """The files that an input stands for: itself, or what is read of a folder."""
    try:
        is_folder = given.path.is_dir()
    except (OSError, ValueError):  # no path: too long, or with a null character
        return []
    return [file for pattern in MODEL_FILES for file in given.path.glob(pattern)] if is_folder else [given.path]


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them is not there, or no path
        return False
