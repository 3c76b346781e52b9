"""`s2d-run`: parse the flags into a request, then import the code that runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from perfmodel.acceptance.splits import SPLITS
from perfmodel.core.console import EXIT_ANSWERED, add_common_flags, answer_options, make_parser
from perfmodel.core.errors import UserInputError
from perfmodel.core.overwriting import output_file
from perfmodel.core.torchrun import num_processes, torchrun_command
from perfmodel.results.plan import PLAN_FILE
from s2d.commands.arguments import add_special_tokens_flag, positive, stop_string
from s2d.parallel.run_shared import run_shared
from s2d.prompt_files.read_as import add_read_flags, read_as
from s2d.prompts.conversation import Prompt
from s2d.running.run_inputs import DEFAULT_NUM_PROMPTS, ExportRequest, RunRequest, lock_outputs, read_run_inputs

if TYPE_CHECKING:
    from s2d.parallel.ranks import Ranks

PROG = "s2d-run"


def main_run(argv: Sequence[str] | None = None) -> int:
    """`s2d-run`: run a plan, stream its output, and compare it with the prediction."""
    command = torchrun_command((PROG, *(sys.argv[1:] if argv is None else argv)), num_processes())
    return run_shared(run_parser(), argv, partial(_run, command=command))


def run_parser() -> argparse.ArgumentParser:
    """The parser of `s2d-run`."""
    parser = make_parser(
        PROG,
        "Run a plan: decode prompts with its draft and policy, and compare speed and acceptance with the prediction.",
        "s2d-run --plan plan.json --check -o report.json",
    )
    add = parser.add_argument
    add("--plan", type=Path, metavar="FILE", help="the plan to run, written by s2d-plan")
    add("--target", metavar="DIR", help="target: a model folder, or a name of the reference family (default: the plan's)")
    add("--draft", metavar="DIR", help="draft: likewise (default: the plan's)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="continue this text")
    prompts_help = (
        "prompts in JSON, CSV or plain text, in any format of docs/prompt-files.md; conversations need --chat (default: the "
        "held-out prompts of the reference family)"
    )
    source.add_argument("--prompts", type=Path, metavar="FILE", help=prompts_help)
    add_read_flags(parser, "prompt")
    chat_help = (
        "put each prompt into the tokenizer's chat template as a user turn, and answer questions of several turns turn by turn "
        "(default: continue the first turn as text)"
    )
    add("--chat", action="store_true", help=chat_help)
    add_special_tokens_flag(parser)
    split_help = "half of the prompts to use; plans are fitted to the calibration half (default: evaluation)"
    add("--split", choices=SPLITS, default="evaluation", help=split_help)
    number_help = f"number of prompts to run (default: {DEFAULT_NUM_PROMPTS})"
    add("--num-prompts", type=positive, metavar="PROMPTS", default=DEFAULT_NUM_PROMPTS, help=number_help)
    add("--max-new-tokens", type=positive, metavar="TOKENS", help="maximum length of each output (default: the plan's)")
    outputs_help = (
        "write each finished output, its token ids and its figures to FILE, one JSON object per line; after an interruption, "
        "repeat the command to continue"
    )
    add("--outputs", type=output_file, metavar="FILE", help=outputs_help)
    stop_help = "end an output at this text, or at the special token of this name; may be repeated"
    add("--stop", type=stop_string, metavar="TEXT", action="append", default=[], help=stop_help)
    add("--check", action="store_true", help="also decode plainly, compare the outputs token by token, and measure the speedup")
    adapt_help = "change the policy while running, along the plan's frontier, as acceptance shifts (default: one policy)"
    add("--adapt", action="store_true", help=adapt_help)
    export_help = "write the draft's exit after LAYERS layers to DIR as an ordinary checkpoint, and run nothing"
    add("--export-exit", nargs=2, metavar=("LAYERS", "DIR"), help=export_help)
    add_common_flags(parser, result="report")
    return parser


def run_request(args: argparse.Namespace) -> RunRequest:
    """The run that the flags describe.

    Raises:
        UserInputError: no plan is given.
    """
    if args.plan is None:
        raise UserInputError("nothing to run: give a plan with --plan FILE. s2d-plan writes one.")
    is_text = args.prompt is not None
    return RunRequest(
        plan=args.plan,
        target=args.target,
        draft=args.draft,
        prompts=(Prompt(name="--prompt", category="given", text=args.prompt),) if is_text else args.prompts,
        read_as=read_as(args, "prompt"),
        split=args.split,
        num_prompts=args.num_prompts,
        chat=args.chat,
        special_tokens=args.special_tokens,
        max_new_tokens=args.max_new_tokens,
        stop=tuple(args.stop),
        check=args.check,
        adapt=args.adapt,
        outputs=args.outputs,
    )


def export_request(args: argparse.Namespace) -> ExportRequest:
    """The exit to export.

    Raises:
        UserInputError: the layer count is not a number, or no model is given.
    """
    layers, folder = args.export_exit
    if not layers.isdecimal():
        raise UserInputError(f"--export-exit {layers!r}: expected a layer count and a folder, as in --export-exit 4 exit-4")
    model = args.draft or (PLAN_FILE.read(args.plan).record.draft_name if args.plan else None)
    if model is None:
        raise UserInputError("--export-exit needs a model: give --draft DIR or --plan FILE.")
    return ExportRequest(model=model, exit_layer=int(layers), folder=Path(folder))


def _run(args: argparse.Namespace, *, command: Sequence[str], ranks: Ranks | None) -> int:
    if args.export_exit is not None:
        request = export_request(args)
        from s2d.commands.run_command import export_and_print

        export_and_print(request)
        return EXIT_ANSWERED
    run = run_request(args)
    inputs = read_run_inputs(run)
    with lock_outputs(run.outputs):
        from s2d.commands.run_command import run_and_print

        run_and_print(run, inputs, answer_options(args), command, ranks)
    return EXIT_ANSWERED
