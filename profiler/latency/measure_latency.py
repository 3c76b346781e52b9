"""Seconds of every pass, taken inside the running loop: real rounds over a grid of policies, plain decoding between them.

Each run takes one policy and one place in one text, and decodes an output's length twice from there: speculating and
plainly, in random order. So both kinds of passes are spread over the same stretch of time, and a clock that drifts
divides out of the speedup. The first run of all is warm-up and dropped; the cold rounds after each prompt are kept, as
every real output has them too.
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
"""Runs the runtime on token ids for so many new tokens, under a policy or plainly, and returns every pass it made."""

ENOUGH_SAMPLES = 200
"""Samples after which a pass needs no more runs; common passes get hundreds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt and what the target wrote after it: runs start anywhere between, so that the context varies."""

    token_ids: tuple[int, ...]
    prompt_tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of what a plan needs was measured."""

    all_taken: bool
    """Whether every run of the grid was taken."""
    num_missing: int
    """Needed passes that have too few samples."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to measure but more of the same."""
        return self.all_taken and not self.num_missing


class ProfilingRuns:
    """Chooses the next run of the grid: each once, then whichever adds most to what is still lacking.

    The first time those of one text come first, as they alone make long backlogs, the others in random order.
    """

    def __init__(self, grid: Sequence[ProfilingRun], rng: np.random.Generator) -> None:
        self._rng = rng
        shuffled = [int(place) for place in rng.permutation(len(grid))]
        self._unseen = sorted(shuffled, key=lambda place: grid[place].text is not None)
        self._made: defaultdict[int, Counter[PassKey]] = defaultdict(Counter)
        self._num_runs = Counter(range(len(grid)))

    @property
    def all_taken(self) -> bool:
        """Whether every run was taken."""
        return not self._unseen

    def next(self, lacking: Collection[PassKey]) -> int:
        """The place in the grid of the run to take now."""
        if self._unseen:
            return self._unseen.pop()
        gains = {place: sum(self._made[place][key] for key in lacking) / runs for place, runs in self._num_runs.items()}
        best = [place for place, gain in gains.items() if gain == max(gains.values())]
        return int(self._rng.choice(best))

    def made(self, place: int, passes: Counter[PassKey]) -> None:
        """Note which passes a run made."""
        self._made[place].update(passes)
        self._num_runs[place] += 1


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
    """Without end, say what the log covers and add a run's passes to it; a warm-up run, not kept, comes before.

    Args:
        decode: the runtime.
        grid: the runs to take.
        texts: what to decode.
        needed: the passes that must be covered.
        enough_samples: of each.
        log: may hold passes measured before; it is complete after every run, so that Ctrl-C loses one run at most.
        rng: of order and places.
    """
    _take_run(decode, grid[-1], texts, PassLog(), rng)
    runs = ProfilingRuns(grid, rng)
    while True:
        lacking = missing_passes(log, needed, enough_samples)
        yield Coverage(all_taken=runs.all_taken, num_missing=len(lacking))
        place = runs.next(lacking)
        runs.made(place, _take_run(decode, grid[place], texts, log, rng))


def measure_latency(
    runs: Iterator[Coverage],
    budget_s: Seconds,
    *,
    on_run: Callable[[Seconds, int], None] = lambda spent_s, num_missing: None,
    clock: Callable[[], Seconds] = time.perf_counter,
) -> None:
    """Take runs until everything is covered, or the budget is spent.

    Args:
        runs: of `take_runs`.
        budget_s: how long; the warm-up is not counted.
        on_run: told before every run how long this has taken and how many needed passes still lack samples.
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
    """Decode twice from one place, speculating and plainly in random order; returns the passes of the former.

    Plainly never more than a usual run: a long one is there for its backlogs.
    """
    prompt_ids = _start(texts, run, rng)
    made: Counter[PassKey] = Counter()
    for is_plain in rng.permutation([True, False]):
        if is_plain:
            log.add(decode(None, prompt_ids, min(run.new_tokens, RUN_TOKENS)))
        else:
            made = log.add(decode(run.policy, prompt_ids, run.new_tokens))
    return made


def _start(texts: Sequence[Text], run: ProfilingRun, rng: np.random.Generator) -> Sequence[int]:
    """The prompt of the run's own text, or any text cut somewhere after its prompt, with room before its end."""
    if run.text is not None:
        text = texts[run.text]
        return text.token_ids[: text.prompt_tokens]
    text = texts[int(rng.integers(len(texts)))]
    last = max(text.prompt_tokens, len(text.token_ids) - run.new_tokens)
    return text.token_ids[: int(rng.integers(text.prompt_tokens, last + 1))]
