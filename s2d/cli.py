"""`s2d-run` and `s2d-train`: parse first, import what does the work after."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from perfmodel.console import (
    EXIT_ANSWERED,
    Progress,
    add_common_flags,
    add_verbose_flag,
    keeping,
    make_parser,
    print_out,
    run_command,
)
from perfmodel.errors import UserInputError
from perfmodel.halves import SPLITS

RUN = "s2d-run"
TRAIN = "s2d-train"
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


def main_train(argv: Sequence[str] | None = None) -> int:
    """`s2d-train`: train a nested draft, or make the reference family again."""
    parser = make_parser(
        TRAIN,
        "Sorted fine-tuning: train a draft whose every exit can answer, or make the reference family again.",
        "s2d-train draft --target path/to/llama --exits 6,9,12 --text chats.jsonl --teacher path/to/llama -o my-draft",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_draft_command(commands.add_parser("draft", help="from a target's first layers to a nested draft", allow_abbrev=False))
    _add_reference_command(commands.add_parser("reference", help="the recipe of the shipped family", allow_abbrev=False))
    return run_command(parser, argv, lambda args: _train_reference(args) if args.command == "reference" else _train_draft(args))


def _add_draft_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, metavar="DIR", help="Hugging Face folder of a Llama-format model")
    parser.add_argument(
        "--exits", type=_layers, required=True, metavar="LAYERS", help="rising layer counts, e.g. 6,9,12; the last is the depth"
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help=".txt or .jsonl to train on")
    parser.add_argument(
        "--teacher", action="append", default=[], metavar="DIR", help="distil from this target; may be repeated"
    )
    parser.add_argument("--distill-frac", type=_frac, default=0.9, metavar="FRAC", help="share of distillation (default 0.9)")
    parser.add_argument("--steps", type=_positive, default=1000, metavar="STEPS", help="optimizer steps (default 1000)")
    parser.add_argument("--batch-sequences", type=_positive, default=8, metavar="SEQUENCES", help="per step (default 8)")
    parser.add_argument("--sequence-tokens", type=_positive, default=512, metavar="TOKENS", help="per sequence (default 512)")
    parser.add_argument("--matrix-lr", type=float, default=0.01, metavar="RATE", help="Muon's, for matrices (default 0.01)")
    parser.add_argument("--vector-lr", type=float, default=1e-3, metavar="RATE", help="AdamW's, for the rest (default 0.001)")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of batches (default 0)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the draft goes; must not exist")
    add_verbose_flag(parser)


def _add_reference_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the family goes")
    parser.add_argument("--work", type=Path, metavar="DIR", help="stages so far (default: the output's name + .work)")
    parser.add_argument("--stage", metavar="NAME", help="train this stage alone, e.g. in two processes at once")
    parser.add_argument("--max-steps", type=_positive, metavar="STEPS", help="cut every stage short, to try the recipe out")
    add_verbose_flag(parser)


def _train_reference(args: argparse.Namespace) -> int:
    from s2d.package_family import install_family
    from s2d.reference import run_stage, run_stages

    work = args.work or args.output.with_name(args.output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    with keeping(work):
        if args.stage:
            run_stage(work, args.stage, max_steps=args.max_steps, progress=_progress)
        else:
            run_stages(work, max_steps=args.max_steps, progress=_progress)
            install_family(work, args.output)
    print_out(f"finished: {args.output if not args.stage else work / args.stage}")
    return EXIT_ANSWERED


def _train_draft(args: argparse.Namespace) -> int:
    from s2d.train import TrainSettings
    from s2d.train_draft import read_texts, train_draft

    if args.output.exists():
        raise UserInputError(f"{str(args.output)!r} exists already: give a new folder with -o, or move it away")
    settings = TrainSettings(
        steps=args.steps,
        warmup_steps=max(1, args.steps // 50),
        cooldown_steps=args.steps // 2,
        batch_sequences=args.batch_sequences,
        sequence_tokens=args.sequence_tokens,
        matrix_lr=args.matrix_lr,
        vector_lr=args.vector_lr,
        distill_frac=args.distill_frac,
        all_exits=True,
        seed=args.seed,
    )
    partial = args.output.with_name(args.output.name + ".partial")
    with keeping(partial), _progress("draft", args.steps) as on_step:
        train_draft(
            args.target,
            args.exits,
            read_texts(args.text),
            settings,
            args.output,
            teacher_names=args.teacher,
            device=args.device,
            on_step=on_step,
        )
    exits = "/".join(map(str, args.exits))
    print_out(f"wrote {args.output}, exits {exits}; next: s2d-profile --target {args.target} --draft {args.output}")
    return EXIT_ANSWERED


@contextlib.contextmanager
def _progress(label: str, num_steps: int) -> Iterator[Callable[[int, float], None]]:
    """A progress line fed with the loss of every step."""
    with Progress(label, num_steps) as progress:
        yield lambda step, loss: progress.step(f"loss {loss:.3f}")


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


def _frac(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _layers(text: str) -> tuple[int, ...]:
    layers = tuple(int(part) for part in text.split(",") if part.strip().isdigit())
    if not layers or len(layers) != len(text.split(",")) or list(layers) != sorted({*layers}) or layers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rising list of layer counts such as 6,9,12")
    return layers
