"""How much does an adaptive run gain where the acceptance of the text changes?

For each target, a plan and its frontier are made from greedily decoded calibration prompts. The evaluation texts are of two
kinds, with different acceptance:

    easy   greedy, as planned
    hard   at temperature 1.5, with noise shared by target and draft; the plan does not know about it

A controller, restarted each time, runs through three orders of these texts: *blocks* (half of the easy texts, all hard ones,
the other half), *alternating* (easy and hard in turn) and *as planned* (only easy ones, which shows the cost of adapting where
nothing changes). Each text is also decoded with every fixed policy of the frontier, in random order next to the controller.

    regret        1 - controller / best fixed policy, in tokens/s over an order. The best policy is known only afterwards. Below
                  0, the controller is faster than all of them. The interval is a bootstrap over texts, all arms together
    priced        the regret with the passes that ran priced by the profile, which excludes the noise of the machine
    over phases   controller / the best fixed policy of each kind of text, an oracle that no fixed policy can be

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
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.replay.estimate import model_for
from perfmodel.replay.round_stats import RoundStats
from profiler.latency.profiling_job import ProfilingJob
from profiler.machine.machine_facts import device_facts
from s2d.decoding.generate import Generation, Session
from s2d.decoding.pair import Pair
from s2d.decoding.policy_selector import AdaptivePolicy, FixedPolicy, PolicySelector
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.running.run_prompts import summarise_adaptation
from shared.common import finish, make_parser, use_one_thread
from shared.interleaved import load_cpu_pair, make_job, measure_evidence

NAME = "adapting"
SEED = 20261121
HARD = Sampling(rule="shared-noise", temperature=1.5, top_k=None, top_p=None, seed=SEED)
Text = tuple[ProfilingJob, int]
"""A job and the number of its prompt. The sampling of the job is the kind of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Amount of measurement."""

    targets: tuple[str, ...]
    calibration_prompts: int
    num_prompts: int
    """Number per kind; even."""
    max_new_tokens: int
    budget_s: Seconds
    """For the pass times of one target."""


FULL = Size(targets=("ref-target-16", "ref-target-32"), calibration_prompts=30, num_prompts=6, max_new_tokens=96, budget_s=25.0)
QUICK = Size(targets=("ref-target-16",), calibration_prompts=8, num_prompts=2, max_new_tokens=64, budget_s=8.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planned:
    """A plan from calibration prompts: its policy and its frontier."""

    policy: Policy | None
    frontier: tuple[FrontierPoint, ...]
    scenario: Scenario


def planned(job: ProfilingJob, budget_s: Seconds) -> Planned:
    """Plan for the prompts of a job."""
    trace, models = measure_evidence(job, budget_s)
    scenario = Scenario(trace, *models)
    result = search([scenario])
    others = [*(family.policy for family in result.families), result.optimal_stopping, *result.single_exits]
    frontier = find_frontier(scenario, result.chosen.policy, others)
    return Planned(policy=result.chosen.policy, frontier=frontier, scenario=with_long_backlogs(scenario))


def orders_of(easy: ProfilingJob, hard: ProfilingJob) -> dict[str, list[Text]]:
    """Texts in the order in which a controller decodes them, by the name of the order."""
    first, second = ([(job, number) for number in range(len(job.prompts))] for job in (easy, hard))
    half = len(first) // 2
    alternating = [text for pair in zip(first, second, strict=True) for text in pair]
    return {"blocks": first[:half] + second + first[half:], "alternating": alternating, "as planned": first}


def measured(name: str, texts: Sequence[Text], session: Session, plan: Planned) -> Order:
    """Decode an order with a new controller and with every policy of its frontier, text by text. The plan's runs twice."""
    fixed, rng = [point.policy for point in plan.frontier], np.random.default_rng(SEED)
    selectors: list[PolicySelector] = [AdaptivePolicy(plan.frontier), *map(FixedPolicy, fixed), FixedPolicy(plan.policy)]
    runs: list[list[Generation]] = [[] for _ in selectors]
    for text in texts:
        for arm in rng.permutation(len(selectors)):
            runs[arm].append(decoded(session, text, selectors[arm]))
    for other in runs[1:]:
        if [generation.tokens for generation in other] != [generation.tokens for generation in runs[0]]:
            raise RuntimeError(f"{name}: a policy and the controller wrote different texts")
    return Order(
        target=session.target.geometry.name,
        name=name,
        plan=fixed.index(plan.policy),
        policies=tuple(policy.label if policy else "plain decoding" for policy in fixed),
        is_hard=np.array([job.sampling == HARD for job, _ in texts]),
        num_tokens=sum(len(generation.tokens) for generation in runs[0]),
        controller_s=np.array([generation.decode_s for generation in runs[0]]),
        fixed_s=np.array([[generation.decode_s for generation in run] for run in runs[1:-1]]),
        plan_again_s=np.array([generation.decode_s for generation in runs[-1]]),
        priced_s=np.array([[priced_s(generation.rounds, plan.scenario) for generation in run] for run in runs[:-1]]),
        adaptation=summarise_adaptation(fixed, runs[0]),
    )


def decoded(session: Session, text: Text, selector: PolicySelector) -> Generation:
    """Decode one text with a policy selector."""
    job, number = text
    return session.generate(job.prompts[number].token_ids, job.settings(None, job.max_new_tokens), selector=selector)


def priced_s(rounds: RoundStats, scenario: Scenario) -> Seconds:
    """Seconds of the passes of some rounds by the profile."""
    seconds = 0.0
    for count in rounds.passes:
        line = scenario.line(count.kind, count.stage, count.rows)
        seconds += count.num_passes * line.base_s + count.cached_tokens_sum * line.per_token_s
    for count in rounds.cold_passes:
        model = model_for(count.kind, scenario.draft, scenario.target)
        seconds += count.num_passes * model.cold_s(count.kind, count.stage, count.place)
    return seconds


def orders_of_target(pair: Pair, size: Size, prompts_path: Path) -> tuple[list[Order], Planned]:
    """Plan on the calibration prompts, and measure every order on the evaluation prompts."""
    new_job = partial(
        make_job,
        pair,
        prompts_path=prompts_path,
        max_new_tokens=size.max_new_tokens,
        draft_cap=MAX_DRAFT_TOKENS,
        seed=SEED,
    )
    calibration = new_job(GREEDY, "calibration", num_prompts=size.calibration_prompts)
    print_err(
        f"{pair.target.geometry.name}: plan on {len(calibration.prompts)} prompts, about {size.budget_s:.0f} s plus a trace"
    )
    plan = planned(calibration, size.budget_s)
    easy, hard = (new_job(sampling, "evaluation", num_prompts=size.num_prompts) for sampling in (GREEDY, HARD))
    session = easy.session()
    for point in plan.frontier:
        decoded(session, (easy, 0), FixedPolicy(point.policy))
    print_err(f"{pair.target.geometry.name}: {len(plan.frontier)} policies and a controller on three orders of texts")
    return [measured(name, texts, session, plan) for name, texts in orders_of(easy, hard).items()], plan


def overhead_s(frontier: Sequence[FrontierPoint]) -> Seconds:
    """Mean time of the controller per round."""
    controller, rng, number = AdaptivePolicy(frontier), np.random.default_rng(SEED), 20_000
    kept = rng.geometric(0.3, number).tolist()
    start = time.perf_counter()
    for accepted in kept:
        policy = controller.policies[controller.index]
        cap = policy.tokens if policy else 0
        controller.observe(cap, min(accepted - 1, cap))
    return (time.perf_counter() - start) / number


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    use_one_thread()
    size = QUICK if args.quick else FULL
    pairs = [load_cpu_pair(target) for target in args.target or size.targets]
    orders: list[Order] = []
    costs: list[Seconds] = []
    for pair in pairs:
        target_orders, plan = orders_of_target(pair, size, args.prompts or FAMILY_PROMPTS)
        orders += target_orders
        costs.append(overhead_s(plan.frontier))
    print_out(order_table(orders))
    finish(
        NAME,
        quick=args.quick,
        result={**summary(orders), "controller_round_s": math.fsum(costs) / len(costs)},
        provenance=make_provenance(libraries=("torch", "numpy"), device=device_facts(pairs[0].device).label, seed=SEED),
        details={"orders": [order.as_json for order in orders]},
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
