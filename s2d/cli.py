"""`s2d-run`: parse first, import what does the work after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from perfmodel.console import EXIT_ANSWERED, add_common_flags, make_parser, run_command
from perfmodel.halves import SPLITS

RUN = "s2d-run"
DEFAULT_NUM_PROMPTS = 4


def main_run(argv: Sequence[str] | None = None) -> int:
    """`s2d-run`: execute a plan, stream its text, and put measured beside predicted."""
    command = (RUN, *(sys.argv[1:] if argv is None else argv))
    return run_command(_run_parser(), argv, partial(_run, command=command))


def _run_parser() -> argparse.ArgumentParser:
    description = "Execute a plan: decode prompts with its draft and policy, and put measured beside predicted."
    parser = make_parser(RUN, description, "s2d-run --plan plan.json --check -o report.json")
    add = parser.add_argument
    add("--plan", type=Path, metavar="FILE", help="the plan to run, made by s2d-plan")
    add("--target", metavar="DIR", help="folder of the target (default: the plan's, from the reference family)")
    add("--draft", metavar="DIR", help="folder of the draft (default: the plan's, from the reference family)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="go on from this text")
    prompts_help = 'one {"name", "category", "text"} a line (default: the reference family\'s held-out prompts)'
    source.add_argument("--prompts", type=Path, metavar="FILE", help=prompts_help)
    split_help = "half of the prompts to take, so that none is judged that a plan was fitted to (default: evaluation)"
    add("--split", choices=SPLITS, default="evaluation", help=split_help)
    number_help = f"prompts to run (default: {DEFAULT_NUM_PROMPTS})"
    add("--num-prompts", type=_positive, metavar="PROMPTS", default=DEFAULT_NUM_PROMPTS, help=number_help)
    add("--max-new-tokens", type=_positive, metavar="TOKENS", help="most tokens to write per prompt (default: the plan's)")
    add("--stop", metavar="TEXT", action="append", default=[], help="end a text where this appears; may be repeated")
    add("--check", action="store_true", help="decode plainly too, prove the output equal, and measure the speedup")
    export_help = "write the draft's exit after LAYERS layers to DIR as an ordinary checkpoint, and run nothing"
    add("--export-exit", nargs=2, metavar=("LAYERS", "DIR"), help=export_help)
    add_common_flags(parser, result="report")
    return parser


def _run(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    from s2d.run import run_from_flags

    run_from_flags(args, command)
    return EXIT_ANSWERED


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value
