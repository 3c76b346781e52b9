"""Is the predicted speedup the measured one?

For every pair of target and sampling, configurations (exit subsets, thresholds on quantiles of confidence, lengths, stop
rules) are measured on evaluation prompts, each interleaved with plain decoding (A B B A), and predicted from the replay of a
trace and from pass times. These are taken in situ on calibration prompts: the profiler's first round over its grid before,
then one of its turns before every measurement, so that the error is the model's and not that of a machine that changed
meanwhile; with --profile-first as many turns are taken before anything is measured.

Configurations are chosen on calibration evidence alone. One that needs a pass nobody profiled cannot be priced: it is passed
over where the calibration prompts show it, and left unscored where only the measurement does. Both are `num_unpriced`, and
are named in the results file.

    error        predicted over measured speedup, less one
    acceptance   replayed over measured tokens per round, less one: 0 when every block is the same
    off path     what of it is due to the text's own confidences standing in behind a block's first mistake; "told" is the same
                 where a second trace tells what is said there
    latency      the same speedup priced from the passes that really ran: what is left when acceptance is known
    noise        plain decoding against itself, first against second visit, over the same stretch of time
    change       plain decoding against its own pass times: far from 0, the machine was not the one profiled

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
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.replay.replay import replay
from profiler.latency.pass_log import PassLog
from profiler.latency.profiling_job import profiling_runs
from profiler.machine.machine_facts import device_facts
from s2d.commands.arguments import EXITS_HELP, layers
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.loading.exits import requested_exits
from s2d.loading.model_folder import FAMILY_PROMPTS
from shared.common import finish, make_parser, median, use_one_thread
from shared.configurations import CAPS, configurations
from shared.interleaved import SAMPLINGS, Models, with_long_texts, make_job, measure_once, measured_models, record, warm_up_arms

NAME = "prediction"
SEED = 20260706
NUM_MISTAKES = 96
"""Of the draft in every evaluated text, behind which it is asked once more."""


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
    configs_per_pair=12,
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


def chosen_configurations(
    pair: str, trace: Trace, models: Models, *, number: int, seed: int
) -> tuple[list[Policy], list[Unpriced]]:
    """Configurations to measure, and those passed over on the way because the calibration evidence cannot price them."""
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
    pair: Pair, sampling: Sampling, size: Size, prompts_path: Path, *, profile_first: bool, seed: int
) -> tuple[list[Outcome], list[Unpriced]]:
    """Profile and measure one pair under one sampling, in turns, and predict what was measured."""
    name = f"{pair.target.geometry.name} {sampling.label}"
    job = partial(make_job, pair, sampling, max_new_tokens=size.max_new_tokens, draft_cap=max(CAPS), seed=SEED)
    calibration = job("calibration", prompts_path, num_prompts=size.calibration_prompts)
    evaluation = replace(job("evaluation", prompts_path, num_prompts=size.num_prompts), num_mistakes=NUM_MISTAKES)
    session, rng, log = evaluation.session(), np.random.default_rng(seed), PassLog()
    traces = (record(calibration, calibration.session()), record(evaluation, session))
    print_err(f"{name}: first pass times")
    turns = profiling_runs(with_long_texts(calibration), log)
    for number, coverage in enumerate(turns):
        if coverage.all_taken or number == size.first_turns:
            break
    if profile_first:
        deque(islice(turns, size.num_measurements), maxlen=0)
    profiled = measured_models(log, pair, sampling)
    policies, unpriced = chosen_configurations(name, traces[0], profiled, number=size.configs_per_pair, seed=seed)
    arms = warm_up_arms(evaluation, session, policies)
    for repeat in range(size.num_repeats):
        print_err(f"{name}: repeat {repeat + 1} of {size.num_repeats}")
        measure_once(evaluation, session, policies, arms, rng, between=(lambda: None) if profile_first else turns.__next__)
    models = measured_models(log, pair, sampling)
    outcomes: list[Outcome] = []
    for policy, pair_of_arms in zip(policies, arms, strict=True):
        try:
            outcomes.append(outcome(name, policy, pair_of_arms, traces, models))
        except OutOfDomain as err:
            unpriced.append(Unpriced(pair=name, policy=policy, was_measured=True, reason=str(err)))
    return outcomes, unpriced


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


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    use_one_thread()
    size = QUICK if args.quick else FULL
    prompts = args.prompts or FAMILY_PROMPTS
    outcomes: list[Outcome] = []
    unpriced: list[Unpriced] = []
    for number, target in enumerate(args.target or size.targets):
        pair = load_pair(
            PairRequest(target=target, draft=args.draft, dtype="fp32", device="cpu", exits=requested_exits(args.exits))
        )
        for sampling in size.samplings:
            seed = SEED + 10 * number + (sampling.rule != "greedy")
            found = outcomes_of_pair(pair, sampling, size, prompts, profile_first=args.profile_first, seed=seed)
            outcomes, unpriced = outcomes + found[0], unpriced + found[1]
    facts = device_facts(pair.device)
    print_out(outcome_table(outcomes, unpriced))
    details = {"configs": [one.as_json for one in outcomes], "unpriced": [one.as_json for one in unpriced]}
    finish(
        NAME,
        quick=args.quick,
        result=result_of(outcomes, unpriced),
        libraries=("torch", "numpy"),
        device=facts.label,
        seed=SEED,
        details=details,
    )
    if args.figure is not None:  # last: a figure that has changed makes the checkout dirty
        draw(outcomes, args.figure)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--target", action="append", metavar="NAME", help="may be given again (default: the family's)")
    parser.add_argument("--draft", default="ref-draft", metavar="NAME", help="default: ref-draft")
    parser.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw measured over predicted speedups here")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL (default: the family's)")
    parser.add_argument("--profile-first", action="store_true", help="take all pass times before anything is measured")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
