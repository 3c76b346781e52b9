"""The prompts and training texts that a command's flags name, read before anything heavy is imported."""

from __future__ import annotations

import argparse
from pathlib import Path

from perfmodel.console import print_err
from s2d.conversation import Prompt
from s2d.prompt_files.read import read_prompt_file, read_text_file
from s2d.prompt_files.read_as import read_as


def given_prompts(args: argparse.Namespace, default: Path, *, first_turns: bool) -> tuple[Prompt, ...]:
    """The prompts of `--prompts`, with a line that tells what they were read as; without the flag, those of another file.

    Args:
        args: of a parser with `--prompts` and `add_read_flags`.
        default: the other file, of which nothing is told.
        first_turns: whether the command uses the first turns of questions only.

    Raises:
        BadFile: the file cannot be read.
    """
    file = read_prompt_file(args.prompts or default, read_as(args, "prompt"))
    if args.prompts:
        print_err(file.understood(first_turns=first_turns))
    return file.prompts


def given_texts(args: argparse.Namespace) -> list[str]:
    """The texts of all files of `--text`, with a line for each that tells what it was read as.

    Raises:
        BadFile: a file cannot be read.
    """
    texts: list[str] = []
    for path in args.text:
        file = read_text_file(path, read_as(args, "text"))
        print_err(file.understood)
        texts += file.texts
    return texts
