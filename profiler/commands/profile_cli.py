"""`s2d-profile`: parse the flags into a request, then import the code that measures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from perfmodel.acceptance.splits import SPLITS
from perfmodel.core.console import EXIT_ANSWERED, add_subcommand, add_verbose_flag, make_parser, print_out
from perfmodel.core.errors import UserInputError
from perfmodel.core.overwriting import OutputFolder
from perfmodel.core.torchrun import num_processes, torchrun_command
from perfmodel.policies.sampling import AcceptanceRule, Sampling
from profiler.commands.engine_verb import EXAMPLE as ENGINE_EXAMPLE
from profiler.commands.engine_verb import PURPOSE as ENGINE_PURPOSE
from profiler.commands.engine_verb import add_engine_flags, run_engine_verb
from profiler.profiling.profile_request import (
    PARTIAL_TRACE_NAME,
    PROFILE_FILES,
    PROG,
    TRACE_NAME,
    LawRequest,
    ProfileRequest,
    read_profile_prompts,
)
from s2d.commands.arguments import EXITS_HELP, add_special_tokens_flag, layers
from s2d.parallel.run_shared import run_shared
from s2d.prompt_files.read_as import add_read_flags, read_as

if TYPE_CHECKING:
    from s2d.parallel.ranks import Ranks

_MEASURE = {
    "latency": "measure only the seconds of the passes",
    "acceptance": "record only the trace of the acceptance",
}
_EXAMPLE = "--target ref-target-16 --draft ref-draft -o profile"


def main_profile(argv: Sequence[str] | None = None) -> int:
    """`s2d-profile`: measure a pair here, with `law` the latency of many shapes, or with `engine` a pair in another engine."""
    given = tuple(sys.argv[1:] if argv is None else argv)
    return run_shared(profile_parser(), given, partial(_run, given=given))


def profile_parser() -> argparse.ArgumentParser:
    """The parser of `s2d-profile` and its verbs."""
    description = (
        "Measure on this machine the seconds of every pass of draft and target inside the decoding loop, and record the\n"
        "acceptance at every exit of the draft along the target's own text. After an interruption, the same command continues."
    )
    parser = make_parser(PROG, description, f"{PROG} {_EXAMPLE}")
    _add_pair_flags(parser, are_required=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs (--help after a verb shows its options)")
    for verb, purpose in _MEASURE.items():
        _add_pair_flags(add_subcommand(verbs, verb, purpose, f"{PROG} {verb} {_EXAMPLE}"), are_required=True)
    purpose = "time small models of many shapes with random weights, to fit the latency law with s2d-plan fit"
    _add_law_flags(add_subcommand(verbs, "law", purpose, f"{PROG} law --device cuda --dtype bf16 -o law"))
    add_engine_flags(add_subcommand(verbs, "engine", ENGINE_PURPOSE, f"{PROG} engine {ENGINE_EXAMPLE}"))
    return parser


def profile_request(args: argparse.Namespace) -> ProfileRequest:
    """The request that the flags describe.

    Raises:
        UserInputError: a model is missing, a count is out of range, or sampling flags contradict each other.
    """
    for flag, model in (("--target", args.target), ("--draft", args.draft)):
        if model is None:
            raise UserInputError(f"no model given with {flag}: expected a name or a folder. Give {flag} NAME.")
    return ProfileRequest(
        target=args.target,
        draft=args.draft,
        what=args.verb or "all",
        output=args.output,
        exits=args.exits,
        confidence=args.confidence,
        share_draft=args.share_draft,
        sampling=sampling_from_flags(args),
        seed=args.seed,
        prompts=args.prompts,
        read_as=read_as(args, "prompt"),
        chat=args.chat,
        special_tokens=args.special_tokens,
        split=args.split,
        num_prompts=args.num_prompts,
        max_new_tokens=args.max_new_tokens,
        num_mistakes=args.off_path,
        device=args.device,
        dtype=args.dtype,
        mode=args.mode,
        kernels=args.kernels,
        threads=args.threads,
        draft_cap=args.draft_cap,
        budget_s=args.budget,
    )


def sampling_from_flags(args: argparse.Namespace) -> Sampling:
    """The sampling settings that the flags describe; without --rule, shared noise above temperature 0.

    Raises:
        UserInputError: they contradict each other.
    """
    rule: AcceptanceRule = args.rule or ("greedy" if args.temperature == 0 else "shared-noise")
    try:
        return Sampling(
            rule=rule,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=None if rule == "greedy" else args.seed,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            presence_penalty=args.presence_penalty,
            frequency_penalty=args.frequency_penalty,
        )
    except ValueError as err:
        raise UserInputError(f"sampling flags: {err}.") from err


def law_request(args: argparse.Namespace) -> LawRequest:
    """The request that the flags of `law` describe.

    Raises:
        UserInputError: a number is out of range.
    """
    return LawRequest(
        output=args.output,
        depths=tuple(args.depths),
        hidden_sizes=None if args.hidden_sizes is None else tuple(args.hidden_sizes),
        rows=tuple(args.rows),
        context_tokens=tuple(args.context_tokens),
        seed=args.seed,
        device=args.device,
        dtype=args.dtype,
        mode=args.mode,
        kernels=args.kernels,
        threads=args.threads,
        budget_s=args.budget,
    )


def _run(args: argparse.Namespace, *, given: Sequence[str], ranks: Ranks | None) -> int:
    """Turn the flags into a request and carry it out."""
    command = torchrun_command((PROG, *given), num_processes())
    if args.verb is not None and given[0] != args.verb:
        raise UserInputError(f"options before the verb {args.verb!r}: expected them after it. Put {args.verb!r} first.")
    if args.verb == "law":
        if ranks:
            raise UserInputError(f"{PROG} law times one device, expected one process: leave torchrun out.")
        law = law_request(args)
        from profiler.profiling.profile_law import run_law

        run_law(law, command=command, on_text=print_out)
        return EXIT_ANSWERED
    if args.verb == "engine":
        if ranks:
            raise UserInputError(f"{PROG} engine starts the engine itself, expected one process: leave torchrun out.")
        return run_engine_verb(args, command)
    request = profile_request(args)
    prompts = read_profile_prompts(request)
    from profiler.profiling.profile_pair import run_profile

    run_profile(request, prompts, ranks=ranks, command=command, on_text=print_out)
    return EXIT_ANSWERED


def _add_pair_flags(parser: argparse.ArgumentParser, *, are_required: bool) -> None:
    """Add the flags of a pair's profile.

    Args:
        parser: the parser of the command or of a verb.
        are_required: whether argparse requires the models. It cannot in the parser of the command, as a verb has its own flags.
    """
    files = OutputFolder((*PROFILE_FILES, TRACE_NAME, PARTIAL_TRACE_NAME))
    output_help = "folder for the files (default: profile)"
    parser.add_argument("-o", "--output", type=files, default=Path("profile"), metavar="FOLDER", help=output_help)
    _add_models(parser.add_argument_group("models"), are_required=are_required)
    _add_sampling(parser.add_argument_group("sampling"))
    _add_text(parser.add_argument_group("text"))
    device = parser.add_argument_group("device")
    _add_device(device)
    device.add_argument("--draft-cap", type=int, default=12, metavar="TOKENS", help="longest draft to measure (default: 12)")
    budget_help = "maximum duration of the latency measurement (default: 90)"
    device.add_argument("--budget", type=float, default=90.0, metavar="SECONDS", help=budget_help)
    add_verbose_flag(parser)


def _add_law_flags(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, LawRequest()
    files = OutputFolder(PROFILE_FILES)
    add("-o", "--output", type=files, default=default.output, metavar="FOLDER", help="folder for the files (default: law)")
    depths_help = "numbers of layers of the models (default: 1 2 4 8)"
    add("--depths", type=int, nargs="+", default=default.depths, metavar="LAYERS", help=depths_help)
    sizes_help = "hidden sizes, multiples of 64 (default: 128 256 512 on a CPU, 1024 2048 4096 on a GPU)"
    add("--hidden-sizes", type=int, nargs="+", metavar="SIZE", help=sizes_help)
    rows_help = "tokens per pass (default: 1 2 3 4 6 8 12 16)"
    add("--rows", type=int, nargs="+", default=default.rows, metavar="TOKENS", help=rows_help)
    context_help = "cached tokens before a pass (default: 64 192 320)"
    add("--context-tokens", type=int, nargs="+", default=default.context_tokens, metavar="TOKENS", help=context_help)
    add("--seed", type=int, default=0, metavar="N", help="seed of weights and order (default: 0)")
    _add_device(parser)
    budget_help = "duration of the measurement without warm-up (default: 120)"
    add("--budget", type=float, default=default.budget_s, metavar="SECONDS", help=budget_help)
    add_verbose_flag(parser)


def _add_models(group: argparse._ArgumentGroup, *, are_required: bool) -> None:
    target_help = "ref-target-16, ref-target-32, a model folder, or org/name on the Hugging Face hub"
    group.add_argument("--target", required=are_required, metavar="NAME", help=target_help)
    draft_help = "ref-draft, a model as for --target, or self: the first layers of the target"
    group.add_argument("--draft", required=are_required, metavar="NAME", help=draft_help)
    group.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    group.add_argument(
        "--confidence",
        choices=("max-prob", "margin", "entropy", "top10-prob"),
        default="max-prob",
        help="confidence of an exit in its token; top10-prob is that of llama.cpp (default: max-prob)",
    )
    share_help = "under torchrun, split a draft with its own weights too (default: the first process holds all of it)"
    group.add_argument("--share-draft", action="store_true", help=share_help)


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    rule_help = "when a drafted token is accepted (default: greedy at temperature 0, else shared-noise)"
    add("--rule", choices=("greedy", "shared-noise", "ratio"), help=rule_help)
    add("--temperature", type=float, default=0.0, metavar="T", help="sampling temperature, 0 is greedy (default: 0)")
    add("--top-k", type=int, metavar="TOKENS", help="sample from the TOKENS most likely tokens (default: all)")
    top_p_help = "sample from the most likely tokens that together have probability FRAC (default: 1)"
    add("--top-p", type=float, metavar="FRAC", help=top_p_help)
    min_p_help = "drop tokens below FRAC of the largest probability (default: 0)"
    add("--min-p", type=float, metavar="FRAC", help=min_p_help)
    repetition_help = (
        "divide positive logits and multiply negative logits of tokens in prompt or output (default: 1, no penalty)"
    )
    add("--repetition-penalty", type=float, metavar="FACTOR", help=repetition_help)
    presence_help = "subtract once from the logits of tokens in the output, -2 to 2 (default: 0)"
    add("--presence-penalty", type=float, metavar="LOGITS", help=presence_help)
    frequency_help = "subtract for each time a token is in the output, -2 to 2 (default: 0)"
    add("--frequency-penalty", type=float, metavar="LOGITS", help=frequency_help)
    add("--seed", type=int, default=0, metavar="N", help="seed of sampling and of the measuring order (default: 0)")


def _add_text(group: argparse._ArgumentGroup) -> None:
    prompts_help = (
        "prompts in JSON, CSV or plain text, in any format of docs/prompt-files.md; conversations need --chat (default: the "
        "prompts of the reference family)"
    )
    group.add_argument("--prompts", type=Path, metavar="FILE", help=prompts_help)
    add_read_flags(group, "prompt")
    chat_help = (
        "put every prompt into the tokenizer's chat template, as a user turn; of a question with several turns only the first "
        "is used, with or without --chat"
    )
    group.add_argument("--chat", action="store_true", help=chat_help)
    add_special_tokens_flag(group)
    split_help = (
        "half of the prompts to use, by hash of their names, so that a plan can be tested on the other half (default: "
        "calibration)"
    )
    group.add_argument("--split", choices=SPLITS, default="calibration", help=split_help)
    group.add_argument("--num-prompts", type=int, default=60, metavar="N", help="maximum number of prompts (default: 60)")
    tokens_help = "maximum number of tokens written after each prompt (default: 128)"
    group.add_argument("--max-new-tokens", type=int, default=128, metavar="TOKENS", help=tokens_help)
    off_path_help = (
        "draft mistakes per text after which the draft continues off the target's path, to measure the confidences there "
        "(default: 0, a plan then uses the confidences of the text itself)"
    )
    group.add_argument("--off-path", type=int, default=0, metavar="N", help=off_path_help)


def _add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    dtype_help = "number type of weights and caches (default: fp32)"
    group.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help=dtype_help)
    mode_help = "launch kernels one by one, or as CUDA graphs (default: graph on one GPU, else eager)"
    group.add_argument("--mode", choices=("eager", "graph"), help=mode_help)
    kernels_help = (
        "measured: time all kernels that run here and use the fastest; standard; or three names such as "
        "output-major,varlen,fused (default: measured on a GPU, else standard)"
    )
    group.add_argument("--kernels", metavar="NAMES", help=kernels_help)
    group.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a CPU run (default: 1)")
