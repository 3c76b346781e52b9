"""The prompts and training texts that a command is given, read before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perfmodel.core.console import print_err
from s2d.prompt_files.read import read_prompt_file, read_text_file
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Prompt


def load_prompts(path: Path | None, how: ReadAs, default: Path, *, first_turns: bool) -> tuple[Prompt, ...]:
    """The prompts of a file, after a line on stderr that tells what they were read as.

    Args:
        path: of the file, as `--prompts` gives it.
        how: to read it.
        default: the file to read where none is given; of this one nothing is told.
        first_turns: whether the command uses the first turns of questions only.

    Raises:
        BadFile: the file cannot be read.
    """
    file = read_prompt_file(path or default, how)
    if path is not None:
        print_err(file.understood(first_turns=first_turns))
    return file.prompts


def load_texts(paths: Sequence[Path], how: ReadAs) -> list[str]:
    """The training texts of all files, after a line for each that tells what it was read as.

    Raises:
        BadFile: a file cannot be read.
    """
    texts: list[str] = []
    for path in paths:
        file = read_text_file(path, how)
        print_err(file.understood)
        texts += file.texts
    return texts
