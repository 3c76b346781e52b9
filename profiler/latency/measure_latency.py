"""Time all passes inside the decoding loop, over a grid of policies and plain decoding.

Each run takes one policy and one position in a text, and decodes the length of an output twice from there: with the draft and
plainly, in random order. So both kinds of passes cover the same period, and clock drift cancels in the speedup. The very first
run is a warm-up and is dropped. The cold rounds after each prompt are kept, because every real output has them.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.core.units import Seconds, Tokens
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.policy import Policy
from profiler.latency.pass_grid import RUN_TOKENS, PassKey, ProfilingRun
from profiler.latency.pass_log import PassLog, missing_passes

Decode = Callable[[Policy | None, Sequence[int], Tokens], PassSamples]
"""Decodes new tokens after the given ones, under a policy or plainly (None), and returns all passes."""

ENOUGH_SAMPLES = 200
"""Samples that a pass needs. Common passes get hundreds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt and the target's text after it. Runs start anywhere in that text, which varies the context length."""

    token_ids: tuple[int, ...]
    prompt_tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How many of the needed passes have been measured."""

    all_taken: bool
    """Whether every run of the grid was taken."""
    num_missing: int
    """Needed passes that have too few samples."""

    @property
    def is_complete(self) -> bool:
        """Whether further runs would only add samples of covered passes."""
        return self.all_taken and not self.num_missing


class ProfilingRuns:
    """Chooses the next run of the grid: each run once, then the one that adds most samples of missing passes.

    Runs with a fixed text come first, because only they make long backlogs. The others follow in random order.
    """

    def __init__(self, grid: Sequence[ProfilingRun], rng: np.random.Generator) -> None:
        self._rng = rng
        shuffled = [int(index) for index in rng.permutation(len(grid))]
        self._untaken = sorted(shuffled, key=lambda index: grid[index].text is not None)
        self._passes: defaultdict[int, Counter[PassKey]] = defaultdict(Counter)
        self._num_runs = Counter(range(len(grid)))

    @property
    def all_taken(self) -> bool:
        """Whether every run was taken."""
        return not self._untaken

    def next(self, missing: Collection[PassKey]) -> int:
        """The index in the grid of the next run."""
        if self._untaken:
            return self._untaken.pop()
        gains = {index: sum(self._passes[index][key] for key in missing) / runs for index, runs in self._num_runs.items()}
        best = [index for index, gain in gains.items() if gain == max(gains.values())]
        return int(self._rng.choice(best))

    def record(self, index: int, passes: Counter[PassKey]) -> None:
        """Record the passes of a run."""
        self._passes[index].update(passes)
        self._num_runs[index] += 1


def take_runs(
    decode: Decode,
    grid: Sequence[ProfilingRun],
    texts: Sequence[Text],
    *,
    needed: Collection[PassKey],
    enough_samples: int = ENOUGH_SAMPLES,
    log: PassLog,
    rng: np.random.Generator,
) -> Iterator[Coverage]:
    """Endlessly yield the coverage of the log, then add the passes of a run to it. Starts with a warm-up run.

    Args:
        decode: the runtime.
        grid: the runs to take.
        texts: the texts to decode.
        needed: the passes to cover.
        enough_samples: samples that a pass needs.
        log: receives the passes, and may hold earlier ones. It is complete after each run, so Ctrl-C loses at most one run.
        rng: draws the order and the positions.
    """
    _take_run(decode, grid[-1], texts, PassLog(), rng)
    runs = ProfilingRuns(grid, rng)
    while True:
        missing = missing_passes(log, needed, enough_samples)
        yield Coverage(all_taken=runs.all_taken, num_missing=len(missing))
        index = runs.next(missing)
        runs.record(index, _take_run(decode, grid[index], texts, log, rng))


def measure_latency(
    runs: Iterator[Coverage],
    budget_s: Seconds,
    *,
    on_run: Callable[[Seconds, int], None] = lambda spent_s, num_missing: None,
    clock: Callable[[], Seconds] = time.perf_counter,
) -> None:
    """Take runs until all needed passes are covered or the budget is spent.

    Args:
        runs: from `take_runs`.
        budget_s: the maximum duration without warm-up.
        on_run: called before each run with the time spent and the number of needed passes with too few samples.
        clock: a monotonic clock in seconds.
    """
    start_s: Seconds | None = None
    for coverage in runs:
        start_s = clock() if start_s is None else start_s
        spent_s = clock() - start_s
        on_run(spent_s, coverage.num_missing)
        if spent_s >= budget_s or coverage.is_complete:
            return


def _take_run(
    decode: Decode, run: ProfilingRun, texts: Sequence[Text], log: PassLog, rng: np.random.Generator
) -> Counter[PassKey]:
    """Decode twice from one position, with the draft and plainly, in random order.

    Returns the counts of the passes with the draft. Plain decoding writes at most `RUN_TOKENS`, because
    longer runs only serve to make backlogs.
    """
    prompt_ids = _start(texts, run, rng)
    passes: Counter[PassKey] = Counter()
    for is_plain in rng.permutation([True, False]):
        if is_plain:
            log.add(decode(None, prompt_ids, min(run.new_tokens, RUN_TOKENS)))
        else:
            passes = log.add(decode(run.policy, prompt_ids, run.new_tokens))
    return passes


def _start(texts: Sequence[Text], run: ProfilingRun, rng: np.random.Generator) -> Sequence[int]:
    """The prompt of the run's text, or a random prefix of any text, with room for the run before its end."""
    if run.text is not None:
        text = texts[run.text]
        return text.token_ids[: text.prompt_tokens]
    text = texts[int(rng.integers(len(texts)))]
    last = max(text.prompt_tokens, len(text.token_ids) - run.new_tokens)
    return text.token_ids[: int(rng.integers(text.prompt_tokens, last + 1))]
