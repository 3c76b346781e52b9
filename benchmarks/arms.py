"""Plain and speculative decoding of the same prompts, interleaved: what predictions are held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common  # noqa: F401 makes the checkout importable
import numpy as np

from perfmodel.halves import Split
from perfmodel.latency import LatencyModel, MeasuredLatency
from perfmodel.policy import ExitPolicy
from perfmodel.rounds import RoundStats
from perfmodel.sampling import Sampling
from perfmodel.trace import AcceptanceTrace
from perfmodel.units import Seconds
from profiler.job import Job
from profiler.latency_files import profiles_of
from profiler.pass_log import PassLog
from profiler.prompts import chosen_prompts
from profiler.record_acceptance import empty_trace, record_acceptance
from s2d.generate import Generation, Session
from s2d.pair import Pair, encode_prompts
from s2d.prompts import read_prompts

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

    @classmethod
    def empty(cls) -> "Arm":
        """Nothing measured yet."""
        return cls(visits_s=[0.0, 0.0], rounds={}, blocks={}, num_runs=0)

    def add(self, visit: int, prompt: int, generation: Generation) -> None:
        """One run of one prompt, of the first or second visit."""
        self.visits_s[visit] += generation.decode_s
        self.rounds[prompt] = generation.rounds
        self.blocks[prompt] = generation.blocks
        self.num_runs += 1


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
) -> Job:
    """Some prompts of a split, to be profiled, traced or decoded."""
    prompts = chosen_prompts(read_prompts(prompts_path), split, num_prompts)
    return Job(
        pair=pair,
        prompts=encode_prompts(pair, prompts, max_new_tokens=max_new_tokens),
        sampling=sampling,
        confidence="max-prob",
        max_new_tokens=max_new_tokens,
        draft_cap=draft_cap,
        seed=seed,
    )


def models_of(log: PassLog, job: Job) -> Models:
    """Seconds of the draft and of the target as a profile of these passes says."""
    profiles = profiles_of(log, job.pair, job.sampling.rule)
    return MeasuredLatency(profiles["draft"]), MeasuredLatency(profiles["target"])


def record(job: Job, session: Session) -> AcceptanceTrace:
    """The trace of a job's prompts."""
    asker = job.asker(session)
    return record_acceptance(
        lambda number: asker.trace(job.prompts[number]),
        len(job.prompts),
        empty_trace(asker.header),
        save=lambda trace: None,
    )


def empty_arms(num_policies: int) -> list[tuple[Arm, Arm]]:
    """A plain and a speculative arm per policy, nothing in them yet."""
    return [(Arm.empty(), Arm.empty()) for _ in range(num_policies)]


def warm_up(job: Job, session: Session, policies: Sequence[ExitPolicy]) -> None:
    """Run everything once, unmeasured."""
    for policy in (None, *policies):
        _run(session, job, policy, 0)


def measure_once(
    job: Job, session: Session, policies: Sequence[ExitPolicy], arms: Sequence[tuple[Arm, Arm]], rng: np.random.Generator
) -> None:
    """Plain, speculative, speculative, plain for every policy and prompt, policies in random order, into their arms."""
    for place in rng.permutation(len(policies)):
        plain, speculative = arms[place]
        for prompt in range(len(job.prompts)):
            for arm, visit in ((plain, 0), (speculative, 0), (speculative, 1), (plain, 1)):
                arm.add(visit, prompt, _run(session, job, None if arm is plain else policies[place], prompt))


def _run(session: Session, job: Job, policy: ExitPolicy | None, prompt: int) -> Generation:
    return session.generate(job.prompts[prompt].token_ids, job.settings(policy, job.max_new_tokens))
