"""One measurement: which models, which prompts, how decoded, and the two things that can be measured of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from perfmodel.core.console import save_or_warn
from perfmodel.core.units import Seconds, Tokens
from perfmodel.passes.kernels import KernelTrial
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.policy import Confidence, Policy
from perfmodel.policies.sampling import Sampling
from profiler.acceptance.record_acceptance import ExitRecorder, empty_trace, extended
from profiler.latency.measure_latency import Coverage, Text, measure_latency, take_runs
from profiler.latency.pass_grid import PassKey, needed_passes, run_grid
from profiler.latency.pass_log import PassLog
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Session, Settings
from s2d.decoding.pair import Pair
from s2d.loading.memory import TextLimits

MAX_LATENCY_PROMPTS = 8
"""Prompts that latency is measured on: enough texts to start anywhere in."""
SAVE_EVERY_S: Seconds = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilingJob:
    """Everything a measurement needs to know."""

    pair: Pair
    prompts: tuple[EncodedPrompt, ...]
    sampling: Sampling
    confidence: Confidence
    max_new_tokens: Tokens
    draft_cap: Tokens
    """The longest draft that latency covers."""
    seed: int
    """Of the order of measuring."""
    kernel_trials: tuple[KernelTrial, ...] = ()
    """What the pair's kernels were chosen by; empty where nothing was timed."""
    num_mistakes: int = 0
    """In every text, behind which the draft is asked once more: see `perfmodel.acceptance.off_path_trace`."""

    def session(self) -> Session:
        """Caches for the longest of these texts."""
        return self.pair.session(self.text_limits.max_tokens)

    @property
    def text_limits(self) -> TextLimits:
        """The longest of these texts. Recording a trace asks models about whole texts, and has a noise table of its own."""
        longest = max(len(prompt.token_ids) for prompt in self.prompts)
        return TextLimits(
            max_tokens=longest + self.max_new_tokens,
            prompt_tokens=longest,
            num_noise_tables=2 if self.sampling.rule == "shared-noise" else 0,
            teacher_forced=("draft", "target") if self.sampling.rule == "ratio" else ("draft",),
        )

    def settings(self, policy: Policy | None, max_new_tokens: Tokens) -> Settings:
        """How the runtime is to decode."""
        return Settings(
            policy=policy, sampling=self.sampling, max_new_tokens=max_new_tokens, eos_token_id=self.pair.eos_token_id
        )

    @property
    def runs_ahead(self) -> bool:
        """Whether running ahead is measured: it hides a wait where passes are launched at once, and only costs elsewhere."""
        return self.pair.device_key.engine == "graph"

    def needed_passes(self) -> frozenset[PassKey]:
        """What a plan is priced from."""
        return needed_passes(len(self.pair.geometry.exit_layers), self.draft_cap, runs_ahead=self.runs_ahead)

    def exit_recorder(self, session: Session) -> ExitRecorder:
        """Asks the draft's exits about the target's text."""
        return ExitRecorder(self.pair, session, self.sampling, self.confidence, self.max_new_tokens, self.num_mistakes)


def profiling_runs(job: ProfilingJob, log: PassLog) -> Iterator[Coverage]:
    """Measure passes over the grid, on the first prompts, into a log: a run at a time, without end.

    The target writes after each of these prompts first: runs start anywhere in that text, and the grid's thresholds are
    quantiles of what the exits say about it. ProfilingRuns of one text, which are long, are taken only for an empty log.

    Args:
        job: what to measure.
        log: may hold passes measured before.
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
    """Measure passes until all that a plan needs are covered, or the budget is spent.

    Args:
        job: what to measure.
        log: may hold passes measured before.
        budget_s: how long.
        save: called with the log every `SAVE_EVERY_S`, between two runs, and once before Ctrl-C goes on its way.
        on_run: told of progress.
    """
    saved_s = time.perf_counter()

    def tell(spent_s: Seconds, num_missing: int) -> None:
        nonlocal saved_s
        on_run(spent_s, num_missing)
        if time.perf_counter() - saved_s >= SAVE_EVERY_S:
            save_or_warn(partial(save, log))
            saved_s = time.perf_counter()

    try:
        measure_latency(profiling_runs(job, log), budget_s, on_run=tell)
    except KeyboardInterrupt:
        save(log)
        raise
