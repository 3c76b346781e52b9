"""Read the prompts and training texts of a command, and print a summary of each file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perfmodel.core.console import print_err
from s2d.prompt_files.read import read_prompt_file, read_text_file
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Prompt


def load_prompts(path: Path | None, options: ReadAs, default: Path, *, first_turns: bool) -> tuple[Prompt, ...]:
    """Read the prompts of a file and print a summary of it on stderr.

    Args:
        path: the prompt file; None reads the default.
        options: how to read it.
        default: the default file. Its summary is not printed.
        first_turns: whether only the first turns are used.

    Raises:
        BadFile: the file cannot be read.
    """
    file = read_prompt_file(path or default, options)
    if path is not None:
        print_err(file.summary(first_turns=first_turns))
    return file.prompts


def load_texts(paths: Sequence[Path], options: ReadAs) -> list[str]:
    """Read the training texts of all files and print a summary of each on stderr.

    Raises:
        BadFile: a file cannot be read.
    """
    texts: list[str] = []
    for path in paths:
        file = read_text_file(path, options)
        print_err(file.summary)
        texts += file.texts
    return texts
