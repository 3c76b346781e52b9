"""What `s2d-profile` checks and reads before anything heavy is imported: its flags and its prompts."""

from __future__ import annotations

import argparse
from pathlib import Path

from perfmodel.core.errors import UserInputError
from s2d.loading.model_folder import FAMILY_PROMPTS, check_model_names, is_reference_model
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.load_prompts import load_prompts
from s2d.prompt_files.read_as import read_as
from s2d.prompts.conversation import Prompt, check_texts

TRACE_NAME, PARTIAL_TRACE_NAME = "trace.npz", "trace.partial.npz"


def read_inputs(args: argparse.Namespace) -> tuple[Prompt, ...]:
    """The prompts to profile on, later turns left out, which would wait for answers.

    Raises:
        UserInputError: a flag is out of range, a file cannot be read, or there is no such model.
    """
    _check_flags(args)
    check_model_names(args.target, args.draft)
    default = FAMILY_PROMPTS if args.prompts else family_prompts(args.target)
    given = load_prompts(args.prompts, read_as(args, "prompt"), default, first_turns=True)
    chosen = choose_prompts(given, args.split, args.num_prompts)
    if not args.chat:
        check_texts(chosen)
    return tuple(prompt.first_turn for prompt in chosen)


def family_prompts(target: str) -> Path:
    """The prompts in the box, for the models in the box, by name or by folder.

    Raises:
        UserInputError: it is another model.
    """
    if is_reference_model(target):
        return FAMILY_PROMPTS
    raise UserInputError(f"target {target!r} is not of the reference family, so its prompts must be given: --prompts FILE")


def _check_flags(args: argparse.Namespace) -> None:
    counts = {
        "--num-prompts": args.num_prompts,
        "--max-new-tokens": args.max_new_tokens,
        "--draft-cap": args.draft_cap,
        "--threads": args.threads,
    }
    for name, value in counts.items():
        if value < 1:
            raise UserInputError(f"{name} {value}: expected at least 1")
    if args.off_path < 0:
        raise UserInputError(f"--off-path {args.off_path}: expected 0 mistakes or more")
    if args.budget < 0:
        raise UserInputError(f"--budget {args.budget:g}: expected 0 seconds or more")
