"""What predictions are made from, and plain and speculative decoding, interleaved, that they are held against."""

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
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.generate import Generation, Session
from s2d.decoding.pair import ModelPair, Pair
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Prompt
from shared import common  # noqa: F401 makes the checkout importable

SAMPLED = Sampling(rule="shared-noise", temperature=0.8, top_k=None, top_p=None, seed=20260712)
"""The seed is of the text: every benchmark samples the same after the same prompt."""
SAMPLINGS = (GREEDY, SAMPLED)

PASS_TIME_TOKENS: Tokens = 144
"""Written after each prompt where pass times are taken: more than is decoded anywhere, so that no backlog is longer."""

Models = tuple[LatencyModel, LatencyModel]
"""Seconds of the draft and of the target."""


@dataclass(slots=True, kw_only=True)
class Arm:
    """One configuration's runs, summed up: seconds by visit, and what its rounds were."""

    visits_s: list[Seconds]
    rounds: dict[int, RoundStats]
    """By prompt; every repeat gives the same."""
    blocks: dict[int, tuple[tuple[int, int], ...]]
    num_runs: int
    kinds_s: Counter[PassKind]
    """Seconds of all runs, by kind of pass."""

    @classmethod
    def empty(cls) -> "Arm":
        """Nothing measured yet."""
        return cls(visits_s=[0.0, 0.0], rounds={}, blocks={}, num_runs=0, kinds_s=Counter())

    @property
    def all_rounds(self) -> RoundStats:
        """Of every prompt once."""
        return sum_rounds(self.rounds.values())

    def add(self, visit: int, prompt: int, generation: Generation) -> None:
        """One run of one prompt, of the first or second visit."""
        self.visits_s[visit] += generation.decode_s
        self.rounds[prompt] = generation.rounds
        self.blocks[prompt] = generation.blocks
        self.num_runs += 1
        for sample in generation.samples:
            self.kinds_s[sample.kind] += sample.seconds


def workload_of(sampling: Sampling) -> str:
    """The key of a sampling's figures in a result."""
    return "greedy" if sampling.rule == "greedy" else "sampled"


def job_of(
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
    """Some prompts of a split, to be profiled, traced or decoded."""
    prompts = choose_prompts(read_prompts(prompts_path), split, num_prompts)
    return job_on(pair, sampling, prompts, max_new_tokens=max_new_tokens, draft_cap=draft_cap, seed=seed)


def job_on(
    pair: Pair, sampling: Sampling, prompts: Sequence[Prompt], *, max_new_tokens: int, draft_cap: int, seed: int
) -> ProfilingJob:
    """Prompts to be profiled, traced or decoded."""
    return ProfilingJob(
        pair=pair,
        prompts=encode_prompts(pair, prompts, max_new_tokens=max_new_tokens),
        sampling=sampling,
        confidence="max-prob",
        max_new_tokens=max_new_tokens,
        draft_cap=draft_cap,
        seed=seed,
    )


def models_of(log: PassLog, pair: ModelPair, sampling: Sampling) -> Models:
    """Seconds of the draft and of the target as a profile of these passes says."""
    profiles = pair_profiles(log, pair, sampling)
    target = MeasuredLatency(profiles["target"])
    return MeasuredLatency(profiles["draft"]) if "draft" in profiles else target, target


def record(job: ProfilingJob, session: Session) -> Trace:
    """The trace of a job's prompts."""
    recorder = job.exit_recorder(session)
    return record_acceptance(
        lambda number: recorder.trace(job.prompts[number]),
        len(job.prompts),
        empty_trace(recorder.header),
        save=lambda trace: None,
    )


def for_pass_times(job: ProfilingJob) -> ProfilingJob:
    """The job, its texts long enough. Only its trace is as long as what is decoded: longer texts repeat themselves more."""
    return replace(job, max_new_tokens=max(PASS_TIME_TOKENS, job.max_new_tokens))


def evidence_of(job: ProfilingJob, budget_s: Seconds) -> tuple[Trace, Models]:
    """All that a plan is made from: the trace of a job's prompts, and pass times taken on them."""
    log = PassLog()
    fill_log(for_pass_times(job), log, budget_s)
    return record(job, job.session()), models_of(log, job.pair, job.sampling)


def warmed_up(job: ProfilingJob, session: Session, policies: Sequence[Policy]) -> list[tuple[Arm, Arm]]:
    """Run everything once, unmeasured: a plain and a speculative arm per policy, nothing in them yet."""
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
    """Plain, speculative, speculative, plain for every prompt and policy, policies in random order, into their arms.

    Args:
        between: called before each such four.
    """
    for prompt in range(len(job.prompts)):
        for place in rng.permutation(len(policies)):
            between()
            plain, speculative = arms[place]
            for arm, visit in ((plain, 0), (speculative, 0), (speculative, 1), (plain, 1)):
                arm.add(visit, prompt, _run(session, job, None if arm is plain else policies[place], prompt))


def tokens_per_s_of(arms: Sequence[Arm]) -> TokensPerS:
    """Of all their runs."""
    tokens = sum(arm.all_rounds.num_tokens * arm.num_runs / len(arm.rounds) for arm in arms)
    return tokens / sum(sum(arm.visits_s) for arm in arms)


def arm_speedup(plain: Arm, speculative: Arm, visits: Sequence[int] = (0, 1)) -> float:
    """Ratio of tokens per second, over both visits or some."""
    plain_s, speculative_s = (sum(arm.visits_s[visit] for visit in visits) for arm in (plain, speculative))
    return speculative.all_rounds.num_tokens / plain.all_rounds.num_tokens * plain_s / speculative_s


def _run(session: Session, job: ProfilingJob, policy: Policy | None, prompt: int) -> Generation:
    return session.generate(job.prompts[prompt].token_ids, job.settings(policy, job.max_new_tokens))
