"""`s2d-profile`: what every pass costs on this machine, and what every exit says on these prompts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perfmodel.core.console import add_verbose_flag, make_parser
from perfmodel.core.errors import UserInputError
from perfmodel.core.overwriting import OutputFolder
from perfmodel.core.torchrun import num_processes, torchrun_command
from profiler.commands.profile_inputs import PARTIAL_TRACE_NAME, TRACE_NAME, read_inputs
from s2d.commands.arguments import EXITS_HELP, add_special_tokens_flag, layers
from s2d.parallel.run_shared import run_shared
from s2d.prompt_files.read_as import add_read_flags

if TYPE_CHECKING:
    from s2d.parallel.ranks import Ranks

PROG = "s2d-profile"
PROFILE_FILES = ("*.latency.json", "*.latency.partial.json")


def main_profile(argv: Sequence[str] | None = None) -> int:
    """Entry point of `s2d-profile`; `law` times shapes for the latency law alone."""
    given = sys.argv[1:] if argv is None else list(argv)
    command = torchrun_command((PROG, *given), num_processes())

    def models(args: argparse.Namespace, *, ranks: Ranks | None) -> int:
        prompts = read_inputs(args)
        from profiler.commands.profile_command import profile

        return profile(args, prompts, argv=command, ranks=ranks)

    def law(args: argparse.Namespace, *, ranks: Ranks | None) -> int:
        from profiler.commands.law_command import profile_law

        if ranks:
            raise UserInputError(f"{PROG} law times one device, expected one process: leave torchrun out.")
        return profile_law(args, argv=command)

    if given[:1] == ["law"]:
        return run_shared(_law_parser(), given[1:], law)
    return run_shared(_parser(), given, models)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        PROG,
        "Measure, on this machine, what every pass of draft and target costs inside the running loop, and record what every\n"
        "exit of the draft would have said along the target's own text. Interrupted, it goes on where it was.\n\n"
        "s2d-profile law  times small models of many shapes, to price models that nobody ran here",
        f"{PROG} --target ref-target-16 --draft ref-draft -o profile",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("all", "latency", "acceptance"),
        default="all",
        help="only the seconds, only the trace, or both, one after the other (default: all)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=OutputFolder((*PROFILE_FILES, TRACE_NAME, PARTIAL_TRACE_NAME)),
        default=Path("profile"),
        metavar="FOLDER",
        help="where the files go (default: profile)",
    )
    _add_models(parser.add_argument_group("models"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_text(parser.add_argument_group("text"))
    _add_device(parser.add_argument_group("device"))
    add_verbose_flag(parser)
    return parser


def _law_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        f"{PROG} law",
        "Time passes of small models with random weights, so that s2d-plan fit finds this device's latency law, which prices\n"
        "models nobody ran here. Interrupted, it goes on where it was.",
        f"{PROG} law --device cuda --dtype bf16 -o law",
    )
    add = parser.add_argument
    place_help = "where the profiles go (default: law)"
    add("-o", "--output", type=OutputFolder(PROFILE_FILES), default=Path("law"), metavar="FOLDER", help=place_help)
    add("--depths", type=int, nargs="+", default=[1, 2, 4, 8], metavar="LAYERS", help="of the models (default: 1 2 4 8)")
    sizes_help = "multiples of 64 (default: on a CPU 128 256 512, else 1024 2048 4096)"
    add("--hidden-sizes", type=int, nargs="+", metavar="SIZE", help=sizes_help)
    rows_help = "tokens of a pass (default: 1 2 3 4 6 8 12 16)"
    add("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 12, 16], metavar="TOKENS", help=rows_help)
    context_help = "in the cache before it (default: 64 192 320)"
    add("--context-tokens", type=int, nargs="+", default=[64, 192, 320], metavar="TOKENS", help=context_help)
    add("--seed", type=int, default=0, metavar="N", help="of weights and order (default: 0)")
    _add_place(parser)
    add("--budget", type=float, default=120.0, metavar="SECONDS", help="how long, warm-up apart (default: 120)")
    add_verbose_flag(parser)
    return parser


def _add_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--target", required=True, metavar="NAME", help="ref-target-16, ref-target-32, or a model folder")
    group.add_argument(
        "--draft", required=True, metavar="NAME", help="ref-draft, any model folder, or self: the target's own layers"
    )
    group.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    group.add_argument(
        "--confidence",
        choices=("max-prob", "margin", "entropy"),
        default="max-prob",
        help="what exits are judged by (default: max-prob)",
    )
    share_help = "under torchrun, deal out a draft with weights of its own too (default: the first process has it whole)"
    group.add_argument("--share-draft", action="store_true", help=share_help)


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    """How tokens are picked, by target and draft alike."""
    add = group.add_argument
    rule_help = "when a drafted token is accepted (default: greedy at temperature 0, else shared-noise)"
    add("--rule", choices=("greedy", "shared-noise", "ratio"), help=rule_help)
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    add("--top-k", type=int, metavar="TOKENS", help="sample from the likeliest so many (default: all)")
    add("--top-p", type=float, metavar="FRAC", help="sample from the likeliest that hold so much (default: 1)")
    add("--min-p", type=float, metavar="FRAC", help="drop tokens below this share of the likeliest (default: 0)")
    repetition_help = "divides positive logits of tokens in prompt or output, multiplies negative ones (default: 1, none)"
    add("--repetition-penalty", type=float, metavar="FACTOR", help=repetition_help)
    presence_help = "taken once from logits of tokens in the output, -2 to 2 (default: 0, none)"
    add("--presence-penalty", type=float, metavar="LOGITS", help=presence_help)
    frequency_help = "taken as often as a token is in the output, -2 to 2 (default: 0, none)"
    add("--frequency-penalty", type=float, metavar="LOGITS", help=frequency_help)
    add("--seed", type=int, default=0, metavar="N", help="of sampling and of the order of measuring (default: 0)")


def _add_text(group: argparse._ArgumentGroup) -> None:
    prompts_help = (
        "prompts in JSON, CSV or plain text, in any format of docs/prompt-files.md; conversations need --chat (default: those "
        "of the reference family)"
    )
    group.add_argument("--prompts", type=Path, metavar="FILE", help=prompts_help)
    add_read_flags(group, "prompt")
    chat_help = (
        "put every prompt into the tokenizer's chat template, as what a user says; of a question of several turns the first is "
        "taken, with --chat or without"
    )
    group.add_argument("--chat", action="store_true", help=chat_help)
    add_special_tokens_flag(group)
    group.add_argument(
        "--split",
        choices=("calibration", "evaluation", "all"),
        default="calibration",
        help="half of the prompts, by hash of their names: no plan is judged on what it was fitted to (default: calibration)",
    )
    group.add_argument("--num-prompts", type=int, default=60, metavar="N", help="at most so many (default: 60)")
    group.add_argument("--max-new-tokens", type=int, default=128, metavar="TOKENS", help="written after each (default: 128)")
    off_path_help = (
        "mistakes of the draft in every text behind which its exits are asked once more, for what drafting past them costs "
        "(default: 0, the text's own confidences stand in)"
    )
    group.add_argument("--off-path", type=int, default=0, metavar="N", help=off_path_help)


def _add_device(group: argparse._ArgumentGroup) -> None:
    _add_place(group)
    group.add_argument("--draft-cap", type=int, default=12, metavar="TOKENS", help="longest draft to cover (default: 12)")
    group.add_argument("--budget", type=float, default=90.0, metavar="SECONDS", help="most time for latency (default: 90)")


def _add_place(group: argparse._ActionsContainer) -> None:
    """Where and in what to compute."""
    group.add_argument("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    group.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="to compute in (default: fp32)")
    group.add_argument(
        "--engine",
        choices=("eager", "graph"),
        help="launch kernels one by one, or as CUDA graphs (default: graph on one GPU, else eager)",
    )
    kernels_help = (
        "what to compute with: measured, which times all that can run and takes the fastest; standard; or three names, as in "
        "output-major,varlen,fused (default: measured on a GPU, else standard)"
    )
    group.add_argument("--kernels", metavar="NAMES", help=kernels_help)
    group.add_argument("--threads", type=int, default=1, metavar="N", help="of a CPU run (default: 1)")
