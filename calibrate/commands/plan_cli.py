"""`s2d-plan`: choose the configuration to run, and predict its speed.

Flags are parsed first; the modules that do the work are imported afterwards.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.commands.export_verb import add_export_verb, answer_export
from calibrate.commands.flags import add_device_flags, device_request
from calibrate.commands.law_verbs import add_law_verbs, answer_design, answer_fit, answer_validation, design_flags, fit_flags
from perfmodel.core.console import (
    EXIT_ANSWERED,
    AnswerOptions,
    add_common_flags,
    answer_options,
    make_parser,
    print_answer,
    run_command,
    without_flag,
)
from perfmodel.core.errors import UserInputError

if TYPE_CHECKING:
    from calibrate.inputs.requests import PlanRequest
    from perfmodel.core.blocks import Block
    from perfmodel.results.plan import Plan

PLAN = "s2d-plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFlags:
    """The flags of `s2d-plan` without a verb."""

    request: PlanRequest
    """For one target and the first trace."""
    traces: tuple[Path, ...]
    targets: tuple[str, ...]
    """Several targets; empty if `request` or a trace names the target."""
    by_category: bool
    answer: AnswerOptions
    command: tuple[str, ...]
    """The command line, program first."""

    def __post_init__(self) -> None:
        if self.by_category and (self.targets or len(self.traces) > 1):
            raise UserInputError("--by-category splits the prompts of one target: leave --targets and further --trace out.")
        if self.by_category and self.request.category is not None:
            raise UserInputError("--by-category plans for every category, --category for one: give one of the two.")
        if self.targets and self.traces:
            raise UserInputError("a trace names its target: leave --targets out, and give --trace once for every target.")
        if self.request.engine is not None and (self.by_category or self.targets):
            raise UserInputError("--engine plans for one target and all prompts: leave --targets, --by-category out.")
        if self.request.engine == "all" and len(self.traces) > 1:
            raise UserInputError("--engine all compares engines with one draft: give --trace once.")
        if self.request.target is not None and (self.targets or len(self.traces) > 1):
            given = "--targets" if self.targets else "several traces"
            raise UserInputError(f"--target names one target, {given} several: leave --target out.")


def main_plan(argv: Sequence[str] | None = None) -> int:
    """`s2d-plan`: the configuration to run, and its predicted speed."""
    given = sys.argv[1:] if argv is None else list(argv)
    return run_command(plan_parser(), given, partial(_run, command=(PLAN, *given)))


def plan_parser() -> argparse.ArgumentParser:
    """The parser of `s2d-plan` and its verbs."""
    description = (
        "Predict how fast a draft makes a target, and choose the draft's exits, thresholds and draft length. Needs no GPU.\n"
        "With a verb: write files to serve a plan with, or answer a question about the latency law alone."
    )
    parser = make_parser(PLAN, description, "s2d-plan --target llama-70b --device h100 -o plan.json")
    _add_evidence_flags(parser.add_argument_group("models and evidence"))
    add_device_flags(parser.add_argument_group("device (default with --profile: the profile's)"))
    _add_workload_flags(parser.add_argument_group("workload"))
    add_common_flags(parser, result="plan")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs (--help after a verb shows its options)")
    add_export_verb(verbs)
    add_law_verbs(verbs)
    return parser


def _add_evidence_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    target_help = "a known model (docs/reference/models.md), a config.json or its folder, or org/name on the Hugging Face hub"
    add("--target", metavar="NAME", help=target_help)
    targets_help = "several targets, separated by commas: the best policy of one draft for each, and the best for all"
    add("--targets", metavar="NAMES", help=targets_help)
    add("--draft", metavar="NAME", help="a draft of known acceptance (default: the trace's, or the shipped one)")
    vocab_help = "assume an LM head of the most frequent TOKENS tokens (default: the whole vocabulary)"
    add("--draft-vocab", type=int, metavar="TOKENS", help=vocab_help)
    trace_help = (
        "acceptance recorded by s2d-profile; once for every target of one draft, or for every draft of one target (default: "
        "shipped evidence from publications)"
    )
    add("--trace", type=Path, metavar="FILE", action="append", default=[], help=trace_help)
    split_help = "plan on one half of the trace's prompts, and keep the other to test the plan (default: all)"
    add("--prompts-split", choices=("all", "calibration", "evaluation"), default="all", help=split_help)
    add("--category", metavar="NAME", help="plan for the trace's prompts of this category (default: all categories)")
    by_category_help = "the best policy for every category of the trace's prompts, and the best for all"
    add("--by-category", action="store_true", help=by_category_help)
    engine_help = (
        "the engine that executes the plan (s2d-engines list), or all to compare engines (default: the profile's, else s2d, "
        "the bundled runtime)"
    )
    add("--engine", metavar="NAME", help=engine_help)
    profile_help = (
        "latency measured by s2d-profile; once for every model, or once for every engine (default: predicted from a datasheet)"
    )
    add("--profile", type=Path, metavar="FILE", action="append", default=[], help=profile_help)
    add("--fit", type=Path, metavar="FILE", help="written by s2d-plan fit: prices a model that was not profiled")


def _add_workload_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    batch_help = "sequences decoded together (default: 1; plans are made for 1, larger batches are in the answer)"
    add("--batch", type=int, default=1, metavar="SEQUENCES", help=batch_help)
    add("--prompt-tokens", type=int, metavar="TOKENS", help="length of a prompt (default: the evidence's)")
    output_help = "tokens to generate (default: the evidence's); with fewer, only the start of every traced text counts"
    add("--output-tokens", type=int, metavar="TOKENS", help=output_help)


def _run(args: argparse.Namespace, *, command: tuple[str, ...]) -> int:
    """Turn the flags into a request, and answer it."""
    if args.verb is not None and command[1] != args.verb:
        raise UserInputError(f"options before the verb {args.verb!r}: expected them after it. Put {args.verb!r} first.")
    match args.verb:
        case "export":
            answer_export(args)
        case "validate":
            answer_validation(answer_options(args), command=command)
        case "design":
            answer_design(design_flags(args))
        case "fit":
            answer_fit(fit_flags(args), answer_options(args), command=command)
        case _:
            _answer(_plan_flags(args, command))
    return EXIT_ANSWERED


def _plan_flags(args: argparse.Namespace, command: tuple[str, ...]) -> PlanFlags:
    """The request behind parsed flags."""
    from calibrate.inputs.requests import PlanRequest

    request = PlanRequest(
        target=args.target,
        draft=args.draft,
        draft_vocab=args.draft_vocab,
        trace=args.trace[0] if args.trace else None,
        prompts_split=args.prompts_split,
        category=args.category,
        profiles=tuple(args.profile),
        fit=args.fit,
        engine=args.engine,
        device=device_request(args),
        batch=args.batch,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
    )
    targets = () if args.targets is None else tuple(name.strip() for name in args.targets.split(","))
    return PlanFlags(
        request=request,
        traces=tuple(args.trace),
        targets=targets,
        by_category=args.by_category,
        answer=answer_options(args),
        command=command,
    )


def _answer(flags: PlanFlags) -> None:
    if flags.request.engine == "all":
        _answer_engines(flags)
    elif len(flags.traces) > 1:
        from calibrate.planning.choose_draft import have_one_target
        from calibrate.planning.make_portfolio import with_own_profiles

        requests = with_own_profiles([replace(flags.request, trace=path) for path in flags.traces])
        if have_one_target(requests):
            _answer_drafts(flags, requests)
        else:
            _answer_portfolio(flags, requests)
    elif flags.targets:
        _answer_portfolio(flags, [replace(flags.request, target=name) for name in flags.targets])
    elif flags.by_category:
        _answer_portfolio(flags, [flags.request])
    else:
        from calibrate.planning.make_plan import make_plan

        _print_plan(flags, make_plan(flags.request), flags.command)


def _answer_engines(flags: PlanFlags) -> None:
    """Plan for every engine, and put the plans side by side."""
    from calibrate.planning.plan_engines import command_for_engine, make_engine_plans
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.engine_plans import ENGINE_PLANS_FILE

    options = flags.answer
    plans = make_engine_plans(flags.request)
    command = command_for_engine(plans, flags.request, [word for word in flags.command if word != "--explain"])
    printed = replace(plans, next_command=command)
    print_answer(
        options,
        plans,
        ENGINE_PLANS_FILE,
        partial(make_provenance, argv=flags.command, inputs=plans.inputs),
        text=lambda: printed.explain() if options.explain else str(printed),
    )


def _answer_drafts(flags: PlanFlags, requests: Sequence[PlanRequest]) -> None:
    """Compare several drafts of one target, and plan with the fastest."""
    from calibrate.planning.choose_draft import plan_drafts
    from perfmodel.results.plan_text import drafts_blocks

    planned = plan_drafts(requests)
    fastest = planned[0]
    comparison = drafts_blocks([draft.plan for draft in planned])
    _print_plan(flags, fastest.plan, (PLAN, *_evidence_flags(fastest.request)), comparison)


def _evidence_flags(request: PlanRequest) -> list[str]:
    """The flags that name the evidence of one request among several."""
    evidence = [("--trace", request.trace), *(("--profile", path) for path in request.profiles), ("--fit", request.fit)]
    return [str(word) for flag, path in evidence if path is not None for word in (flag, path)]


def _print_plan(flags: PlanFlags, plan: Plan, command: Sequence[str], comparison: Sequence[Block] = ()) -> None:
    """Print and save a plan.

    Args:
        flags: of the command.
        plan: the result.
        command: the command line that makes this plan.
        comparison: what to print before the plan.
    """
    from calibrate.planning.suggest_after_plan import next_command
    from perfmodel.core.blocks import as_text
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.plan import PLAN_FILE

    options = flags.answer
    # The printed next command names the files of this machine, the saved one does not.
    repeated = [word for word in command if word != "--explain"]
    printed = replace(plan, next_command=next_command(plan, command=repeated, output=options.output))
    print_answer(
        options,
        plan,
        PLAN_FILE,
        partial(make_provenance, argv=command, inputs=plan.inputs),
        text=lambda: as_text([*comparison, *printed.blocks(explain=options.explain)]),
    )


def _answer_portfolio(flags: PlanFlags, requests: Sequence[PlanRequest]) -> None:
    """Plan for several targets or categories: a policy for each, and one for all."""
    from calibrate.planning.make_portfolio import by_category, by_target
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.portfolio import PORTFOLIO_FILE

    options = flags.answer
    portfolio = by_category(requests[0]) if flags.by_category else by_target(requests)
    portfolio = replace(portfolio, next_command=_command_for_part(flags, requests[0], portfolio.parts[0].name))
    print_answer(
        options,
        replace(portfolio, next_command=""),
        PORTFOLIO_FILE,
        partial(make_provenance, argv=flags.command, inputs=portfolio.inputs),
        text=lambda: portfolio.explain() if options.explain else str(portfolio),
    )


def _command_for_part(flags: PlanFlags, request: PlanRequest, part: str) -> str:
    """The command that plans for the first part of a portfolio alone."""
    command = [word for word in flags.command if word != "--explain"]
    if flags.by_category:
        words = [*(word for word in command if word != "--by-category"), "--category", part]
    elif flags.targets:
        words = [*without_flag(command, "--targets"), "--target", part]
    else:
        words = [PLAN, *_evidence_flags(request)]
    return shlex.join([*without_flag(words, "--output", "-o"), "-o", "plan.json"])
