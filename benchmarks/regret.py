"""Is the plan the best one could have run?

For each target and each workload, greedy and sampled with shared noise, a plan is made from calibration prompts alone: pass
times taken in situ and a trace, both decoded as the workload is, and the search. On the evaluation prompts it is then
measured beside other configurations, each interleaved with plain decoding (A B B A): every exit alone at its best predicted
length, the best of each family of policies, the published thresholds and length rule, and a spread of others. Figures are
means over all targets and workloads, and under `by_workload` over the targets of one.

    regret             best measured over the plan's, less one; the best of many noisy measurements flatters itself, so
                       that some of it is luck
    regret, honest     the best is named by the first visits and both are compared on the second
    rank correlation   Spearman's, predicted against measured speedups: of one target's and workload's configurations (a
                       mean), where many are nearly alike, and of all of them together

The results file has what was predicted and measured of every configuration.

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
from perfmodel.core.units import Seconds
from perfmodel.policies.policy import HeuristicLength, Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.replay import replay_batch
from profiler.latency.profiling_job import ProfilingJob
from profiler.machine.machine_facts import device_facts
from s2d.commands.arguments import EXITS_HELP, layers
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.loading.exits import requested_exits
from s2d.loading.model_folder import FAMILY_PROMPTS
from shared.common import finish, make_parser, use_one_thread
from shared.configurations import configurations
from shared.interleaved import SAMPLINGS, Arm, Models, measure_evidence, make_job, measure_once, warm_up_arms

NAME = "regret"
SEED = 20260709


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much to measure."""

    targets: tuple[str, ...]
    samplings: tuple[Sampling, ...]
    calibration_prompts: int
    num_others: int
    num_prompts: int
    num_repeats: int
    max_new_tokens: int
    budget_s: Seconds
    """For the pass times of one target and workload."""


FULL = Size(
    targets=("ref-target-16", "ref-target-32"),
    samplings=SAMPLINGS,
    calibration_prompts=60,
    num_others=20,
    num_prompts=24,
    num_repeats=1,
    max_new_tokens=96,
    budget_s=60.0,
)
QUICK = Size(
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
    """Every exit alone at its best predicted length."""
    best = []
    for layer in trace.header.exit_layers:
        alone = [Policy(exits=(layer,), tokens=tokens) for tokens in range(1, MAX_DRAFT_TOKENS + 1)]
        batch = replay_batch(trace, alone)
        best.append(alone[int((batch.num_tokens / batch.seconds(*models)).argmax())])
    return best


def published_thresholds(trace: Trace) -> Policy:
    """All exits at .5 and +2/-1 from 5, as published but for the cap: passes of longer drafts are not measured."""
    layers = trace.header.exit_layers
    thresholds = (0.5,) * (len(layers) - 1)
    return Policy(exits=layers, thresholds=thresholds, tokens=MAX_DRAFT_TOKENS, stop=HeuristicLength(start=5))


def contenders(trace: Trace, models: Models, size: Size) -> tuple[SearchResult, list[Contender]]:
    """What the search found, and every configuration to measure, each once."""
    found = search([Scenario(trace, *models)])
    named = [("searched", one.policy) for one in found.families]
    named.append(("published thresholds", published_thresholds(trace)))
    named += [("one exit, fixed length", policy) for policy in best_fixed_lengths(trace, models)]
    named += [("other", policy) for policy in islice(configurations(trace, SEED), size.num_others)]
    batch = replay_batch(trace, [policy for _, policy in named])
    rates = batch.num_tokens / batch.seconds(*models)
    plain_rate = found.families[0].merit
    listed = [
        Contender(name=name, policy=policy, predicted_tokens_per_s=rate or None, predicted=rate / plain_rate if rate else None)
        for (name, policy), rate in zip(named, rates.tolist(), strict=True)
        if policy is not None
    ]
    return found, list({one.policy: one for one in listed}.values())


def measured_arms(job: ProfilingJob, policies: Sequence[Policy], num_repeats: int) -> list[tuple[Arm, Arm]]:
    """Plain and speculative arms of every policy."""
    session, rng = job.session(), np.random.default_rng(SEED)
    arms = warm_up_arms(job, session, policies)
    for _ in range(num_repeats):
        measure_once(job, session, policies, arms, rng)
    return arms


def result_of_pair(pair: Pair, sampling: Sampling, size: Size, prompts_path: Path) -> PairResult:
    """Plan on the calibration prompts, measure on the evaluation prompts."""
    name = f"{pair.target.geometry.name} {sampling.label}"
    job = partial(make_job, pair, sampling, max_new_tokens=size.max_new_tokens, draft_cap=MAX_DRAFT_TOKENS, seed=SEED)
    calibration = job("calibration", prompts_path, num_prompts=size.calibration_prompts)
    evaluation = job("evaluation", prompts_path, num_prompts=size.num_prompts)
    print_err(f"{name}: pass times on {len(calibration.prompts)} calibration prompts, about {size.budget_s:.0f} s")
    found, listed = contenders(*measure_evidence(calibration, size.budget_s), size)
    print_err(f"{name}: {len(listed)} configurations on {len(evaluation.prompts)} evaluation prompts")
    pairs_of_arms = measured_arms(evaluation, [one.policy for one in listed], size.num_repeats)
    arms = [measured_of(one, plain, arm) for one, (plain, arm) in zip(listed, pairs_of_arms, strict=True)]
    arms.append(measured_plain([plain for plain, _ in pairs_of_arms], found.families[0].merit))
    plan = next(one for one in arms if one.policy == found.chosen.policy)
    return PairResult(target=pair.target.geometry.name, sampling=sampling, plan=plan, arms=tuple(arms))


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    use_one_thread()
    size = QUICK if args.quick else FULL
    prompts = args.prompts or FAMILY_PROMPTS
    pairs = [
        load_pair(PairRequest(target=target, draft=args.draft, dtype="fp32", device="cpu", exits=requested_exits(args.exits)))
        for target in args.target or size.targets
    ]
    results = [result_of_pair(pair, sampling, size, prompts) for pair in pairs for sampling in size.samplings]
    print_out(result_table(results))
    finish(
        NAME,
        quick=args.quick,
        result=result_of(results),
        libraries=("torch", "numpy"),
        device=device_facts(pairs[0].device).label,
        seed=SEED,
        details={"measured": [one.as_json for one in results]},
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--target", action="append", metavar="NAME", help="may be given again (default: the family's)")
    parser.add_argument("--draft", default="ref-draft", metavar="NAME", help="default: ref-draft")
    parser.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL (default: the family's)")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
