"""A profiling job: the pair, prompts and settings of a measurement; measure its passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from perfmodel.core.units import Seconds, Tokens
from perfmodel.passes.kernels import KernelTrial
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.policy import Confidence, Policy
from perfmodel.policies.sampling import Sampling
from profiler.acceptance.record_acceptance import ExitRecorder, empty_trace, extended
from profiler.latency.budget import PeriodicSave
from profiler.latency.measure_latency import Coverage, Text, measure_latency, take_runs
from profiler.latency.pass_grid import PassKey, needed_passes, run_grid
from profiler.latency.pass_log import PassLog
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Session, Settings
from s2d.decoding.pair import Pair
from s2d.loading.memory import TextLimits

MAX_LATENCY_PROMPTS = 8
"""Latency is measured on this many prompts, with runs from many positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilingJob:
    """The models, prompts and settings of a measurement."""

    pair: Pair
    prompts: tuple[EncodedPrompt, ...]
    sampling: Sampling
    confidence: Confidence
    max_new_tokens: Tokens
    draft_cap: Tokens
    """The longest draft whose passes are measured."""
    seed: int
    """The seed of the measuring order."""
    kernel_trials: tuple[KernelTrial, ...] = ()
    """The trials that chose the pair's kernels; empty if nothing was timed."""
    num_mistakes: int = 0
    """Mistakes per text after which the draft continues off the target's path: see `perfmodel.acceptance.off_path_trace`."""

    def session(self) -> Session:
        """A session with caches for the longest text."""
        return self.pair.session(self.text_limits.max_tokens)

    @property
    def text_limits(self) -> TextLimits:
        """The longest text, and the memory for recording a trace: logits of whole texts, and a second noise table."""
        longest = max(len(prompt.token_ids) for prompt in self.prompts)
        return TextLimits(
            max_tokens=longest + self.max_new_tokens,
            prompt_tokens=longest,
            num_noise_tables=2 if self.sampling.rule == "shared-noise" else 0,
            teacher_forced=("draft", "target") if self.sampling.rule == "ratio" else ("draft",),
        )

    def settings(self, policy: Policy | None, max_new_tokens: Tokens) -> Settings:
        """The settings of one decoding run."""
        return Settings(
            policy=policy, sampling=self.sampling, max_new_tokens=max_new_tokens, eos_token_id=self.pair.eos_token_id
        )

    @property
    def runs_ahead(self) -> bool:
        """Whether to measure running ahead.

        With CUDA graphs it hides the wait for an exit's prediction. Without them it only costs time.
        """
        return self.pair.device_key.mode == "graph"

    def needed_passes(self) -> frozenset[PassKey]:
        """All passes needed to price plans."""
        return needed_passes(len(self.pair.geometry.exit_layers), self.draft_cap, runs_ahead=self.runs_ahead)

    def exit_recorder(self, session: Session) -> ExitRecorder:
        """The recorder of the exits' predictions along the target's text."""
        return ExitRecorder(self.pair, session, self.sampling, self.confidence, self.max_new_tokens, self.num_mistakes)


def profiling_runs(job: ProfilingJob, log: PassLog) -> Iterator[Coverage]:
    """Measure the passes of the grid on the first prompts, one run per iteration, endlessly.

    First the target writes after each of these prompts. Runs start anywhere in that text, and the thresholds of the grid are
    quantiles of the exits' confidences along it. Long runs, which have a fixed text, are taken only for an empty log.

    Args:
        job: the measurement.
        log: receives the passes, and may hold earlier ones.
    """
    session = job.session()
    recorder = replace(job, num_mistakes=0).exit_recorder(session)
    first = job.prompts[:MAX_LATENCY_PROMPTS]
    traces = [extended(empty_trace(recorder.header), [recorder.trace(prompt)]) for prompt in first]
    texts = [
        Text(token_ids=(*prompt.token_ids, *trace.target_token.tolist()), prompt_tokens=len(prompt.token_ids))
        for prompt, trace in zip(first, traces, strict=True)
    ]
    grid = run_grid(traces, draft_cap=job.draft_cap, seed=job.seed, runs_ahead=job.runs_ahead)
    if len(log):
        grid = tuple(run for run in grid if run.text is None)

    def decode(policy: Policy | None, prompt_ids: Sequence[int], new_tokens: Tokens) -> PassSamples:
        return session.generate(prompt_ids, job.settings(policy, new_tokens)).samples

    rng = np.random.default_rng([job.seed, len(log)])
    return take_runs(decode, grid, texts, needed=job.needed_passes(), log=log, rng=rng)


def fill_log(
    job: ProfilingJob,
    log: PassLog,
    budget_s: Seconds,
    *,
    save: Callable[[PassLog], None] = lambda log: None,
    on_run: Callable[[Seconds, int], None] = lambda spent_s, num_missing: None,
) -> None:
    """Measure passes until all needed ones are covered or the budget is spent.

    Args:
        job: the measurement.
        log: receives the passes, and may hold earlier ones.
        budget_s: the maximum duration.
        save: called with the log periodically between runs, and at Ctrl-C.
        on_run: called before each run with the time spent and the number of needed passes with too few samples.
    """
    save_periodically = PeriodicSave(partial(save, log))

    def on_run_and_save(spent_s: Seconds, num_missing: int) -> None:
        on_run(spent_s, num_missing)
        save_periodically()

    try:
        measure_latency(profiling_runs(job, log), budget_s, on_run=on_run_and_save)
    except KeyboardInterrupt:
        save(log)
        raise
