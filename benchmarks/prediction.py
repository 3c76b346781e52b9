"""How well do predicted speedups match measured speedups?

For every target and sampling, the benchmark measures configurations (exits, thresholds at quantiles of the confidence, draft
lengths and stop rules) on evaluation prompts, each interleaved with plain decoding (A B B A). It predicts the same speedups
from a replayed trace and from pass times. Pass times are measured in the running loop on calibration prompts: the profiler's
whole grid first, then one of its runs before every measurement. The error is therefore that of the model, not that of a
machine that changed meanwhile. With --profile-first, the same number of profiling runs precedes all measurements.

Configurations are chosen from calibration evidence only. A configuration that needs an unprofiled pass has no price. If the
calibration prompts show this, it is skipped; if only the measurement shows it, it is not scored. Both cases count as
`num_unpriced` and are listed in the results file.

    error        predicted over measured speedup, minus one
    acceptance   replayed over measured tokens per round, minus one; 0 if all blocks are identical
    off path     the part of the error from replaying the text's own confidences after the first mistake of a block; "told" is
                 the same with a second trace that recorded the confidences there
    latency      the error if the rounds are known: the speedup priced from the passes that ran
    noise        plain decoding against itself, first against second visit, over the same period
    change       plain decoding against its own pass times; far from 0, the machine changed after it was profiled

Example: python benchmarks/prediction.py --quick
"""

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from calibrate.figures.plots import PredictedPoint, predicted_against_measured
from details.prediction_result import Outcome, Unpriced, outcome, outcome_table, priced_s, result_of
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command
from perfmodel.core.errors import OutOfDomain
from perfmodel.core.provenance import make_provenance
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.replay.replay import replay
from profiler.latency.pass_log import PassLog
from profiler.latency.profiling_job import profiling_runs
from profiler.machine.machine_facts import device_facts
from s2d.decoding.pair import Pair
from shared.common import finish, make_parser, median, use_one_thread
from shared.configurations import CAPS, configurations
from shared.interleaved import (
    SAMPLINGS,
    Models,
    Size,
    add_pair_flags,
    load_cpu_pair,
    make_job,
    measure_once,
    measured_models,
    record,
    warm_up_arms,
    with_long_texts,
)

NAME = "prediction"
SEED = 20260706
NUM_MISTAKES = 96
"""Draft mistakes per evaluated text after which the draft continues off the path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSize(Size):
    """Amount of measurement, and the profiling before it."""

    samplings: tuple[Sampling, ...]
    configs_per_pair: int
    first_runs: int | None
    """Profiling runs before the first measurement; None runs the whole grid once."""

    @property
    def num_measurements(self) -> int:
        """The number of measurements of one pair."""
        return self.num_repeats * self.num_prompts * self.configs_per_pair


FULL = PredictionSize(
    targets=("ref-target-16", "ref-target-32"),
    samplings=SAMPLINGS,
    configs_per_pair=12,
    calibration_prompts=60,
    num_prompts=6,
    num_repeats=3,
    max_new_tokens=96,
    first_runs=None,
)
QUICK = PredictionSize(
    targets=("ref-target-16",),
    samplings=(GREEDY,),
    configs_per_pair=6,
    calibration_prompts=6,
    num_prompts=3,
    num_repeats=2,
    max_new_tokens=64,
    first_runs=40,
)


def chosen_configurations(
    pair: str, trace: Trace, models: Models, *, number: int, seed: int
) -> tuple[list[Policy], list[Unpriced]]:
    """Configurations to measure, and those skipped because the calibration evidence cannot price them."""
    policies: list[Policy] = []
    unpriced: list[Unpriced] = []
    for policy in configurations(trace, seed):
        if len(policies) == number:
            break
        try:
            priced_s(replay(trace, policy), models)
        except OutOfDomain as err:
            unpriced.append(Unpriced(pair=pair, policy=policy, was_measured=False, reason=str(err)))
        else:
            policies.append(policy)
    return policies, unpriced


def outcomes_of_pair(
    pair: Pair, sampling: Sampling, size: PredictionSize, prompts_path: Path, *, profile_first: bool, seed: int
) -> tuple[list[Outcome], list[Unpriced]]:
    """Profile and measure one pair under one sampling, alternating, and predict the measured speedups."""
    name = f"{pair.target.geometry.name} {sampling.label}"
    new_job = partial(make_job, pair, sampling, max_new_tokens=size.max_new_tokens, draft_cap=max(CAPS), seed=SEED)
    calibration = new_job("calibration", prompts_path, num_prompts=size.calibration_prompts)
    evaluation = replace(new_job("evaluation", prompts_path, num_prompts=size.num_prompts), num_mistakes=NUM_MISTAKES)
    session, rng, log = evaluation.session(), np.random.default_rng(seed), PassLog()
    traces = (record(calibration, calibration.session()), record(evaluation, session))
    print_err(f"{name}: first pass times")
    profiling = profiling_runs(with_long_texts(calibration), log)
    for number, coverage in enumerate(profiling):
        if coverage.all_taken or number == size.first_runs:
            break
    if profile_first:
        deque(islice(profiling, size.num_measurements), maxlen=0)
    profiled = measured_models(log, pair, sampling)
    policies, unpriced = chosen_configurations(name, traces[0], profiled, number=size.configs_per_pair, seed=seed)
    arms = warm_up_arms(evaluation, session, policies)
    for repeat in range(size.num_repeats):
        print_err(f"{name}: repeat {repeat + 1} of {size.num_repeats}")
        measure_once(evaluation, session, policies, arms, rng, between=(lambda: None) if profile_first else profiling.__next__)
    models = measured_models(log, pair, sampling)
    outcomes: list[Outcome] = []
    for policy, pair_of_arms in zip(policies, arms, strict=True):
        try:
            outcomes.append(outcome(name, policy, pair_of_arms, traces, models))
        except OutOfDomain as err:
            unpriced.append(Unpriced(pair=name, policy=policy, was_measured=True, reason=str(err)))
    return outcomes, unpriced


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw the figure of README.md."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 5), layout="constrained")
    points = [
        PredictedPoint(
            pair=result.pair,
            predicted=result.predicted.speedup.value,
            measured=result.measured,
            measured_noise_frac=abs(result.half_frac) / 2,
        )
        for result in outcomes
    ]
    predicted_against_measured(points, axis, median_error_frac=median(abs(result.error_frac) for result in outcomes))
    figure.savefig(path, dpi=120)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    use_one_thread()
    size = QUICK if args.quick else FULL
    outcomes: list[Outcome] = []
    unpriced: list[Unpriced] = []
    for number, target in enumerate(args.target or size.targets):
        pair = load_cpu_pair(target, args.draft, args.exits)
        for sampling in size.samplings:
            seed = SEED + 10 * number + (sampling.rule != "greedy")
            pair_outcomes, pair_unpriced = outcomes_of_pair(
                pair, sampling, size, args.prompts, profile_first=args.profile_first, seed=seed
            )
            outcomes, unpriced = outcomes + pair_outcomes, unpriced + pair_unpriced
    facts = device_facts(pair.device)
    print_out(outcome_table(outcomes, unpriced))
    details = {"configs": [result.as_json for result in outcomes], "unpriced": [result.as_json for result in unpriced]}
    finish(
        NAME,
        quick=args.quick,
        result=result_of(outcomes, unpriced),
        provenance=make_provenance(libraries=("torch", "numpy"), device=facts.label, seed=SEED),
        details=details,
    )
    if args.figure is not None:  # last, because a changed figure makes the checkout dirty
        draw(outcomes, args.figure)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_pair_flags(parser)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw measured over predicted speedups to this file")
    parser.add_argument("--profile-first", action="store_true", help="measure all pass times before the speedups")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
