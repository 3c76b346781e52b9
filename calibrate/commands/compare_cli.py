"""`s2d-compare`: compare a plan with the report of its run.

Flags are parsed first; the modules that do the work are imported afterwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perfmodel.core.console import (
    EXIT_ANSWERED,
    AnswerOptions,
    add_common_flags,
    answer_options,
    make_parser,
    print_answer,
    run_command,
)

COMPARE = "s2d-compare"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareFlags:
    """The flags of `s2d-compare`."""

    plan: Path
    report: Path
    profiles: tuple[Path, ...]
    fit: Path | None


def main_compare(argv: Sequence[str] | None = None) -> int:
    """`s2d-compare`: the error of a plan, split into acceptance and latency."""
    command = (COMPARE, *(sys.argv[1:] if argv is None else argv))
    return run_command(_parser(), argv, partial(_run, command=command))


def _parser() -> argparse.ArgumentParser:
    description = (
        "Compare a plan with a run of it: the error of its speedup, split into acceptance and latency, and what to measure\n"
        "again."
    )
    parser = make_parser(COMPARE, description, "s2d-compare --plan plan.json --report report.json")
    add = parser.add_argument
    add("--plan", type=Path, required=True, metavar="FILE", help="the plan, written by s2d-plan")
    add("--report", type=Path, required=True, metavar="FILE", help="the report of its run, written by s2d-run --check")
    profile_help = "a profile that the plan was made from; give all to price every shape of a pass (default: none)"
    add("--profile", type=Path, metavar="FILE", action="append", default=[], help=profile_help)
    add("--fit", type=Path, metavar="FILE", help="the fit that the plan was made from, if any")
    add_common_flags(parser, result="comparison")
    return parser


def _run(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    flags = CompareFlags(plan=args.plan, report=args.report, profiles=tuple(args.profile), fit=args.fit)
    answer_comparison(flags, answer_options(args), command=command)
    return EXIT_ANSWERED


def answer_comparison(flags: CompareFlags, options: AnswerOptions, *, command: Sequence[str]) -> None:
    """Compare a plan with the report of its run."""
    from calibrate.planning.compare import compare
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.residuals import RESIDUALS_FILE

    residuals = compare(flags.plan, flags.report, flags.profiles, flags.fit)
    print_answer(
        options,
        residuals,
        RESIDUALS_FILE,
        partial(make_provenance, argv=command, inputs=residuals.inputs),
        text=lambda: residuals.explain() if options.explain else str(residuals),
    )
