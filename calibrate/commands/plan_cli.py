"""`s2d-plan` and `s2d-compare`: parse first, import what does the work after."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.commands.flags import add_device_flags, device_request
from calibrate.commands.law_commands import PLAN, design_parser, fit_parser, run_design, run_fit, run_validate, validate_parser
from perfmodel.core.console import (
    EXIT_ANSWERED,
    add_common_flags,
    make_parser,
    print_answer,
    run_command,
    without_flag,
)
from perfmodel.core.errors import UserInputError

if TYPE_CHECKING:
    from calibrate.inputs.requests import PlanRequest
    from perfmodel.results.plan import Plan

COMPARE = "s2d-compare"


def main_plan(argv: Sequence[str] | None = None) -> int:
    """`s2d-plan`: the configuration to run, and what it is predicted to do; its verbs are about the latency law alone."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["validate"]:
        return run_command(validate_parser(), given[1:], partial(run_validate, command=(PLAN, *given)))
    if given[:1] == ["design"]:
        return run_command(design_parser(), given[1:], run_design)
    if given[:1] == ["fit"]:
        return run_command(fit_parser(), given[1:], partial(run_fit, command=(PLAN, *given)))
    return run_command(_plan_parser(), given, partial(_plan, command=(PLAN, *given)))


def main_compare(argv: Sequence[str] | None = None) -> int:
    """`s2d-compare`: predicted beside measured, and why they differ."""
    return run_command(_compare_parser(), argv, partial(_compare, command=_command_line(COMPARE, argv)))


def _command_line(prog: str, argv: Sequence[str] | None) -> tuple[str, ...]:
    return (prog, *(sys.argv[1:] if argv is None else argv))


def _plan_parser() -> argparse.ArgumentParser:
    description = (
        "Predict how fast a nested draft makes a target, and choose its exits, thresholds and draft length.\nNeeds no GPU.\n\n"
        "s2d-plan validate  holds the latency law against published speeds\n"
        "s2d-plan design    draft shapes of one size, and the acceptance that each needs\n"
        "s2d-plan fit       the law's coefficients from profiles, to price models nobody ran"
    )
    parser = make_parser(PLAN, description, "s2d-plan --target llama-70b --device h100 -o plan.json")
    _add_evidence_flags(parser.add_argument_group("models and evidence"))
    add_device_flags(parser.add_argument_group("device (with --profile: the profile's)"))
    _add_workload_flags(parser.add_argument_group("workload"))
    add_common_flags(parser, result="plan")
    return parser


def _add_evidence_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--target",
        metavar="NAME",
        help="a known model (docs/models.md), a config.json or its folder, or org/name on the Hugging Face hub",
    )
    add(
        "--targets", metavar="NAMES", help="several, with commas between: one draft with a policy for each, against one for all"
    )
    add("--draft", metavar="NAME", help="a draft whose acceptance is known (default: the trace's, or the one in the box)")
    add("--draft-vocab", type=int, metavar="TOKENS", help="what if its LM head covered only the most frequent (default: all)")
    trace_help = (
        "acceptance recorded by s2d-profile; once for every target of one draft, or for every draft of one target (default: "
        "published evidence in the box)"
    )
    add("--trace", type=Path, metavar="FILE", action="append", default=[], help=trace_help)
    split_help = "plan on one half of the trace's prompts, and leave the other to test it (default: all)"
    add("--prompts-split", choices=("all", "calibration", "evaluation"), default="all", help=split_help)
    add("--category", metavar="NAME", help="plan for the trace's prompts of one category only (default: all)")
    add("--by-category", action="store_true", help="a policy for every category of the trace's prompts, against one for all")
    profile_help = "latency measured by s2d-profile; once for every model (default: a datasheet)"
    add("--profile", type=Path, metavar="FILE", action="append", default=[], help=profile_help)
    add("--fit", type=Path, metavar="FILE", help="written by s2d-plan fit: prices a model that was not profiled")


def _add_workload_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch", type=int, default=1, metavar="SEQUENCES", help="decoded at a time (default: 1, and only 1 is predicted)")
    add("--prompt-tokens", type=int, metavar="TOKENS", help="length of a prompt (default: the evidence's)")
    add(
        "--output-tokens",
        type=int,
        metavar="TOKENS",
        help="tokens to generate (default: the evidence's); of fewer, the first of every traced text count",
    )


def _plan(args: argparse.Namespace, *, command: Sequence[str]) -> int:
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
        device=device_request(args),
        batch=args.batch,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
    )
    if args.targets is None and not args.by_category and len(args.trace) <= 1:
        return _answer_for_one(args, request, command)
    _check_many(args)
    if len(args.trace) > 1:
        from calibrate.planning.choose_draft import have_one_target
        from calibrate.planning.make_portfolio import with_own_profiles

        requests = with_own_profiles([replace(request, trace=path) for path in args.trace])
        return _answer_for_drafts(args, requests) if have_one_target(requests) else _answer_for_many(args, requests, command)
    return _answer_for_many(args, [request], command)


def _answer_for_one(args: argparse.Namespace, request: PlanRequest, command: Sequence[str]) -> int:
    from calibrate.planning.make_plan import make_plan

    return _tell(args, make_plan(request), command)


def _answer_for_drafts(args: argparse.Namespace, requests: Sequence[PlanRequest]) -> int:
    from calibrate.planning.choose_draft import plan_drafts
    from calibrate.text.drafts_text import drafts_text

    planned = plan_drafts(requests)
    fastest = planned[0]
    table = drafts_text([one.plan for one in planned])
    return _tell(args, fastest.plan, [PLAN, *_evidence_flags(fastest.request)], before=f"{table}\n\n")


def _evidence_flags(request: PlanRequest) -> list[str]:
    """What to say for the evidence of one of several requests."""
    evidence = [("--trace", request.trace), *(("--profile", path) for path in request.profiles), ("--fit", request.fit)]
    return [str(word) for flag, path in evidence if path is not None for word in (flag, path)]


def _tell(args: argparse.Namespace, plan: Plan, command: Sequence[str], before: str = "") -> int:
    from calibrate.planning.suggest_after_plan import next_command
    from calibrate.text.plan_text import plan_text
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.plan import plan_file_text, write_plan

    inputs: dict[str, str] = {evidence.role: evidence.sha256 for evidence in plan.evidence if evidence.sha256 is not None}
    provenance = cache(partial(make_provenance, argv=command, inputs=inputs))  # asks git, which takes time that text need not
    here = replace(plan, next_command=next_command(plan, command=command, output=args.output))
    print_answer(
        args,
        write=lambda path: write_plan(path, plan, provenance()),
        file_text=lambda: plan_file_text(plan, provenance()),
        text=lambda: before + plan_text(here, asked_target=args.target or plan.target.name),
    )
    return EXIT_ANSWERED


def _answer_for_many(args: argparse.Namespace, requests: Sequence[PlanRequest], command: Sequence[str]) -> int:
    from calibrate.planning.make_portfolio import by_category, by_target
    from calibrate.text.portfolio_text import portfolio_text
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.portfolio import portfolio_file_text, write_portfolio

    first = requests[0]
    if args.by_category:
        portfolio = by_category(first)
        following = [*(word for word in command if word != "--by-category"), "--category", portfolio.parts[0].name]
    elif args.trace:
        portfolio = by_target(requests)
        following = [PLAN, *_evidence_flags(first)]
    else:
        portfolio = by_target([replace(first, target=name.strip()) for name in args.targets.split(",")])
        following = [*without_flag(command, "--targets"), "--target", portfolio.parts[0].target]
    if args.output is not None:
        following = without_flag(following, "--output", "-o")
    inputs = {
        f"{evidence.role} of {part.name}": evidence.sha256
        for part in portfolio.parts
        for evidence in part.evidence
        if evidence.sha256 is not None
    }
    provenance = make_provenance(argv=command, inputs=inputs)
    print_answer(
        args,
        write=lambda path: write_portfolio(path, portfolio, provenance),
        file_text=lambda: portfolio_file_text(portfolio, provenance),
        text=lambda: portfolio_text(portfolio, next_command=shlex.join([*following, "-o", "plan.json"])),
    )
    return EXIT_ANSWERED


def _check_many(args: argparse.Namespace) -> None:
    """Flags that say two different things of what to plan for."""
    if args.by_category and (args.targets is not None or len(args.trace) > 1):
        raise UserInputError("--by-category splits the prompts of one target: leave --targets and further --trace out.")
    if args.by_category and args.category is not None:
        raise UserInputError("--by-category plans for every category, --category for one: give one of the two.")
    if args.targets is not None and args.trace:
        raise UserInputError("a trace knows its target: leave --targets out, and give --trace once for every target.")
    if args.target is not None and not args.by_category:
        given = "--targets" if args.targets is not None else "several traces"
        raise UserInputError(f"--target names one target, {given} several: leave --target out.")


def _compare_parser() -> argparse.ArgumentParser:
    description = (
        "Hold a plan against what running it measured: the error of its acceptance and the error of its seconds\n"
        "apart, and what to measure again."
    )
    parser = make_parser(COMPARE, description, "s2d-compare --plan plan.json --report report.json")
    parser.add_argument("--plan", type=Path, required=True, metavar="FILE", help="written by s2d-plan")
    parser.add_argument("--report", type=Path, required=True, metavar="FILE", help="written by s2d-run")
    profile_help = "a profile the plan was made with; give them all to price each measured pass by its shape"
    parser.add_argument("--profile", type=Path, metavar="FILE", action="append", default=[], help=profile_help)
    fit_help = "the fit it was made with, where it priced a model by one"
    parser.add_argument("--fit", type=Path, metavar="FILE", help=fit_help)
    add_common_flags(parser, result="residuals")
    return parser


def _compare(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    from calibrate.planning.compare import compare
    from calibrate.text.residuals_text import residuals_text
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.residuals import residuals_file_text, write_residuals

    residuals = compare(args.plan, args.report, args.profile, args.fit)
    provenance = make_provenance(argv=command, inputs={"plan": residuals.plan_sha256, "report": residuals.report_sha256})
    print_answer(
        args,
        write=lambda path: write_residuals(path, residuals, provenance),
        file_text=lambda: residuals_file_text(residuals, provenance),
        text=lambda: residuals_text(residuals),
    )
    return EXIT_ANSWERED
