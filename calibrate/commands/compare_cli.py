"""`s2d-compare`: compare a plan with the report of its run, or with the metrics of the engine that served it.

Flags are parsed first; the modules that do the work are imported afterwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from perfmodel.core.console import (
    EXIT_ANSWERED,
    AnswerOptions,
    add_common_flags,
    answer_options,
    make_parser,
    print_answer,
    run_command,
)
from perfmodel.core.errors import UserInputError

if TYPE_CHECKING:
    from perfmodel.results.residuals import Residuals

COMPARE = "s2d-compare"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareFlags:
    """The flags of `s2d-compare`."""

    plan: Path
    report: Path | None
    profiles: tuple[Path, ...] = ()
    fit: Path | None = None
    engine_metrics: tuple[Path, ...] = ()
    """Given instead of a report."""
    plain_metrics: tuple[Path, ...] = ()
    engine: str | None = None
    file_format: str | None = None

    def __post_init__(self) -> None:
        if (self.report is None) == (not self.engine_metrics):
            raise UserInputError("expected either --report or --engine-metrics. Give the one that was measured.")
        if self.report is None:
            return
        for flag, value in (("--plain-metrics", self.plain_metrics), ("--engine", self.engine), ("--format", self.file_format)):
            if value:
                raise UserInputError(f"{flag} belongs to --engine-metrics, expected it without --report. Leave one out.")


def main_compare(argv: Sequence[str] | None = None) -> int:
    """`s2d-compare`: the error of a plan, split into acceptance and latency."""
    command = (COMPARE, *(sys.argv[1:] if argv is None else argv))
    return run_command(_parser(), argv, partial(_run, command=command))


def _parser() -> argparse.ArgumentParser:
    description = (
        "Compare a plan with a run of it: the error of its speedup, split into acceptance and latency, and what to measure\n"
        "again. The run is a report of s2d-run, or the metrics of the engine that served the plan."
    )
    parser = make_parser(COMPARE, description, "s2d-compare --plan plan.json --report report.json")
    add = parser.add_argument
    add("--plan", type=Path, required=True, metavar="FILE", help="the plan, written by s2d-plan")
    add("--report", type=Path, metavar="FILE", help="the report of its run, written by s2d-run --check")
    metrics_help = (
        "instead of a report, what the engine or its benchmark tool wrote: JSON, JSON lines, or one or two snapshots of "
        "/metrics, the earlier first"
    )
    add("--engine-metrics", type=Path, metavar="FILE", nargs="+", default=[], help=metrics_help)
    profile_help = "a profile that the plan was made from; give all to price every shape of a pass (default: none)"
    add("--profile", type=Path, metavar="FILE", action="append", default=[], help=profile_help)
    add("--fit", type=Path, metavar="FILE", help="the fit that the plan was made from, if any")
    plain_help = "the same for plain decoding of the same prompts; without it, only the acceptance is compared (default: none)"
    add("--plain-metrics", type=Path, metavar="FILE", nargs="+", default=[], help=plain_help)
    add("--engine", metavar="NAME", help="the engine that ran, where its metrics do not name it (s2d-engines list)")
    add("--format", metavar="NAME", dest="file_format", help="format of the metrics (default: recognised by their content)")
    add_common_flags(parser, result="comparison")
    return parser


def _run(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    flags = CompareFlags(
        plan=args.plan,
        report=args.report,
        profiles=tuple(args.profile),
        fit=args.fit,
        engine_metrics=tuple(args.engine_metrics),
        plain_metrics=tuple(args.plain_metrics),
        engine=args.engine,
        file_format=args.file_format,
    )
    answer_comparison(flags, answer_options(args), command=command)
    return EXIT_ANSWERED


def answer_comparison(flags: CompareFlags, options: AnswerOptions, *, command: Sequence[str]) -> None:
    """Compare a plan with its run."""
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.residuals import RESIDUALS_FILE

    residuals = _compared(flags)
    print_answer(
        options,
        residuals,
        RESIDUALS_FILE,
        partial(make_provenance, argv=command, inputs=residuals.inputs),
        text=lambda: residuals.explain() if options.explain else str(residuals),
    )


def _compared(flags: CompareFlags) -> Residuals:
    from calibrate.engine_metrics.read_engine_metrics import read_engine_metrics
    from calibrate.planning.compare import compare
    from perfmodel.results.plan import PLAN_FILE

    if flags.report is not None:
        return compare(flags.plan, flags.report, flags.profiles, flags.fit)
    plan = PLAN_FILE.read(flags.plan)
    report = read_engine_metrics(
        flags.engine_metrics,
        flags.plain_metrics,
        engine=flags.engine,
        file_format=flags.file_format,
        policy=plan.record.policy,
    )
    return compare(plan, profiles=flags.profiles, fit=flags.fit, engine_metrics=report)
