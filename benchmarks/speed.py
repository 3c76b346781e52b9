"""How fast is a plan, compared with plain decoding and with transformers?

For each target and workload (greedy, and sampled at temperature 0.8), a plan is made from calibration prompts. A plan file
given with --plan replaces it; its sampling is then the only workload. Every arm continues the same evaluation prompts, in
fp32, on one thread, in one process. The arms are the plain loop, the plan, transformers' `generate`, and its assisted
generation. The latter uses every exit as the assistant (as an exported checkpoint), with constant lengths of 3, 5 and 8 at
threshold 0, with its defaults, and with its heuristic.

On every prompt the arms run in a random order and then in reverse (A B … B A). Our own arms run several times, because their
calls are short. Times include the pass over the prompt; speeds are total tokens over total seconds. `noise_frac` compares the
plain loop with itself, forward against reverse runs.

All greedy arms must write the same text. The sampled plan must write the text of the plain loop, because both use the same
noise (except under the ratio test, where nothing is compared). transformers draws other random numbers and writes other texts,
possibly shorter ones. It is seeded again before every call, so a run can be repeated.

The last line has the figures of the greedy workload (or of a given plan) and, under `by_workload`, those of each workload.
Each ratio is the smallest over the targets. The results file has the speed of every arm and the predicted speeds.

    python benchmarks/speed.py [--quick] [--plan FILE]
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds, TokensPerS, format_number, format_speedup
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import PLAN_FILE, Plan
from profiler.latency.profiling_job import ProfilingJob
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.loading.exits import exits_from_plan, requested_exits
from s2d.loading.model_folder import find_model
from s2d.running.check_plan import check_plan_fits
from shared import common
from shared.interleaved import SAMPLINGS, Size, add_pair_flags, make_job, measure_evidence, workload_name
from shared.transformers_arms import HF_ASSISTED, HF_GENERATE, Write, transformers_arms

NAME = "speed"
SEED = 20260811
PLAIN, PLAN = "plain", "plan"
LEAN_CALLS = 4
"""Calls of our own arms per order: they take much less time than those of transformers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSize(Size):
    """Amount of measurement, and the budget for pass times."""

    budget_s: Seconds
    """For the pass times of one workload."""


FULL = SpeedSize(
    targets=("ref-target-16", "ref-target-32"),
    calibration_prompts=60,
    num_prompts=8,
    num_repeats=1,
    max_new_tokens=96,
    budget_s=60.0,
)
QUICK = SpeedSize(
    targets=("ref-target-16",),
    calibration_prompts=12,
    num_prompts=2,
    num_repeats=1,
    max_new_tokens=24,
    budget_s=4.0,
)


@dataclass(slots=True, kw_only=True)
class ArmTotals:
    """Tokens and seconds of one arm, by order: forward and reverse."""

    num_tokens: int
    seconds: list[Seconds]

    @property
    def tokens_per_s(self) -> TokensPerS:
        return self.num_tokens / sum(self.seconds)

    @property
    def by_turn(self) -> list[TokensPerS]:
        """Forward and reverse; both write the same tokens."""
        return [self.num_tokens / 2 / seconds for seconds in self.seconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The policy of the plan, with its predicted speed and that of plain decoding. Both exclude the prompt."""

    policy: Policy | None
    tokens_per_s: TokensPerS
    plain_tokens_per_s: TokensPerS


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedResult:
    """The measurements of one target under one workload."""

    target: str
    sampling: Sampling
    chosen: Chosen
    totals: dict[str, ArmTotals]

    @property
    def plan_label(self) -> str:
        return self.chosen.policy.label if self.chosen.policy else "do not speculate"

    @property
    def best_assisted(self) -> str:
        """The fastest setting of assisted generation in transformers."""
        assisted = [name for name in self.totals if name.startswith(HF_ASSISTED)]
        return max(assisted, key=lambda name: self.totals[name].tokens_per_s)

    @property
    def ratios(self) -> dict[str, float]:
        """The ratios of the benchmark's result."""
        speed = {name: arm_totals.tokens_per_s for name, arm_totals in self.totals.items()}
        forwards, backwards = self.totals[PLAIN].seconds
        return {
            "plan_over_plain": speed[PLAN] / speed[PLAIN],
            "plan_over_hf_generate": speed[PLAN] / speed[HF_GENERATE],
            "plan_over_best_hf_assisted": speed[PLAN] / speed[self.best_assisted],
            "plain_over_hf_generate": speed[PLAIN] / speed[HF_GENERATE],
            "noise_frac": abs(forwards / backwards - 1),
        }

    @property
    def as_json(self) -> dict[str, object]:
        """All arms, fastest first."""
        predicted = {PLAIN: self.chosen.plain_tokens_per_s, PLAN: self.chosen.tokens_per_s}
        arms = [
            {
                "arm": name,
                "tokens_per_s": arm_totals.tokens_per_s,
                "tokens_per_s_by_turn": arm_totals.by_turn,
                "num_tokens": arm_totals.num_tokens,
                "predicted_decode_tokens_per_s": predicted.get(name),
            }
            for name, arm_totals in sorted(self.totals.items(), key=lambda item: -item[1].tokens_per_s)
        ]
        return {"target": self.target, "workload": self.sampling.label, "plan": self.plan_label, "arms": arms, **self.ratios}


def lean_arms(job: ProfilingJob, policy: Policy | None) -> dict[str, Write]:
    """Our own loop, plain and with the plan."""
    session = job.session()

    def arm(arm_policy: Policy | None) -> Write:
        settings = job.settings(arm_policy, job.max_new_tokens)
        return lambda prompt: list(session.generate(prompt.token_ids, settings).tokens)

    return {PLAIN: arm(None), PLAN: arm(policy)}


def must_be_plain_text(name: str, sampling: Sampling) -> bool:
    """Whether an arm must write the text of the plain loop."""
    return sampling.rule == "greedy" or (sampling.rule == "shared-noise" and name in (PLAIN, PLAN))


def measure(arms: dict[str, Write], job: ProfilingJob, num_repeats: int) -> dict[str, ArmTotals]:
    """Time every arm on every prompt, forward and in reverse.

    Raises:
        RuntimeError: an arm wrote a different text than the plain loop, but must not.
    """
    totals = {name: ArmTotals(num_tokens=0, seconds=[0.0, 0.0]) for name in arms}
    expected = [arms[PLAIN](prompt) for prompt in job.prompts]
    for write in arms.values():
        write(job.prompts[0])
    order, rng = [*arms, *[PLAIN, PLAN] * (LEAN_CALLS - 1)], random.Random(SEED)
    for prompt, tokens in [*zip(job.prompts, expected, strict=True)] * num_repeats:
        rng.shuffle(order)
        for turn, names in enumerate((tuple(order), tuple(reversed(order)))):
            for name in names:
                start_s = time.perf_counter()
                written = arms[name](prompt)
                totals[name].seconds[turn] += time.perf_counter() - start_s
                totals[name].num_tokens += len(written)
                if must_be_plain_text(name, job.sampling) and written != tokens:
                    raise RuntimeError(f"{name}, {prompt.name}: wrote a different text than the plain loop")
    return totals


def measure_workload(pair: Pair, sampling: Sampling, size: SpeedSize, plan: Plan | None, prompts_path: Path) -> SpeedResult:
    """Plan on the calibration prompts unless a plan is given, and time every arm on the evaluation prompts."""
    new_job = partial(make_job, pair, sampling, max_new_tokens=size.max_new_tokens, draft_cap=MAX_DRAFT_TOKENS, seed=SEED)
    if plan is None:
        calibration = new_job("calibration", prompts_path, num_prompts=size.calibration_prompts)
        trace, models = measure_evidence(calibration, size.budget_s)
        result = search([Scenario(trace, *models)])
        policy, tokens_per_s, plain_tokens_per_s = result.chosen.policy, result.chosen.merit, result.families[0].merit
    else:
        policy, speedup = plan.chosen.policy, plan.chosen.speedup
        tokens_per_s, plain_tokens_per_s = speedup.tokens_per_s, speedup.plain_tokens_per_s
    chosen = Chosen(policy=policy, tokens_per_s=tokens_per_s, plain_tokens_per_s=plain_tokens_per_s)
    evaluation = new_job("evaluation", prompts_path, num_prompts=size.num_prompts)
    with tempfile.TemporaryDirectory() as folder:
        arms = lean_arms(evaluation, policy) | transformers_arms(evaluation, Path(folder))
        totals = measure(arms, evaluation, size.num_repeats)
    return SpeedResult(target=pair.target.geometry.name, sampling=sampling, chosen=chosen, totals=totals)


def speed_table(result: SpeedResult) -> str:
    """A row per arm, fastest first."""
    base = result.totals[HF_GENERATE].tokens_per_s
    rows = [
        [name, format_number(arm_totals.tokens_per_s), format_speedup(arm_totals.tokens_per_s / base)]
        for name, arm_totals in sorted(result.totals.items(), key=lambda item: -item[1].tokens_per_s)
    ]
    return table(rows, headers=["arm", "tokens/s", f"over {HF_GENERATE}"])


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    common.use_one_thread()
    size = QUICK if args.quick else FULL
    plan = PLAN_FILE.read(args.plan).record if args.plan else None
    targets = (plan.target.name,) if plan else tuple(args.target or size.targets)
    samplings = (plan.workload.sampling,) if plan else SAMPLINGS
    exits = exits_from_plan(plan) if plan else requested_exits(args.exits)
    results: list[SpeedResult] = []
    for name in targets:
        draft = find_model(args.draft).as_posix()
        pair = load_pair(PairRequest(target=find_model(name).as_posix(), draft=draft, dtype="fp32", device="cpu", exits=exits))
        if plan is not None:
            check_plan_fits(f"plan {str(args.plan)!r}", plan, pair)
        for sampling in samplings:
            print_err(f"{pair.label}, {sampling.label}")
            result = measure_workload(pair, sampling, size, plan, args.prompts)
            print_out(f"{pair.label}, {sampling.label}\nplan: {result.plan_label}\n\n{speed_table(result)}\n")
            results.append(result)
    common.finish(
        NAME,
        quick=args.quick,
        result=result_of(results),
        provenance=make_provenance(libraries=("torch", "transformers"), seed=SEED),
        details={"measured": [result.as_json for result in results]},
    )
    return 0


def result_of(results: Sequence[SpeedResult]) -> dict[str, object]:
    """The figures of every workload. The first, greedy if both were measured, also stands for all."""
    names = dict.fromkeys(workload_name(result.sampling) for result in results)
    by_workload = {name: summary([result for result in results if workload_name(result.sampling) == name]) for name in names}
    return {**next(iter(by_workload.values())), "by_workload": by_workload}


def summary(results: Sequence[SpeedResult]) -> dict[str, object]:
    """Over all targets: speeds by arm, the smallest of each ratio, the largest noise."""
    each = [result.ratios for result in results]
    speeds = {
        f"{result.target}, {name}": result.totals[name].tokens_per_s
        for result in results
        for name in (PLAIN, PLAN, HF_GENERATE, result.best_assisted)
    }
    worst = {key: (max if key == "noise_frac" else min)(ratios[key] for ratios in each) for key in each[0]}
    return {"tokens_per_s": speeds, "policies": {result.target: result.plan_label for result in results}, **worst}


def _parser() -> argparse.ArgumentParser:
    parser = common.make_parser(__doc__ or "")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="run this plan (default: make one per workload)")
    add_pair_flags(parser)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
