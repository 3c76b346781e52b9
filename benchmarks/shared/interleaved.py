"""Record evidence for predictions, and measure plain and speculative decoding interleaved."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from perfmodel.acceptance.splits import Split
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Seconds, Tokens, TokensPerS
from perfmodel.latency.latency_model import LatencyModel, MeasuredLatency
from perfmodel.passes.passes import PassKind
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.replay.round_stats import RoundStats, sum_rounds
from profiler.acceptance.record_acceptance import empty_trace, record_acceptance
from profiler.latency.latency_files import pair_profiles
from profiler.latency.pass_log import PassLog
from profiler.latency.profiling_job import ProfilingJob, fill_log
from s2d.commands.arguments import EXITS_HELP, layers
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.generate import Generation, Session
from s2d.decoding.pair import ModelPair, Pair, PairRequest, load_pair
from s2d.loading.exits import requested_exits
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Prompt
from shared import common  # noqa: F401 makes the checkout importable

SAMPLED = Sampling(rule="shared-noise", temperature=0.8, top_k=None, top_p=None, seed=20260712)
"""The seed determines the text: all benchmarks sample the same text after the same prompt."""
SAMPLINGS = (GREEDY, SAMPLED)

PASS_TIME_TOKENS: Tokens = 144
"""New tokens per prompt while pass times are measured. No measured run decodes more, so no backlog is longer."""

Models = tuple[LatencyModel, LatencyModel]
"""Latency models of draft and target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Amount of measurement."""

    targets: tuple[str, ...]
    calibration_prompts: int
    num_prompts: int
    """Evaluation prompts."""
    num_repeats: int
    max_new_tokens: int


@dataclass(slots=True, kw_only=True)
class Arm:
    """The runs of one configuration: seconds by visit, and its rounds."""

    visits_s: list[Seconds]
    rounds: dict[int, RoundStats]
    """By prompt; identical in every repeat."""
    blocks: dict[int, tuple[tuple[int, int], ...]]
    num_runs: int
    kinds_s: Counter[PassKind]
    """Total seconds of all runs, by kind of pass."""

    @classmethod
    def empty(cls) -> "Arm":
        """An arm without runs."""
        return cls(visits_s=[0.0, 0.0], rounds={}, blocks={}, num_runs=0, kinds_s=Counter())

    @property
    def all_rounds(self) -> RoundStats:
        """The rounds of every prompt, once each."""
        return sum_rounds(self.rounds.values())

    def add(self, visit: int, prompt: int, generation: Generation) -> None:
        """Add one run of a prompt, from the first or the second visit."""
        self.visits_s[visit] += generation.decode_s
        self.rounds[prompt] = generation.rounds
        self.blocks[prompt] = generation.blocks
        self.num_runs += 1
        for sample in generation.samples:
            self.kinds_s[sample.kind] += sample.seconds


def add_pair_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose targets, draft, exits and prompts. All default to those of the reference family."""
    add = parser.add_argument
    add("--target", action="append", metavar="NAME", help="may be given again (default: the reference family's)")
    add("--draft", default="ref-draft", metavar="NAME", help="default: ref-draft")
    add("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    add("--prompts", type=Path, default=FAMILY_PROMPTS, metavar="FILE", help="JSONL (default: the reference family's)")


def load_cpu_pair(target: str, draft: str = "ref-draft", exits: tuple[int, ...] | None = None) -> Pair:
    """A target and its draft in fp32 on the CPU."""
    return load_pair(PairRequest(target=target, draft=draft, dtype="fp32", device="cpu", exits=requested_exits(exits)))


def workload_name(sampling: Sampling) -> str:
    """The key of a workload in a result: greedy or sampled."""
    return "greedy" if sampling.rule == "greedy" else "sampled"


def make_job(
    pair: Pair,
    sampling: Sampling,
    split: Split,
    prompts_path: Path,
    *,
    num_prompts: int,
    max_new_tokens: int,
    draft_cap: int,
    seed: int,
) -> ProfilingJob:
    """Choose prompts from a split, to profile, trace or decode."""
    prompts = choose_prompts(read_prompts(prompts_path), split, num_prompts)
    return make_job_from_prompts(pair, sampling, prompts, max_new_tokens=max_new_tokens, draft_cap=draft_cap, seed=seed)


def make_job_from_prompts(
    pair: Pair, sampling: Sampling, prompts: Sequence[Prompt], *, max_new_tokens: int, draft_cap: int, seed: int
) -> ProfilingJob:
    """Encode prompts, to profile, trace or decode."""
    return ProfilingJob(
        pair=pair,
        prompts=encode_prompts(pair, prompts, max_new_tokens=max_new_tokens),
        sampling=sampling,
        confidence="max-prob",
        max_new_tokens=max_new_tokens,
        draft_cap=draft_cap,
        seed=seed,
    )


def measured_models(log: PassLog, pair: ModelPair, sampling: Sampling) -> Models:
    """Latency models of draft and target from a pass log."""
    profiles = pair_profiles(log, pair, sampling)
    target = MeasuredLatency(profiles["target"])
    return MeasuredLatency(profiles["draft"]) if "draft" in profiles else target, target


def record(job: ProfilingJob, session: Session) -> Trace:
    """Record the trace of a job's prompts."""
    recorder = job.exit_recorder(session)
    return record_acceptance(
        lambda number: recorder.trace(job.prompts[number]),
        len(job.prompts),
        empty_trace(recorder.header),
        save=lambda trace: None,
    )


def with_long_texts(job: ProfilingJob) -> ProfilingJob:
    """The job with texts of at least `PASS_TIME_TOKENS`. Use it for pass times only: long texts repeat themselves more."""
    return replace(job, max_new_tokens=max(PASS_TIME_TOKENS, job.max_new_tokens))


def measure_evidence(job: ProfilingJob, budget_s: Seconds) -> tuple[Trace, Models]:
    """Record all evidence for a plan: the trace of a job's prompts, and pass times on them."""
    log = PassLog()
    fill_log(with_long_texts(job), log, budget_s)
    return record(job, job.session()), measured_models(log, job.pair, job.sampling)


def warm_up_arms(job: ProfilingJob, session: Session, policies: Sequence[Policy]) -> list[tuple[Arm, Arm]]:
    """Run every policy once without measuring it. Returns an empty plain arm and an empty speculative arm per policy."""
    for policy in (None, *policies):
        _run(session, job, policy, 0)
    return [(Arm.empty(), Arm.empty()) for _ in policies]


def measure_once(
    job: ProfilingJob,
    session: Session,
    policies: Sequence[Policy],
    arms: Sequence[tuple[Arm, Arm]],
    rng: np.random.Generator,
    between: Callable[[], object] = lambda: None,
) -> None:
    """Run plain, speculative, speculative, plain for every prompt and policy, with the policies in random order.

    Args:
        job: the prompts.
        session: decodes them.
        policies: the configurations.
        arms: a plain and a speculative arm per policy; the runs are added to them.
        rng: for the order.
        between: called before each group of four runs.
    """
    for prompt in range(len(job.prompts)):
        for number in rng.permutation(len(policies)):
            between()
            plain, speculative = arms[number]
            for arm, visit in ((plain, 0), (speculative, 0), (speculative, 1), (plain, 1)):
                arm.add(visit, prompt, _run(session, job, None if arm is plain else policies[number], prompt))


def total_tokens_per_s(arms: Sequence[Arm]) -> TokensPerS:
    """Total tokens per second over all runs of some arms."""
    tokens = sum(arm.all_rounds.num_tokens * arm.num_runs / len(arm.rounds) for arm in arms)
    return tokens / sum(sum(arm.visits_s) for arm in arms)


def arm_speedup(plain: Arm, speculative: Arm, visits: Sequence[int] = (0, 1)) -> float:
    """Measured speedup: the ratio of tokens per second, over both visits or some."""
    plain_s, speculative_s = (sum(arm.visits_s[visit] for visit in visits) for arm in (plain, speculative))
    return speculative.all_rounds.num_tokens / plain.all_rounds.num_tokens * plain_s / speculative_s


def _run(session: Session, job: ProfilingJob, policy: Policy | None, prompt: int) -> Generation:
    return session.generate(job.prompts[prompt].token_ids, job.settings(policy, job.max_new_tokens))
