"""What is moving along the frontier worth, where acceptance shifts?

For each target a plan and its frontier are made from calibration prompts, decoded greedily. Texts after evaluation prompts are
of two kinds, on which the draft does differently well:

    easy   greedy, as planned
    hard   at temperature 1.5, with noise that target and draft share: the plan knows nothing of it

A controller goes, from a new start each, through three orders of them: *blocks* (half of the easy, all of the hard, the other
half), *alternating* (in turns) and *as planned* (the easy alone: what adapting costs where there is nothing to adapt to).
Whatever it decodes, every policy of the frontier decodes right before or after, kept throughout, in random order.

    regret        1 - controller / best fixed, in tokens/s over an order, the best of the frontier named in hindsight; below 0
                  the controller beats them all. The interval is a bootstrap over texts, all arms of a text drawn together
    priced        the same regret with the passes that really ran priced by the profile, which leaves the machine's noise out
    over phases   controller / the best fixed policy of each kind of text: an oracle, which no fixed policy can be

Example: python benchmarks/adapting.py --quick
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calibrate.search.find_frontier import find_frontier, with_long_backlogs
from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from details.adapting_orders import Order, order_table, summary
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command
from perfmodel.core.units import Seconds
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.replay.estimate import model_for
from perfmodel.replay.round_stats import RoundStats
from profiler.latency.profiling_job import ProfilingJob
from profiler.machine.machine_facts import device_facts
from s2d.decoding.generate import Generation, Session
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.decoding.policy_selector import AdaptivePolicy, FixedPolicy, PolicySelector
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.running.run_prompts import summarise_adaptation
from shared.common import finish, make_parser, one_thread
from shared.interleaved import evidence_of, job_of

NAME = "adapting"
SEED = 20261121
HARD = Sampling(rule="shared-noise", temperature=1.5, top_k=None, top_p=None, seed=SEED)
Text = tuple[ProfilingJob, int]
"""A prompt of a job, by number; the job's sampling is the text's kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much to measure."""

    targets: tuple[str, ...]
    calibration_prompts: int
    num_prompts: int
    """Of each kind; an even number."""
    max_new_tokens: int
    budget_s: Seconds
    """For the pass times of one target."""


FULL = Size(targets=("ref-target-16", "ref-target-32"), calibration_prompts=30, num_prompts=6, max_new_tokens=96, budget_s=25.0)
QUICK = Size(targets=("ref-target-16",), calibration_prompts=8, num_prompts=2, max_new_tokens=64, budget_s=8.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planned:
    """What a plan made from calibration prompts would run, and may move along."""

    policy: Policy | None
    frontier: tuple[FrontierPoint, ...]
    scenario: Scenario


def planned(job: ProfilingJob, budget_s: Seconds) -> Planned:
    """The plan of a job's prompts."""
    trace, models = evidence_of(job, budget_s)
    scenario = Scenario(trace, *models)
    found = search([scenario])
    others = [*(one.policy for one in found.families), found.optimal_stopping, *found.single_exits]
    frontier = find_frontier(scenario, found.chosen.policy, others)
    return Planned(policy=found.chosen.policy, frontier=frontier, scenario=with_long_backlogs(scenario))


def orders_of(easy: ProfilingJob, hard: ProfilingJob) -> dict[str, list[Text]]:
    """Texts in the order that a controller meets them, by the order's name."""
    first, second = ([(job, number) for number in range(len(job.prompts))] for job in (easy, hard))
    half = len(first) // 2
    alternating = [text for pair in zip(first, second, strict=True) for text in pair]
    return {"blocks": first[:half] + second + first[half:], "alternating": alternating, "as planned": first}


def measured(name: str, texts: Sequence[Text], session: Session, plan: Planned) -> Order:
    """Decode an order under a new controller and, text by text, under every policy of its frontier; the plan's comes twice."""
    fixed, rng = [point.policy for point in plan.frontier], np.random.default_rng(SEED)
    pilots: list[PolicySelector] = [AdaptivePolicy(plan.frontier), *map(FixedPolicy, fixed), FixedPolicy(plan.policy)]
    runs: list[list[Generation]] = [[] for _ in pilots]
    for text in texts:
        for arm in rng.permutation(len(pilots)):
            runs[arm].append(decoded(session, text, pilots[arm]))
    for other in runs[1:]:
        if [one.tokens for one in other] != [one.tokens for one in runs[0]]:
            raise RuntimeError(f"{name}: a policy and the controller wrote different texts")
    return Order(
        target=session.target.geometry.name,
        name=name,
        plan=fixed.index(plan.policy),
        policies=tuple(policy.label if policy else "plain decoding" for policy in fixed),
        is_hard=np.array([job.sampling == HARD for job, _ in texts]),
        num_tokens=sum(len(one.tokens) for one in runs[0]),
        controller_s=np.array([one.decode_s for one in runs[0]]),
        fixed_s=np.array([[one.decode_s for one in run] for run in runs[1:-1]]),
        plan_again_s=np.array([one.decode_s for one in runs[-1]]),
        priced_s=np.array([[priced_s(one.rounds, plan.scenario) for one in run] for run in runs[:-1]]),
        adaptation=summarise_adaptation(fixed, runs[0]),
    )


def decoded(session: Session, text: Text, selector: PolicySelector) -> Generation:
    """One text under one selector."""
    job, number = text
    return session.generate(job.prompts[number].token_ids, job.settings(None, job.max_new_tokens), selector=selector)


def priced_s(rounds: RoundStats, scenario: Scenario) -> Seconds:
    """What the passes of some rounds cost by a profile."""
    seconds = 0.0
    for one in rounds.passes:
        line = scenario.line(one.kind, one.stage, one.rows)
        seconds += one.num_passes * line.base_s + one.cached_tokens_sum * line.per_token_s
    for one in rounds.cold_passes:
        model = model_for(one.kind, scenario.draft, scenario.target)
        seconds += one.num_passes * model.cold_s(one.kind, one.stage, one.place)
    return seconds


def orders_of_target(pair: Pair, size: Size, prompts_path: Path) -> tuple[list[Order], Planned]:
    """Plan on the calibration prompts, measure every order on the evaluation prompts."""
    job = partial(
        job_of,
        pair,
        prompts_path=prompts_path,
        max_new_tokens=size.max_new_tokens,
        draft_cap=MAX_DRAFT_TOKENS,
        seed=SEED,
    )
    calibration = job(GREEDY, "calibration", num_prompts=size.calibration_prompts)
    print_err(
        f"{pair.target.geometry.name}: plan on {len(calibration.prompts)} prompts, about {size.budget_s:.0f} s and a trace"
    )
    plan = planned(calibration, size.budget_s)
    easy, hard = (job(sampling, "evaluation", num_prompts=size.num_prompts) for sampling in (GREEDY, HARD))
    session = easy.session()
    for point in plan.frontier:
        decoded(session, (easy, 0), FixedPolicy(point.policy))
    print_err(f"{pair.target.geometry.name}: {len(plan.frontier)} policies and a controller on three orders of texts")
    return [measured(name, texts, session, plan) for name, texts in orders_of(easy, hard).items()], plan


def overhead_s(frontier: Sequence[FrontierPoint]) -> Seconds:
    """Of the controller in one round, mean over many."""
    controller, rng, number = AdaptivePolicy(frontier), np.random.default_rng(SEED), 20_000
    kept = rng.geometric(0.3, number).tolist()
    start = time.perf_counter()
    for accepted in kept:
        policy = controller.policies[controller.index]
        cap = policy.tokens if policy else 0
        controller.observe(cap, min(accepted - 1, cap))
    return (time.perf_counter() - start) / number


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    one_thread()
    size = QUICK if args.quick else FULL
    pairs = [
        load_pair(PairRequest(target=target, draft="ref-draft", dtype="fp32", device="cpu"))
        for target in args.target or size.targets
    ]
    orders: list[Order] = []
    costs: list[Seconds] = []
    for pair in pairs:
        found, plan = orders_of_target(pair, size, args.prompts or FAMILY_PROMPTS)
        orders += found
        costs.append(overhead_s(plan.frontier))
    print_out(order_table(orders))
    finish(
        NAME,
        quick=args.quick,
        result={**summary(orders), "controller_round_s": math.fsum(costs) / len(costs)},
        libraries=("torch", "numpy"),
        device=device_facts(pairs[0].device).label,
        seed=SEED,
        details={"orders": [one.as_json for one in orders]},
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--target", action="append", metavar="NAME", help="may be given again (default: the family's)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL (default: the family's)")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
