"""How much faster than the plan is the best configuration?

For each target and workload (greedy, and sampled with shared noise), a plan is made from calibration prompts only: pass times
measured in the running loop, a trace, and the search, all under the workload's sampling. On the evaluation prompts, the plan is
measured beside other configurations, each interleaved with plain decoding (A B B A): each exit alone at its best predicted
length, the best of each family of policies, the published thresholds and length rule, and a spread of others. The figures are
means over all targets and workloads; those under `by_workload` are means over the targets.

    regret             best measured speedup over the plan's, minus one. Part of it is luck: the maximum of many noisy
                       measurements is too high
    regret, honest     the first visits select the best configuration, and the second visits compare both
    rank correlation   Spearman's, predicted against measured speedup: the mean over targets and workloads, each with many
                       similar configurations, and over all configurations together

The results file has the prediction and the measurement of every configuration.

Example: python benchmarks/regret.py --quick
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from calibrate.search.scenario import Scenario
from calibrate.search.search import SearchResult, search
from details.regret_arms import Contender, PairResult, measured_of, measured_plain, result_of, result_table
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds
from perfmodel.policies.policy import HeuristicLength, Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.replay import replay_batch
from profiler.latency.profiling_job import ProfilingJob
from profiler.machine.machine_facts import device_facts
from s2d.decoding.pair import Pair
from shared.common import finish, make_parser, use_one_thread
from shared.configurations import configurations
from shared.interleaved import (
    SAMPLINGS,
    Arm,
    Models,
    Size,
    add_pair_flags,
    load_cpu_pair,
    make_job,
    measure_evidence,
    measure_once,
    warm_up_arms,
)

NAME = "regret"
SEED = 20260709


@dataclass(frozen=True, slots=True, kw_only=True)
class RegretSize(Size):
    """Amount of measurement, and the budget for pass times."""

    samplings: tuple[Sampling, ...]
    num_others: int
    budget_s: Seconds
    """For the pass times of one target and one workload."""


FULL = RegretSize(
    targets=("ref-target-16", "ref-target-32"),
    samplings=SAMPLINGS,
    calibration_prompts=60,
    num_others=20,
    num_prompts=24,
    num_repeats=1,
    max_new_tokens=96,
    budget_s=60.0,
)
QUICK = RegretSize(
    targets=("ref-target-16",),
    samplings=SAMPLINGS,
    calibration_prompts=12,
    num_others=2,
    num_prompts=2,
    num_repeats=1,
    max_new_tokens=32,
    budget_s=4.0,
)


def best_fixed_lengths(trace: Trace, models: Models) -> list[Policy]:
    """Each exit alone at its best predicted length."""
    best = []
    for layer in trace.header.exit_layers:
        fixed = [Policy(exits=(layer,), tokens=tokens) for tokens in range(1, MAX_DRAFT_TOKENS + 1)]
        batch = replay_batch(trace, fixed)
        best.append(fixed[int((batch.num_tokens / batch.seconds(*models)).argmax())])
    return best


def published_thresholds(trace: Trace) -> Policy:
    """All exits at 0.5 and +2/-1 from 5, as published, but with our cap. Passes of longer drafts are not measured."""
    layers = trace.header.exit_layers
    thresholds = (0.5,) * (len(layers) - 1)
    return Policy(exits=layers, thresholds=thresholds, tokens=MAX_DRAFT_TOKENS, stop=HeuristicLength(start=5))


def contenders(trace: Trace, models: Models, size: RegretSize) -> tuple[SearchResult, list[Contender]]:
    """The search result, and all distinct configurations to measure."""
    result = search([Scenario(trace, *models)])
    named = [("searched", family.policy) for family in result.families]
    named.append(("published thresholds", published_thresholds(trace)))
    named += [("one exit, fixed length", policy) for policy in best_fixed_lengths(trace, models)]
    named += [("other", policy) for policy in islice(configurations(trace, SEED), size.num_others)]
    batch = replay_batch(trace, [policy for _, policy in named])
    rates = batch.num_tokens / batch.seconds(*models)
    plain_rate = result.families[0].merit
    listed = [
        Contender(name=name, policy=policy, predicted_tokens_per_s=rate or None, predicted=rate / plain_rate if rate else None)
        for (name, policy), rate in zip(named, rates.tolist(), strict=True)
        if policy is not None
    ]
    return result, list({contender.policy: contender for contender in listed}.values())


def measured_arms(job: ProfilingJob, policies: Sequence[Policy], num_repeats: int) -> list[tuple[Arm, Arm]]:
    """A plain and a speculative arm of every policy."""
    session, rng = job.session(), np.random.default_rng(SEED)
    arms = warm_up_arms(job, session, policies)
    for _ in range(num_repeats):
        measure_once(job, session, policies, arms, rng)
    return arms


def result_of_pair(pair: Pair, sampling: Sampling, size: RegretSize, prompts_path: Path) -> PairResult:
    """Plan on the calibration prompts, and measure on the evaluation prompts."""
    name = f"{pair.target.geometry.name} {sampling.label}"
    new_job = partial(make_job, pair, sampling, max_new_tokens=size.max_new_tokens, draft_cap=MAX_DRAFT_TOKENS, seed=SEED)
    calibration = new_job("calibration", prompts_path, num_prompts=size.calibration_prompts)
    evaluation = new_job("evaluation", prompts_path, num_prompts=size.num_prompts)
    print_err(f"{name}: pass times on {len(calibration.prompts)} calibration prompts, about {size.budget_s:.0f} s")
    search_result, listed = contenders(*measure_evidence(calibration, size.budget_s), size)
    print_err(f"{name}: {len(listed)} configurations on {len(evaluation.prompts)} evaluation prompts")
    arm_pairs = measured_arms(evaluation, [contender.policy for contender in listed], size.num_repeats)
    arms = [
        measured_of(contender, plain, speculative) for contender, (plain, speculative) in zip(listed, arm_pairs, strict=True)
    ]
    arms.append(measured_plain([plain for plain, _ in arm_pairs], search_result.families[0].merit))
    plan = next(arm for arm in arms if arm.policy == search_result.chosen.policy)
    return PairResult(target=pair.target.geometry.name, sampling=sampling, plan=plan, arms=tuple(arms))


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    use_one_thread()
    size = QUICK if args.quick else FULL
    pairs = [load_cpu_pair(target, args.draft, args.exits) for target in args.target or size.targets]
    results = [result_of_pair(pair, sampling, size, args.prompts) for pair in pairs for sampling in size.samplings]
    print_out(result_table(results))
    finish(
        NAME,
        quick=args.quick,
        result=result_of(results),
        provenance=make_provenance(libraries=("torch", "numpy"), device=device_facts(pairs[0].device).label, seed=SEED),
        details={"measured": [result.as_json for result in results]},
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_pair_flags(parser)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
