"""How well does the shipped draft agree with the shipped targets, and do its confidences mean anything?

For both targets, greedily and sampled, a trace is taken of prompts cut from files of this Python's standard library that no
model was trained on, the shipped ones among them. Per exit:

    agreement   share of positions at which the exit names the token that the target chose
    accepted    drafted and kept tokens per round at length 6, bonus not counted, by replay
    ECE         expected calibration error of the bare confidence, and of a curve judged on prompts it was not fitted to
    AUC         chance that an agreed position has more confidence than a refused one

Text that repeats itself is accepted more easily: the share of distinct 6-grams stands beside every figure.

Example: python benchmarks/reference_family.py --quick
"""

import argparse
import math
import sys
from dataclasses import dataclass

from calibrate.fit.fit_acceptance import ExitCalibration, accepted_at_lengths, calibrate_exits
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.core.units import format_frac
from s2d.decoding.pair import PairRequest, load_pair
from s2d.training.corpus import held_out_prompts
from shared.common import finish, make_parser, use_one_thread
from shared.interleaved import SAMPLINGS, make_job_from_prompts, record

NAME = "reference_family"
SEED = 20260712
TARGETS = ("ref-target-16", "ref-target-32")
PROMPTS_PER_CATEGORY = 40
MAX_NEW_TOKENS = 128
DRAFT_TOKENS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitFigures:
    """One exit against one target under one sampling."""

    target: str
    sampling: str
    calibration: ExitCalibration
    accepted_per_round: float
    distinct_6gram_frac: float

    @property
    def as_json(self) -> dict[str, object]:
        """All figures under the field's names."""
        found = self.calibration
        return {
            "target": self.target,
            "sampling": self.sampling,
            "exit_layer": found.exit_layer,
            "agreement_frac": found.agreement_frac,
            "accepted_per_round": self.accepted_per_round,
            "ece_before_frac": found.ece_before_frac,
            "ece_after_frac": found.ece_after_frac,
            "auc": found.auc,
            "distinct_6gram_frac": self.distinct_6gram_frac,
        }


def figures_of(trace: Trace) -> list[ExitFigures]:
    """A line per exit."""
    prompts = trace.header.prompts
    return [
        ExitFigures(
            target=trace.header.target.name,
            sampling=trace.header.sampling.label,
            calibration=found,
            accepted_per_round=accepted_at_lengths(trace, found.exit_layer, [DRAFT_TOKENS])[0].value,
            distinct_6gram_frac=math.fsum(prompt.distinct_6gram_frac for prompt in prompts) / len(prompts),
        )
        for found in calibrate_exits(trace)
    ]


def figures_table(figures: list[ExitFigures]) -> str:
    """The figures, aligned."""
    rows = [
        (
            one.target,
            one.sampling,
            str(one.calibration.exit_layer),
            format_frac(one.calibration.agreement_frac),
            f"{one.accepted_per_round:.2f}",
            format_frac(one.calibration.ece_before_frac),
            format_frac(one.calibration.ece_after_frac),
            "" if one.calibration.auc is None else f"{one.calibration.auc:.2f}",
            format_frac(one.distinct_6gram_frac),
        )
        for one in figures
    ]
    headers = ("target", "sampling", "exit", "agreement", "accepted of 6", "ECE bare", "ECE curve", "AUC", "distinct 6-grams")
    return table(rows, headers=headers, align="llrrrrrrr")


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    use_one_thread()
    prompts = held_out_prompts(4 if args.quick else PROMPTS_PER_CATEGORY)
    figures: list[ExitFigures] = []
    for target in TARGETS:
        pair = load_pair(PairRequest(target=target, draft="ref-draft", dtype="fp32", device="cpu"))
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
        result={"num_prompts": len(prompts), "exits": [one.as_json for one in figures]},
        libraries=("torch",),
        seed=SEED,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
