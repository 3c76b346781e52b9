"""How fast is the plan, beside the lean plain loop and beside what transformers would do?

For each target and each workload, greedy and sampled at temperature 0.8, a plan is made from calibration prompts (or read
from a file, whose sampling is then the only workload); then every arm writes after the same evaluation prompts, in fp32, on
one thread, in one process: the lean plain loop, the plan, transformers' `generate`, and its assisted generation with every
exit as the assistant (an exported checkpoint), at constant lengths 3, 5 and 8 with threshold 0, with its defaults, and with
its heuristic. On every prompt the arms are called in a random order and then backwards (A B … B A), our own several times, as
their calls are short. Seconds are of whole calls, the prompt's pass included; speeds are total tokens over total seconds.
`noise_frac` is the plain loop against itself, its forward against its backward turns.

Greedily all arms must write the same text. Sampled, the plan must write the plain loop's, as both share their noise (nothing
is compared for a plan of the ratio test). transformers draws other random numbers and so writes other texts, perhaps shorter
ones; it is seeded anew before every call, so that a run can be repeated.

The last line gives the greedy workload's figures (a given plan's, if there is one) and, under `by_workload`, those of each
alone; each ratio is the smallest over the targets. The results file has every arm's tokens/s and the plan's predicted ones.

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
from perfmodel.core.units import Seconds, TokensPerS, format_number, format_speedup
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import PLAN_FILE, Plan
from profiler.latency.profiling_job import ProfilingJob
from s2d.commands.arguments import EXITS_HELP, layers
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.loading.exits import exits_from_plan, requested_exits
from s2d.loading.model_folder import FAMILY_PROMPTS, find_model
from s2d.running.check_plan import check_plan_fits
from shared import common
from shared.interleaved import SAMPLINGS, measure_evidence, make_job, workload_name
from shared.transformers_arms import HF_ASSISTED, HF_GENERATE, Write, transformers_arms

NAME = "speed"
SEED = 20260811
PLAIN, PLAN = "plain", "plan"
LEAN_CALLS = 4
"""Of our own arms in every turn: they are many times shorter than transformers'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much to measure."""

    targets: tuple[str, ...]
    calibration_prompts: int
    num_prompts: int
    num_repeats: int
    max_new_tokens: int
    budget_s: Seconds
    """For the pass times that one workload's plan rests on."""


FULL = Size(
    targets=("ref-target-16", "ref-target-32"),
    calibration_prompts=60,
    num_prompts=8,
    num_repeats=1,
    max_new_tokens=96,
    budget_s=60.0,
)
QUICK = Size(
    targets=("ref-target-16",),
    calibration_prompts=12,
    num_prompts=2,
    num_repeats=1,
    max_new_tokens=24,
    budget_s=4.0,
)


@dataclass(slots=True, kw_only=True)
class Tally:
    """Tokens and seconds of one arm, by turn: forwards and backwards."""

    num_tokens: int
    seconds: list[Seconds]

    @property
    def tokens_per_s(self) -> TokensPerS:
        return self.num_tokens / sum(self.seconds)

    @property
    def by_turn(self) -> list[TokensPerS]:
        """Forwards and backwards: both write the same."""
        return [self.num_tokens / 2 / seconds for seconds in self.seconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The plan, and what was predicted of it and of plain decoding, both without the prompt's pass."""

    policy: Policy | None
    tokens_per_s: TokensPerS
    plain_tokens_per_s: TokensPerS


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured of one target and one workload."""

    target: str
    sampling: Sampling
    chosen: Chosen
    tallies: dict[str, Tally]

    @property
    def plan_label(self) -> str:
        return self.chosen.policy.label if self.chosen.policy else "do not speculate"

    @property
    def best_assisted(self) -> str:
        """The fastest setting of transformers' assisted generation."""
        assisted = [name for name in self.tallies if name.startswith(HF_ASSISTED)]
        return max(assisted, key=lambda name: self.tallies[name].tokens_per_s)

    @property
    def ratios(self) -> dict[str, float]:
        """The figures of DESIGN §9."""
        speed = {name: tally.tokens_per_s for name, tally in self.tallies.items()}
        forwards, backwards = self.tallies[PLAIN].seconds
        return {
            "plan_over_plain": speed[PLAN] / speed[PLAIN],
            "plan_over_hf_generate": speed[PLAN] / speed[HF_GENERATE],
            "plan_over_best_hf_assisted": speed[PLAN] / speed[self.best_assisted],
            "plain_over_hf_generate": speed[PLAIN] / speed[HF_GENERATE],
            "noise_frac": abs(forwards / backwards - 1),
        }

    @property
    def as_json(self) -> dict[str, object]:
        """Every arm, fastest first."""
        predicted = {PLAIN: self.chosen.plain_tokens_per_s, PLAN: self.chosen.tokens_per_s}
        arms = [
            {
                "arm": name,
                "tokens_per_s": tally.tokens_per_s,
                "tokens_per_s_by_turn": tally.by_turn,
                "num_tokens": tally.num_tokens,
                "predicted_decode_tokens_per_s": predicted.get(name),
            }
            for name, tally in sorted(self.tallies.items(), key=lambda item: -item[1].tokens_per_s)
        ]
        return {"target": self.target, "workload": self.sampling.label, "plan": self.plan_label, "arms": arms, **self.ratios}


def lean_arms(job: ProfilingJob, policy: Policy | None) -> dict[str, Write]:
    """Our own loop, plain and under the plan."""
    session = job.session()

    def arm(one: Policy | None) -> Write:
        settings = job.settings(one, job.max_new_tokens)
        return lambda prompt: list(session.generate(prompt.token_ids, settings).tokens)

    return {PLAIN: arm(None), PLAN: arm(policy)}


def must_be_plain_text(name: str, sampling: Sampling) -> bool:
    """Whether an arm has to write what the plain loop writes."""
    return sampling.rule == "greedy" or (sampling.rule == "shared-noise" and name in (PLAIN, PLAN))


def measure(arms: dict[str, Write], job: ProfilingJob, num_repeats: int) -> dict[str, Tally]:
    """Time every arm on every prompt, forwards and backwards.

    Raises:
        RuntimeError: an arm that must not does write something else than the plain loop.
    """
    tallies = {name: Tally(num_tokens=0, seconds=[0.0, 0.0]) for name in arms}
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
                tallies[name].seconds[turn] += time.perf_counter() - start_s
                tallies[name].num_tokens += len(written)
                if must_be_plain_text(name, job.sampling) and written != tokens:
                    raise RuntimeError(f"{name}, {prompt.name}: wrote something else than the plain loop")
    return tallies


def found_of(pair: Pair, sampling: Sampling, size: Size, plan: Plan | None, prompts_path: Path) -> Found:
    """Plan on the calibration prompts unless there is a plan, and time every arm on the evaluation prompts."""
    job = partial(make_job, pair, sampling, max_new_tokens=size.max_new_tokens, draft_cap=MAX_DRAFT_TOKENS, seed=SEED)
    if plan is None:
        calibration = job("calibration", prompts_path, num_prompts=size.calibration_prompts)
        trace, models = measure_evidence(calibration, size.budget_s)
        found = search([Scenario(trace, *models)])
        rates = found.chosen.merit, found.families[0].merit
        chosen = Chosen(policy=found.chosen.policy, tokens_per_s=rates[0], plain_tokens_per_s=rates[1])
    else:
        said = plan.chosen.speedup
        rates = said.tokens_per_s, said.plain_tokens_per_s
        chosen = Chosen(policy=plan.chosen.policy, tokens_per_s=rates[0], plain_tokens_per_s=rates[1])
    evaluation = job("evaluation", prompts_path, num_prompts=size.num_prompts)
    with tempfile.TemporaryDirectory() as folder:
        arms = lean_arms(evaluation, chosen.policy) | transformers_arms(evaluation, Path(folder))
        tallies = measure(arms, evaluation, size.num_repeats)
    return Found(target=pair.target.geometry.name, sampling=sampling, chosen=chosen, tallies=tallies)


def speed_table(found: Found) -> str:
    """A line per arm, fastest first."""
    base = found.tallies[HF_GENERATE].tokens_per_s
    rows = [
        [name, format_number(tally.tokens_per_s), format_speedup(tally.tokens_per_s / base)]
        for name, tally in sorted(found.tallies.items(), key=lambda item: -item[1].tokens_per_s)
    ]
    return table(rows, headers=["arm", "tokens/s", f"over {HF_GENERATE}"])


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    common.use_one_thread()
    size = QUICK if args.quick else FULL
    plan = PLAN_FILE.read(args.plan).record if args.plan else None
    targets = (plan.target.name,) if plan else tuple(args.target or size.targets)
    samplings = (plan.workload.sampling,) if plan else SAMPLINGS
    exits = exits_from_plan(plan) if plan else requested_exits(args.exits)
    found: list[Found] = []
    for name in targets:
        draft = find_model(args.draft).as_posix()
        pair = load_pair(PairRequest(target=find_model(name).as_posix(), draft=draft, dtype="fp32", device="cpu", exits=exits))
        if plan is not None:
            check_plan_fits(f"plan {str(args.plan)!r}", plan, pair)
        for sampling in samplings:
            print_err(f"{pair.label}, {sampling.label}")
            one = found_of(pair, sampling, size, plan, args.prompts or FAMILY_PROMPTS)
            print_out(f"{pair.label}, {sampling.label}\nplan: {one.plan_label}\n\n{speed_table(one)}\n")
            found.append(one)
    common.finish(
        NAME,
        quick=args.quick,
        result=result_of(found),
        libraries=("torch", "transformers"),
        seed=SEED,
        details={"measured": [one.as_json for one in found]},
    )
    return 0


def result_of(found: Sequence[Found]) -> dict[str, object]:
    """Figures of every workload, and those of the first, which is the greedy one where both were measured, for all."""
    names = dict.fromkeys(workload_name(one.sampling) for one in found)
    by_workload = {name: summary([one for one in found if workload_name(one.sampling) == name]) for name in names}
    return {**next(iter(by_workload.values())), "by_workload": by_workload}


def summary(found: Sequence[Found]) -> dict[str, object]:
    """Over all targets: speeds by arm, the smallest of each ratio, the largest noise."""
    each = [one.ratios for one in found]
    speeds = {
        f"{one.target}, {name}": one.tallies[name].tokens_per_s
        for one in found
        for name in (PLAIN, PLAN, HF_GENERATE, one.best_assisted)
    }
    worst = {key: (max if key == "noise_frac" else min)(ratios[key] for ratios in each) for key in each[0]}
    return {"tokens_per_s": speeds, "policies": {one.target: one.plan_label for one in found}, **worst}


def _parser() -> argparse.ArgumentParser:
    parser = common.make_parser(__doc__ or "")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="run this plan (default: some made here)")
    parser.add_argument("--target", action="append", metavar="NAME", help="may be given again (default: the family's)")
    parser.add_argument("--draft", default="ref-draft", metavar="NAME", help="default: ref-draft")
    parser.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL (default: the family's)")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
