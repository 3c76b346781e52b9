"""Read the prompts and training texts of a command, and print a summary of each file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perfmodel.acceptance.splits import Split
from perfmodel.core.console import print_err
from perfmodel.core.disk import PathLike
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompt_file, read_text_file
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Prompt, prompts_from_texts


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """The prompts of a request, and how to choose among those of a file."""

    prompts: PathLike | Sequence[str | Prompt] | None
    """A prompt file, or the prompts themselves, which are all used; None takes the default file."""
    default: Path
    """The default file, such as the prompts of the reference family."""
    read_as: ReadAs
    split: Split
    """The half of the file to use."""
    num_prompts: int
    """The maximum number of prompts from the file."""

    def load(self, *, first_turns: bool) -> list[Prompt]:
        """Read and choose the prompts.

        Args:
            first_turns: whether only the first turns are used.

        Raises:
            UserInputError: the file cannot be read, the half is empty, or there are no prompts.
        """
        if self.prompts is None or isinstance(self.prompts, str | os.PathLike):
            path = None if self.prompts is None else Path(self.prompts)
            prompts = load_prompts(path, self.read_as, self.default, first_turns=first_turns)
            return choose_prompts(prompts, self.split, self.num_prompts)
        return prompts_from_texts(self.prompts)


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
