"""What a policy would have done along a target's own text: Trace + Policy -> RoundStats.

Exact rules are replayed exactly. Under the ratio test acceptance is drawn once per position and shared by all policies:
right in expectation, and differences between policies are not drowned in noise. After a block's first mistake the true
prefix's confidences stand in for the draft's own, or what a second trace makes of them (`perfmodel.acceptance.off_path_trace`); that changes
the draft's cost only.

Letters: G replays (policies, or the prompts of one policy after those of another), N entries, S different passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Floats, Seconds
from perfmodel.passes.passes import ColdCount, Line, PassCount, PassKind
from perfmodel.policies.policy import Policy
from perfmodel.replay.compiled import count_replay
from perfmodel.replay.counts import ACCEPTED, BLOCK, COLD, KINDS, ROUND, TAKEN, Entries
from perfmodel.replay.layout import Counts
from perfmodel.replay.round_stats import RoundStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What passes cost."""

    line: Callable[[PassKind, int, int], Line]
    """(kind, stage, rows) -> seconds of a warm pass."""
    cold_s: Callable[[PassKind, int, int], Seconds]
    """(kind, stage, place) -> seconds that come on top at a cold place."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplayBatch:
    """Counts of G replays: of G policies over all prompts together, or of policies prompt by prompt."""

    num_exits: int
    num_prompts: int
    """Prompts in each of the G."""
    num_tokens: Counts  # [G]
    entries: Entries  # [N]

    @property
    def num_rounds(self) -> Counts:
        """Rounds of each of the G. [G]."""
        rounds = self.entries[self.entries["what"] == ROUND]
        summed: Counts = np.bincount(rounds["group"], rounds["number"], len(self.num_tokens)).astype(np.int64)
        return summed

    def seconds(self, price: Price) -> Floats:
        """Predicted seconds of each of the G, prefill not included: counts times base plus cached tokens times slope. [G]."""

        def line(what: int, stage: int, rows: int) -> Line:
            return price.line(KINDS[what], stage, rows)

        def cold_line(what: int, stage: int, place: int) -> Line:
            return Line(price.cold_s(KINDS[what - COLD], stage, place), 0.0)

        what = self.entries["what"]
        return self._cost(self.entries[what < len(KINDS)], line) + self._cost(self.entries[what >= COLD], cold_line)

    def _cost(self, entries: Entries, line: Callable[[int, int, int], Line]) -> Floats:
        """What some entries take, each kind of them being asked for once. [G]."""
        what, stage, size = (entries[name] for name in ("what", "stage", "size"))
        widest = int(size.max(initial=0)) + 1
        shape = (what * self.num_exits + stage) * widest + size
        is_there = np.zeros(int(shape.max(initial=0)) + 1, np.bool_)
        is_there[shape] = True
        base_s, per_cached_token_s = np.zeros((2, len(is_there)))
        for one in np.flatnonzero(is_there).tolist():
            kind, cell = divmod(one, self.num_exits * widest)
            base_s[one], per_cached_token_s[one] = line(kind, *divmod(cell, widest))
        cost_s = entries["number"] * base_s[shape] + entries["cached"] * per_cached_token_s[shape]
        total_s: Floats = np.bincount(entries["group"], cost_s, len(self.num_tokens)).astype(np.float64)
        return total_s

    def stats(self) -> tuple[RoundStats, ...]:
        """The record of each of the G."""
        return tuple(
            self._record(int(num_tokens), entries)
            for num_tokens, entries in zip(self.num_tokens, self._by_group(), strict=True)
        )

    def _by_group(self) -> Iterator[Entries]:
        """The entries of each of the G."""
        bounds = np.searchsorted(self.entries["group"], np.arange(len(self.num_tokens) + 1))
        return (self.entries[first:past] for first, past in pairwise(bounds.tolist()))

    def _record(self, num_tokens: int, entries: Entries) -> RoundStats:
        rows = {what: list(of) for what, of in groupby(entries.tolist(), key=lambda entry: entry[1])}
        drafted, accepted = ([(size, number) for _, _, _, size, number, _ in rows.get(what, [])] for what in (ROUND, ACCEPTED))
        taken = {stage: number for _, _, stage, _, number, _ in rows.get(TAKEN, [])}
        return RoundStats(
            num_prompts=self.num_prompts,
            num_rounds=sum(number for _, number in drafted),
            num_tokens=num_tokens,
            num_drafted=sum(size * number for size, number in drafted),
            num_accepted=float(sum(size * number for size, number in accepted)),
            drafted_by_position=_by_position(drafted, drafted),
            accepted_by_position=tuple(map(float, _by_position(accepted, drafted))),
            exits_taken=tuple(taken.get(stage, 0) for stage in range(self.num_exits)),
            passes=tuple(
                PassCount(kind=kind, stage=stage, rows=size, num_passes=number, cached_tokens_sum=cached)
                for what, kind in enumerate(KINDS)
                for _, _, stage, size, number, cached in rows.get(what, [])
            ),
            cold_passes=tuple(
                ColdCount(kind=kind, stage=stage, place=size, num_passes=number)
                for what, kind in enumerate(KINDS, COLD)
                for _, _, stage, size, number, _ in rows.get(what, [])
            ),
        )


def replay(trace: Trace, policy: Policy | None) -> RoundStats:
    """Counts of a policy's rounds over all prompts of a trace, as one record. `None` is plain decoding.

    Raises:
        BadPolicy: the policy uses an exit that the traced draft does not have, or another confidence measure.
    """
    [stats] = replay_batch(trace, [policy]).stats()
    return stats


def replay_prompts(trace: Trace, policy: Policy | None) -> tuple[RoundStats, ...]:
    """The same by prompt: one record for each, in the order of the trace.

    Raises:
        BadPolicy: the policy uses an exit that the traced draft does not have, or another confidence measure.
    """
    return replay_batch(trace, [policy], by_prompt=True).stats()


def replay_batch(trace: Trace, policies: Sequence[Policy | None], *, by_prompt: bool = False) -> ReplayBatch:
    """Counts of many policies' rounds, thousands of policies a second.

    Args:
        trace: predictions of every exit along the target's text.
        policies: None is plain decoding.
        by_prompt: one replay for each prompt of each policy, policy after policy, instead of one for each policy.

    Raises:
        BadPolicy: a policy uses an exit that the traced draft does not have, or another confidence measure.
    """
    num_tokens = [prompt.num_positions for prompt in trace.header.prompts]
    each = num_tokens if by_prompt else [sum(num_tokens)]
    return ReplayBatch(
        num_exits=len(trace.header.draft.exit_layers),
        num_prompts=1 if by_prompt else len(num_tokens),
        num_tokens=np.array(each * len(policies), np.int64),
        entries=count_replay(trace, policies, by_prompt=by_prompt),
    )


def block_lengths(trace: Trace, policy: Policy | None) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Drafted and accepted tokens of every round, by prompt: what a run must reproduce block by block."""
    entries = count_replay(trace, [policy], by_prompt=True, keep_blocks=True)
    blocks = entries[entries["what"] == BLOCK]
    lengths = list(zip(blocks["size"].tolist(), blocks["number"].tolist(), strict=True))
    bounds = np.searchsorted(blocks["group"], np.arange(len(trace.header.prompts) + 1)).tolist()
    return tuple(tuple(lengths[first:past]) for first, past in pairwise(bounds))


def _by_position(rounds: Sequence[tuple[int, int]], longest_of: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Entry i: rounds of at least i + 1 tokens, from how many had so many; as long as the longest of some rounds."""
    longest = max((size for size, _ in longest_of), default=0)
    return tuple(sum(number for size, number in rounds if size > place) for place in range(longest))
