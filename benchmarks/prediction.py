"""Is the predicted speedup the measured one?

For every pair of target and sampling, configurations (exit subsets, thresholds on quantiles of confidence, lengths, stop
rules) are measured on evaluation prompts, each interleaved with plain decoding (A B B A), and predicted from the replay of a
trace and from pass times. These are taken in situ on calibration prompts: the profiler's first round over its grid before,
then one of its turns before every measurement, so that the error is the model's and not that of a machine that changed
meanwhile; with --profile-first as many turns are taken before anything is measured.

    error        predicted over measured speedup, less one
    acceptance   replayed over measured tokens per round, less one: 0 when every block is the same
    latency      the same speedup priced from the passes that really ran: what is left when acceptance is known
    noise        plain decoding against itself, first against second visit, over the same stretch of time
    change       plain decoding against its own pass times: far from 0, the machine was not the one profiled

Example: python benchmarks/prediction.py --quick
"""

import argparse
import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from arms import SAMPLINGS, Arm, Models, job_of, measure_once, models_of, record, speedup_of, warmed_up
from common import finish, make_parser, median, one_thread, quantile
from configurations import CAPS, configurations

from calibrate.plots import PredictedPoint, predicted_against_measured
from perfmodel.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.errors import OutOfDomain
from perfmodel.estimate import Speedup, estimate, pass_seconds
from perfmodel.policy import ExitPolicy
from perfmodel.replay import block_lengths, replay
from perfmodel.rounds import RoundStats, sum_rounds
from perfmodel.sampling import GREEDY, Sampling
from perfmodel.trace import AcceptanceTrace
from perfmodel.units import Seconds, format_signed_frac, format_speedup
from profiler.device import device_facts
from profiler.job import turns_of
from profiler.pass_log import PassLog
from s2d.pair import Pair, load_pair
from s2d.prompts import FAMILY_PROMPTS

NAME = "prediction"
SEED = 20260706
CALIBRATION_TOKENS = 128
"""More than is written in any evaluation, so that no backlog is longer than those profiled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much to measure."""

    targets: tuple[str, ...]
    samplings: tuple[Sampling, ...]
    configs_per_pair: int
    calibration_prompts: int
    num_prompts: int
    num_repeats: int
    max_new_tokens: int
    first_turns: int | None
    """Of the profiler, before anything is measured; None is its grid once."""

    @property
    def num_measurements(self) -> int:
        """Of one pair: each configuration and prompt as often as is repeated."""
        return self.num_repeats * self.num_prompts * self.configs_per_pair


FULL = Size(
    targets=("ref-target-16", "ref-target-32"),
    samplings=SAMPLINGS,
    configs_per_pair=10,
    calibration_prompts=60,
    num_prompts=6,
    num_repeats=3,
    max_new_tokens=96,
    first_turns=None,
)
QUICK = Size(
    targets=("ref-target-16",),
    samplings=(GREEDY,),
    configs_per_pair=6,
    calibration_prompts=6,
    num_prompts=3,
    num_repeats=2,
    max_new_tokens=64,
    first_turns=40,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One configuration, predicted and measured."""

    pair: str
    policy: ExitPolicy
    predicted: Speedup
    planned: Speedup
    """From the calibration prompts' trace: what a plan would have said."""
    measured: float
    from_measured_rounds: float
    """The speedup priced from the passes that really ran."""
    acceptance_error_frac: float
    num_other_blocks: int
    """Prompts of which a block accepted another number of tokens than replayed."""
    noise_frac: float
    """Plain decoding, first over second visit, less one."""
    plain_change_frac: float
    """Plain seconds when measured over those of the profile, less one: how much the machine itself changed."""
    half_frac: float
    """Measured speedup of the first over that of the second visits, less one: twice the error of their mean."""

    @property
    def error_frac(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted.speedup.value / self.measured - 1

    @property
    def latency_error_frac(self) -> float:
        """The same, acceptance known."""
        return self.from_measured_rounds / self.measured - 1

    @property
    def as_json(self) -> dict[str, str | float]:
        """What was said and what was found."""
        said = self.predicted.speedup
        return {
            "pair": self.pair,
            "policy": self.policy.label,
            "predicted_speedup": said.value,
            "predicted_low": said.low,
            "predicted_high": said.high,
            "planned_speedup": self.planned.speedup.value,
            "measured_speedup": self.measured,
            "speedup_noise_frac": abs(self.half_frac) / 2,
            "latency_error_frac": self.latency_error_frac,
            "acceptance_error_frac": self.acceptance_error_frac,
        }


def outcome(
    pair: str, policy: ExitPolicy, arms: tuple[Arm, Arm], traces: tuple[AcceptanceTrace, AcceptanceTrace], models: Models
) -> Outcome:
    """Compare one configuration's measurement with its prediction.

    Args:
        pair: its name.
        policy: the configuration.
        arms: plain and speculative, as measured on the evaluation prompts.
        traces: of the calibration and of the evaluation prompts.
        models: seconds of the draft and of the target, from the calibration prompts.
    """
    plain, speculative = arms
    planned, predicted = (estimate(*models, replay(trace, policy), replay(trace, None)) for trace in traces)
    replayed = sum_rounds(replay(traces[1], policy))
    ran, ran_plain = speculative.all_rounds, plain.all_rounds
    expected = block_lengths(traces[1], policy)
    return Outcome(
        pair=pair,
        policy=policy,
        predicted=predicted,
        planned=planned,
        measured=speedup_of(plain, speculative),
        from_measured_rounds=ran.num_tokens / _priced_s(ran, models) / (ran_plain.num_tokens / _priced_s(ran_plain, models)),
        acceptance_error_frac=replayed.tokens_per_round / ran.tokens_per_round - 1,
        num_other_blocks=sum(_accepted(blocks) != _accepted(expected[i]) for i, blocks in speculative.blocks.items()),
        noise_frac=plain.visits_s[0] / plain.visits_s[1] - 1,
        plain_change_frac=sum(plain.visits_s) / plain.num_runs * len(plain.rounds) / _priced_s(ran_plain, models) - 1,
        half_frac=speedup_of(plain, speculative, [0]) / speedup_of(plain, speculative, [1]) - 1,
    )


def _accepted(blocks: Sequence[tuple[int, int]]) -> list[int]:
    """Accepted tokens block by block: exact, while what was drafted after a mismatch may differ."""
    return [accepted for _, accepted in blocks]


def is_priced(policy: ExitPolicy, traces: Sequence[AcceptanceTrace], models: Models) -> bool:
    """Whether the profile has met every pass that the policy needs; a plan leaves out what it cannot price."""
    try:
        for trace in traces:
            _priced_s(sum_rounds(replay(trace, policy)), models)
    except OutOfDomain:
        return False
    return True


def _priced_s(rounds: RoundStats, models: Models) -> Seconds:
    return math.fsum(pass_seconds(*models, rounds).values())


def outcomes_of_pair(
    pair: Pair, sampling: Sampling, size: Size, prompts_path: Path, *, profile_first: bool, seed: int
) -> list[Outcome]:
    """Profile and measure one pair under one sampling, in turns, and predict what was measured."""
    name = f"{pair.target.geometry.name} {sampling.label}"
    job = partial(job_of, pair, sampling, draft_cap=max(CAPS), seed=SEED)
    calibration = job("calibration", prompts_path, num_prompts=size.calibration_prompts, max_new_tokens=CALIBRATION_TOKENS)
    evaluation = job("evaluation", prompts_path, num_prompts=size.num_prompts, max_new_tokens=size.max_new_tokens)
    session, rng, log = evaluation.session(), np.random.default_rng(seed), PassLog()
    traces = (record(calibration, calibration.session()), record(evaluation, session))
    print_err(f"{name}: first pass times")
    turns = turns_of(calibration, log)
    for number, coverage in enumerate(turns):
        if coverage.all_seen or number == size.first_turns:
            break
    if profile_first:
        deque(islice(turns, size.num_measurements), maxlen=0)
    models = models_of(log, calibration)
    priced = (policy for policy in configurations(traces[0], seed) if is_priced(policy, traces, models))
    policies = list(islice(priced, size.configs_per_pair))
    arms = warmed_up(evaluation, session, policies)
    for repeat in range(size.num_repeats):
        print_err(f"{name}: repeat {repeat + 1} of {size.num_repeats}")
        measure_once(evaluation, session, policies, arms, rng, between=(lambda: None) if profile_first else turns.__next__)
    models = models_of(log, calibration)
    return [outcome(name, policy, pair_of_arms, traces, models) for policy, pair_of_arms in zip(policies, arms, strict=True)]


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """A line per configuration."""
    rows = [
        (
            one.pair,
            one.policy.label,
            format_speedup(one.predicted.speedup.value),
            format_speedup(one.measured),
            format_signed_frac(one.error_frac),
            format_signed_frac(one.acceptance_error_frac),
            format_signed_frac(one.latency_error_frac),
            format_signed_frac(one.noise_frac),
        )
        for one in outcomes
    ]
    headers = ("pair", "configuration", "predicted", "measured", "error", "acceptance", "latency", "noise")
    return table(rows, headers=headers, align="llrrrrrr")


def result_of(outcomes: Sequence[Outcome]) -> dict[str, float | int]:
    """The figures of DESIGN §9, and what explains them."""
    errors = [abs(one.error_frac) for one in outcomes]
    return {
        "num_configs": len(outcomes),
        "median_abs_error_frac": median(errors),
        "p95_abs_error_frac": quantile(errors, 0.95),
        "worst_abs_error_frac": max(errors),
        "mean_error_frac": math.fsum(one.error_frac for one in outcomes) / len(outcomes),
        "acceptance_error_frac": max(abs(one.acceptance_error_frac) for one in outcomes),
        "num_prompts_with_other_blocks": sum(one.num_other_blocks for one in outcomes),
        "latency_error_frac": median(abs(one.latency_error_frac) for one in outcomes),
        "interval_coverage_frac": _coverage([one.predicted for one in outcomes], outcomes),
        "planned_interval_coverage_frac": _coverage([one.planned for one in outcomes], outcomes),
        "plain_change_frac": median(abs(one.plain_change_frac) for one in outcomes),
        "noise_frac": median(abs(one.noise_frac) for one in outcomes),
        "speedup_noise_frac": median(abs(one.half_frac) / 2 for one in outcomes),
    }


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """The figure of README.md."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 5), layout="constrained")
    points = [
        PredictedPoint(
            pair=one.pair,
            predicted=one.predicted.speedup.value,
            measured=one.measured,
            measured_noise_frac=abs(one.half_frac) / 2,
        )
        for one in outcomes
    ]
    predicted_against_measured(points, axis, median_error_frac=median(abs(one.error_frac) for one in outcomes))
    figure.savefig(path, dpi=120)


def _coverage(said: Sequence[Speedup], outcomes: Sequence[Outcome]) -> float:
    """Share of the configurations whose measured speedup lies in the interval that was said."""
    inside = [one.speedup.low <= found.measured <= one.speedup.high for one, found in zip(said, outcomes, strict=True)]
    return sum(inside) / len(inside)


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    one_thread()
    size = QUICK if args.quick else FULL
    prompts = args.prompts or FAMILY_PROMPTS
    outcomes: list[Outcome] = []
    for number, target in enumerate(args.target or size.targets):
        pair = load_pair(target, args.draft, "fp32", "cpu")
        for sampling in size.samplings:
            seed = SEED + 10 * number + (sampling.rule != "greedy")
            outcomes += outcomes_of_pair(pair, sampling, size, prompts, profile_first=args.profile_first, seed=seed)
    facts = device_facts(pair.device)
    print_out(outcome_table(outcomes))
    if args.figure is not None:
        draw(outcomes, args.figure)
    details = {"configs": [one.as_json for one in outcomes]}
    finish(
        NAME,
        quick=args.quick,
        result=result_of(outcomes),
        libraries=("torch", "numpy"),
        device=facts.label,
        seed=SEED,
        details=details,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--target", action="append", metavar="NAME", help="may be given again (default: the family's)")
    parser.add_argument("--draft", default="ref-draft", metavar="NAME", help="default: ref-draft")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw measured over predicted speedups here")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL (default: the family's)")
    parser.add_argument("--profile-first", action="store_true", help="take all pass times before anything is measured")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
