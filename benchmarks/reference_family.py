"""How well does the shipped draft agree with the shipped targets, and how informative is its confidence?

For both targets, greedily and sampled, a trace is recorded on prompts from files of this Python's standard library that were
in no model's training data. Some of these prompts are shipped. Per exit:

    agreement   share of positions at which the exit predicts the target's token
    accepted    drafted and accepted tokens per round at length 6, without the bonus token, by replay
    ECE         expected calibration error of the raw confidence, and of a curve on prompts that it was not fitted to
    AUC         probability that an agreed position has a higher confidence than a rejected one

Text that repeats itself is accepted more easily. The share of distinct 6-grams next to every figure measures repetition.

Example: python benchmarks/reference_family.py --quick
"""

import argparse
import math
import sys
from dataclasses import dataclass

from calibrate.fit.fit_acceptance import ExitCalibration, accepted_at_lengths, calibrate_exits
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import format_frac
from s2d.training.corpus import held_out_prompts
from shared.common import finish, make_parser, use_one_thread
from shared.interleaved import SAMPLINGS, load_cpu_pair, make_job_from_prompts, record

NAME = "reference_family"
SEED = 20260712
TARGETS = ("ref-target-16", "ref-target-32")
PROMPTS_PER_CATEGORY = 40
MAX_NEW_TOKENS = 128
DRAFT_TOKENS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitFigures:
    """The figures of one exit with one target under one sampling."""

    target: str
    sampling: str
    calibration: ExitCalibration
    accepted_per_round: float
    distinct_6gram_frac: float

    @property
    def as_json(self) -> dict[str, object]:
        """All figures by field name."""
        calibration = self.calibration
        return {
            "target": self.target,
            "sampling": self.sampling,
            "exit_layer": calibration.exit_layer,
            "agreement_frac": calibration.agreement_frac,
            "accepted_per_round": self.accepted_per_round,
            "ece_before_frac": calibration.ece_before_frac,
            "ece_after_frac": calibration.ece_after_frac,
            "auc": calibration.auc,
            "distinct_6gram_frac": self.distinct_6gram_frac,
        }


def figures_of(trace: Trace) -> list[ExitFigures]:
    """The figures of every exit."""
    prompts = trace.header.prompts
    return [
        ExitFigures(
            target=trace.header.target.name,
            sampling=trace.header.sampling.label,
            calibration=exit,
            accepted_per_round=accepted_at_lengths(trace, exit.exit_layer, [DRAFT_TOKENS])[0].value,
            distinct_6gram_frac=math.fsum(prompt.distinct_6gram_frac for prompt in prompts) / len(prompts),
        )
        for exit in calibrate_exits(trace)
    ]


def figures_table(figures: list[ExitFigures]) -> str:
    """A row per exit."""
    rows = [
        (
            row.target,
            row.sampling,
            str(row.calibration.exit_layer),
            format_frac(row.calibration.agreement_frac),
            f"{row.accepted_per_round:.2f}",
            format_frac(row.calibration.ece_before_frac),
            format_frac(row.calibration.ece_after_frac),
            "" if row.calibration.auc is None else f"{row.calibration.auc:.2f}",
            format_frac(row.distinct_6gram_frac),
        )
        for row in figures
    ]
    headers = ("target", "sampling", "exit", "agreement", "accepted of 6", "ECE raw", "ECE curve", "AUC", "distinct 6-grams")
    return table(rows, headers=headers, align="llrrrrrrr")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    use_one_thread()
    prompts = held_out_prompts(4 if args.quick else PROMPTS_PER_CATEGORY)
    figures: list[ExitFigures] = []
    for target in TARGETS:
        pair = load_cpu_pair(target)
        for sampling in SAMPLINGS:
            print_err(f"{target}, {sampling.label}")
            job = make_job_from_prompts(
                pair, sampling, prompts, max_new_tokens=MAX_NEW_TOKENS, draft_cap=DRAFT_TOKENS, seed=SEED
            )
            figures += figures_of(record(job, job.session()))
    print_out(figures_table(figures))
    finish(
        NAME,
        quick=args.quick,
        result={"num_prompts": len(prompts), "exits": [row.as_json for row in figures]},
        provenance=make_provenance(libraries=("torch",), seed=SEED),
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
