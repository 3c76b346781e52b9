"""`s2d-run`: parse the flags, then import what does the work."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from perfmodel.acceptance.splits import SPLITS
from perfmodel.core.console import (
    EXIT_ANSWERED,
    add_common_flags,
    make_parser,
    print_err,
)
from perfmodel.core.lock import locked_file
from perfmodel.core.overwriting import output_file
from perfmodel.core.torchrun import num_processes, torchrun_command
from s2d.commands.arguments import add_special_tokens_flag, positive, stop_string
from s2d.parallel.run_shared import run_shared
from s2d.prompt_files.read_as import add_read_flags
from s2d.running.run_inputs import read_run_inputs

if TYPE_CHECKING:
    from s2d.parallel.ranks import Ranks

RUN = "s2d-run"
DEFAULT_NUM_PROMPTS = 4


def main_run(argv: Sequence[str] | None = None) -> int:
    """`s2d-run`: execute a plan, stream its text, and put measured beside predicted."""
    command = torchrun_command((RUN, *(sys.argv[1:] if argv is None else argv)), num_processes())
    return run_shared(run_parser(), argv, partial(_run, command=command))


def run_parser() -> argparse.ArgumentParser:
    description = "Execute a plan: decode prompts with its draft and policy, and put measured beside predicted."
    parser = make_parser(RUN, description, "s2d-run --plan plan.json --check -o report.json")
    add = parser.add_argument
    add("--plan", type=Path, metavar="FILE", help="the plan to run, made by s2d-plan")
    add("--target", metavar="DIR", help="folder of the target (default: the plan's, from the reference family)")
    add("--draft", metavar="DIR", help="folder of the draft (default: the plan's, from the reference family)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="go on from this text")
    prompts_help = (
        "prompts in JSON, CSV or plain text, in any format of docs/prompt-files.md; conversations need --chat (default: the "
        "reference family's held-out prompts)"
    )
    source.add_argument("--prompts", type=Path, metavar="FILE", help=prompts_help)
    add_read_flags(parser, "prompt")
    chat_help = (
        "put every prompt into the tokenizer's chat template, as what a user says; a question of several turns is answered "
        "turn by turn (without --chat: its first alone is gone on from)"
    )
    add("--chat", action="store_true", help=chat_help)
    add_special_tokens_flag(parser)
    split_help = "half of the prompts to take, so that none is judged that a plan was fitted to (default: evaluation)"
    add("--split", choices=SPLITS, default="evaluation", help=split_help)
    number_help = f"prompts to run (default: {DEFAULT_NUM_PROMPTS})"
    add("--num-prompts", type=positive, metavar="PROMPTS", default=DEFAULT_NUM_PROMPTS, help=number_help)
    add("--max-new-tokens", type=positive, metavar="TOKENS", help="most tokens to write per prompt (default: the plan's)")
    outputs_help = (
        "keep every finished text, its token ids and figures, a JSON object a line; repeat the command to go on after a stop"
    )
    add("--outputs", type=output_file, metavar="FILE", help=outputs_help)
    add(
        "--stop",
        type=stop_string,
        metavar="TEXT",
        action="append",
        default=[],
        help="end a text where this, or the special token of this name, appears; may be repeated",
    )
    add("--check", action="store_true", help="decode plainly too, prove the output equal, and measure the speedup")
    adapt_help = "change policy while running, along the plan's frontier, as acceptance shifts (default: the plan's throughout)"
    add("--adapt", action="store_true", help=adapt_help)
    export_help = "write the draft's exit after LAYERS layers to DIR as an ordinary checkpoint, and run nothing"
    add("--export-exit", nargs=2, metavar=("LAYERS", "DIR"), help=export_help)
    add_common_flags(parser, result="report")
    return parser


def _run(args: argparse.Namespace, *, command: Sequence[str], ranks: Ranks | None) -> int:
    if args.export_exit is not None:
        from s2d.running.run import export_from_flags

        export_from_flags(args)
        return EXIT_ANSWERED
    inputs = read_run_inputs(args)
    with locked_file(args.outputs) if args.outputs else contextlib.nullcontext(True) as is_locked:
        if not is_locked:
            print_err(f"note: no file locks here: take care that no other s2d-run writes to {args.outputs}")
        from s2d.running.run import run_from_flags

        run_from_flags(args, inputs, command, ranks)
    return EXIT_ANSWERED
