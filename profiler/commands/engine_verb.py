"""`s2d-profile engine`: parse the flags into a request, then import the code that runs the engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from perfmodel.acceptance.splits import SPLITS
from perfmodel.core.blocks import Command, as_text
from perfmodel.core.console import EXIT_ANSWERED, add_common_flags, answer_options, print_err, print_out
from perfmodel.core.errors import UserInputError
from perfmodel.core.overwriting import OutputFolder
from perfmodel.engines.find_engine import find_engine
from profiler.engines.engine_request import DEFAULT_LENGTHS, EngineProfileRequest, next_command, read_engine_prompts
from profiler.engines.planned_runs import EngineRuns, compare_command, planned_runs
from s2d.commands.arguments import draft_lengths, layers
from s2d.prompt_files.read_as import add_read_flags, read_as

PURPOSE = "run a target and exits of a draft in another engine, and record seconds and acceptance of every call"
EXAMPLE = "--engine onnxruntime --target ref-target-16 --draft ref-draft --exits 2,4 -o ort.engine.json"


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    add, models = parser.add_argument, parser.add_argument_group("models")
    engine_help = "the engine that runs the models, as s2d-engines list shows them; s2d-engines install NAME installs it"
    add("--engine", metavar="NAME", help=engine_help)
    plan_help = (
        "run the configuration of this plan beside plain decoding, on the other half of the prompts, for s2d-compare; engine, "
        "models, weights, device and threads are the plan's if not given"
    )
    add("--plan", type=Path, metavar="FILE", help=plan_help)
    interface_help = "drive the engine through its Python API or its HTTP server on 127.0.0.1 (default: the api, if it has one)"
    add("--interface", choices=("api", "server"), help=interface_help)
    models.add_argument("--target", metavar="NAME", help="ref-target-16, ref-target-32, a folder, or org/name")
    models.add_argument("--draft", metavar="NAME", help="ref-draft, or a model as for --target")
    exits_help = "exits of the draft to run as draft models, rising (default: its first and its last)"
    models.add_argument("--exits", type=layers, metavar="LAYERS", help=exits_help)
    weights_help = "storage of the weights of both models in the engine's words: f32, bf16, q8_0, int8 (default: its first)"
    models.add_argument("--weights", metavar="NAME", help=weights_help)
    lengths_help = f"draft lengths to run with every exit (default: {','.join(map(str, DEFAULT_LENGTHS))})"
    add("--lengths", type=draft_lengths, metavar="TOKENS", help=lengths_help)
    _add_text(parser.add_argument_group("text"))
    device = parser.add_argument_group("device")
    device.add_argument("--device", choices=("cpu", "cuda"), help="where the engine runs (default: cpu)")
    device.add_argument("--threads", type=int, metavar="N", help="threads of a CPU run (default: 1)")
    work_help = (
        "folder for exits and converted checkpoints, which later profiles reuse (default: engine-models beside the file)"
    )
    add("--work", type=OutputFolder(), metavar="FOLDER", help=work_help)
    add_common_flags(parser, result="engine profile")


def _add_text(group: argparse._ArgumentGroup) -> None:
    default = EngineProfileRequest(engine="s2d", target="", draft="")
    prompts_help = "prompts in JSON, CSV or plain text (default: the prompts of the reference family)"
    group.add_argument("--prompts", type=Path, metavar="FILE", help=prompts_help)
    add_read_flags(group, "prompt")
    split_help = "half of the prompts to use, so that predictions can be tested on the other half (default: calibration; with "
    split_help += "--plan: evaluation)"
    group.add_argument("--split", choices=SPLITS, help=split_help)
    count_help = "maximum number of prompts (default: 8)"
    group.add_argument("--num-prompts", type=int, default=default.num_prompts, metavar="N", help=count_help)
    tokens_help = "tokens written after each prompt (default: 96)"
    group.add_argument("--max-new-tokens", type=int, default=default.max_new_tokens, metavar="TOKENS", help=tokens_help)
    repeats_help = "times that every configuration decodes every prompt, every second time in reverse order (default: 2)"
    group.add_argument("--repeats", type=int, default=default.repeats, metavar="N", help=repeats_help)
    plain_help = "times that plain decoding, which all speedups are over, runs in each repeat (default: 1)"
    group.add_argument("--plain-calls", type=int, default=default.plain_calls, metavar="N", help=plain_help)
    restarts_help = (
        "times that the engine's processes start anew between repeats, as seconds differ from process to process "
        "(default: before every repeat if a process has one length and starts within seconds, else 0)"
    )
    group.add_argument("--restarts", type=int, metavar="N", help=restarts_help)
    warm_help = "tokens decoded by the same process just before each measured call (default: 8)"
    group.add_argument("--warm-up-tokens", type=int, default=default.warm_up_tokens, metavar="TOKENS", help=warm_help)
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the measuring order (default: 0)")


def engine_request(args: argparse.Namespace) -> EngineProfileRequest:
    """The request that the flags describe.

    Raises:
        UserInputError: a flag is missing or does not go with the plan, the engine is unknown, or a number is out of range.
    """
    runs = _flag_runs(args) if args.plan is None else _plan_runs(args)
    num_threads = runs.num_threads if args.threads is None else args.threads
    return EngineProfileRequest(
        engine=runs.engine,
        target=args.target or runs.target,
        draft=args.draft or runs.draft,
        output=args.output,
        exits=runs.exits,
        lengths=runs.lengths,
        configurations=runs.configurations,
        weights=args.weights or runs.weights,
        threads=num_threads if (args.device or runs.device) == "cpu" else None,
        interface=args.interface,
        prompts=args.prompts,
        read_as=read_as(args, "prompt"),
        split=args.split or runs.split,
        num_prompts=args.num_prompts,
        max_new_tokens=args.max_new_tokens,
        repeats=args.repeats,
        plain_calls=args.plain_calls,
        restarts=args.restarts,
        warm_up_tokens=args.warm_up_tokens,
        work_folder=args.work,
        seed=args.seed,
    )


def _flag_runs(args: argparse.Namespace) -> EngineRuns:
    """What the flags name, without a plan."""
    missing = [flag for flag in ("engine", "target", "draft") if getattr(args, flag) is None]
    if missing:
        raise UserInputError(
            f"--{missing[0]} is missing: expected it, or --plan FILE. s2d-profile engine --help has an example."
        )
    return EngineRuns(
        engine=args.engine,
        target=args.target,
        draft=args.draft,
        weights=args.weights,
        device="cpu",
        num_threads=1,
        split="calibration",
        exits=args.exits,
        lengths=args.lengths or DEFAULT_LENGTHS,
    )


def _plan_runs(args: argparse.Namespace) -> EngineRuns:
    """What the plan names. Flags that would run something else are refused."""
    extra = [flag for flag in ("exits", "lengths") if getattr(args, flag) is not None]
    if extra:
        raise UserInputError(f"--{extra[0]} with --plan: the plan has its exit and length. Leave out --{extra[0]} or --plan.")
    runs = planned_runs(args.plan)
    if args.engine is not None and find_engine(args.engine).name != runs.engine:
        raise UserInputError(f"--engine {args.engine}: the plan is for {runs.engine}. Leave out --engine, or plan again.")
    return runs


def run_engine_verb(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Carry out the verb: the text or the file on stdout, the file on disk."""
    request = engine_request(args)
    prompts = read_engine_prompts(request)
    from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE
    from profiler.engines.profile_engine import run_profile_engine

    profile = run_profile_engine(request, prompts, command=command)
    options = answer_options(args)
    if options.json:
        stored = ENGINE_PROFILE_FILE.read(request.file)
        print_out(ENGINE_PROFILE_FILE.text(stored.record, stored.provenance), end="")
    else:
        print_out(profile.explain() if options.explain else str(profile))
        following = (
            next_command(request, profile.draft.exit_layers) if args.plan is None else compare_command(args.plan, request)
        )
        print_out("\n" + as_text([Command(following)]))
    print_err(f"wrote {request.file}")
    return EXIT_ANSWERED
