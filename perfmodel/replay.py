"""What a policy would have done along a target's own text: AcceptanceTrace + ExitPolicy -> RoundStats.

Under one policy a round is a jump from one column of the tape to a later one. Replay follows the jumps, all prompts and
policies in step, and then counts the passes of the rounds it visited; no token is looked at one by one.

Exact rules are replayed exactly. Under the ratio test acceptance is drawn once per position and shared by all policies:
right in expectation, and differences between policies are not drowned in noise. After a block's first mismatch the true
prefix's confidences stand in for the draft's own, which changes the draft's cost only.

Letters: G replays (policies, or the prompts of one policy), E exits or segments, K tokens drafted, R rows of a pass, P places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.courses import run_courses
from perfmodel.passes import COLD_PLACES, ColdCount, PassKind
from perfmodel.policy import ExitPolicy
from perfmodel.rounds import RoundStats, pass_counts
from perfmodel.tally import Grouping, PassTable, count_passes
from perfmodel.tape import Counts, Floats, make_tape
from perfmodel.trace import AcceptanceTrace
from perfmodel.units import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What passes cost."""

    line: Callable[[PassKind, int, int], tuple[Seconds, Seconds]]
    """(kind, stage, rows) -> (seconds of a warm pass with an empty cache, seconds per cached token)."""
    cold_s: Callable[[PassKind, int, int], Seconds]
    """(kind, stage, place) -> seconds that come on top at a cold place."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplayBatch:
    """Counts of G replays: of G policies over all prompts together, or of one policy over G prompts."""

    num_prompts: int
    """Prompts in each of the G."""
    num_tokens: Counts  # [G]
    drafted: Counts  # [G, K]; rounds that drafted k tokens
    accepted: Counts  # [G, K]; rounds that accepted k tokens
    verify_cached: Counts  # [G, K]; cached tokens before the verify passes of k + 1 rows, in sum
    exit_checks: Counts  # [G, E]
    exits_taken: Counts  # [G, E]
    segments: Counts  # [G, E, R]; passes of a segment over r rows
    segments_cached: Counts  # [G, E, R]; cached tokens before them, in sum
    cold_segments: Counts  # [G, E, P]; passes of a segment at the first places of their rounds
    cold_checks: Counts  # [G, P]; exit checks there
    verify_depths: Counts  # [G, E]; rounds in which so many segments ran, one or more

    def stats(self, group: int) -> RoundStats:
        """The record of one of the G."""
        drafted, accepted = _at_least(self.drafted[group]), _at_least(self.accepted[group])
        longest = int(np.count_nonzero(drafted)) - 1
        return RoundStats(
            num_prompts=self.num_prompts,
            num_rounds=int(drafted[0]),
            num_tokens=int(self.num_tokens[group]),
            num_drafted=int(drafted[1:].sum()),
            num_accepted=float(accepted[1:].sum()),
            drafted_by_position=tuple(map(int, drafted[1 : longest + 1])),
            accepted_by_position=tuple(map(float, accepted[1 : longest + 1])),
            exits_taken=tuple(map(int, self.exits_taken[group])),
            passes=pass_counts(*self._passes(group)),
            cold_passes=self._cold_counts(group),
        )

    def seconds(self, price: Price) -> Floats:
        """Predicted seconds of each of the G, prefill not included: counts times base plus cached tokens times slope."""
        shapes, number, cached = self._shapes(slice(None))
        base_s, per_cached_token_s = np.array([price.line(*shape) for shape in shapes]).T
        ran, seconds = number > 0, np.zeros(number.shape)
        np.multiply(number, base_s, out=seconds, where=ran)
        np.add(seconds, cached * per_cached_token_s, out=seconds, where=ran)
        total: Floats = seconds.sum(axis=1)
        places, number = self._cold(slice(None))
        total += number @ np.array([price.cold_s(*place) for place in places])
        return total

    def _cold(self, groups: slice) -> tuple[list[tuple[PassKind, int, int]], Counts]:
        """Kind, stage and place of each pass that may be cold, and their numbers in some of the G. Of S: [G, S]."""
        num_segments, first = self.cold_segments.shape[1], range(1, COLD_PLACES + 1)
        places: list[tuple[PassKind, int, int]] = [("exit", 0, place) for place in first]
        places += [("segment", stage, place) for stage in range(num_segments) for place in first]
        places += [("verify", 0, depth) for depth in range(2, num_segments + 1)]
        segments = self.cold_segments[groups]
        verifies = self.verify_depths[groups, 1:]
        return places, np.hstack([self.cold_checks[groups], segments.reshape(len(segments), -1), verifies])

    def _cold_counts(self, group: int) -> tuple[ColdCount, ...]:
        places, [numbers] = self._cold(slice(group, group + 1))
        return tuple(
            ColdCount(kind=kind, stage=stage, place=place, num_passes=number)
            for (kind, stage, place), number in zip(places, numbers.tolist(), strict=True)
            if number
        )

    def _passes(self, group: int) -> tuple[Counter[tuple[str, int, int]], Counter[tuple[str, int, int]]]:
        shapes, [number], [cached] = self._shapes(slice(group, group + 1))
        return Counter(dict(zip(shapes, number.tolist(), strict=True))), Counter(
            dict(zip(shapes, cached.tolist(), strict=True))
        )

    def _shapes(self, groups: slice) -> tuple[list[tuple[PassKind, int, int]], Counts, Counts]:
        """Kind, stage and rows of each pass that occurs in some of the G, with their numbers and their cached tokens.

        Of S shapes: [G, S] each.
        """
        drafted, checks, segments = self.drafted[groups], self.exit_checks[groups], self.segments[groups]
        lengths, stages = np.flatnonzero(drafted.any(axis=0)), np.flatnonzero(checks.any(axis=0))
        segment_stages, segment_rows = np.nonzero(segments.any(axis=0))
        shapes: list[tuple[PassKind, int, int]] = [("verify", 0, length + 1) for length in lengths.tolist()]
        shapes += [("segment", *one) for one in zip(segment_stages.tolist(), segment_rows.tolist(), strict=True)]
        shapes += [("round", 0, length) for length in lengths.tolist()]
        shapes += [("exit", stage, 1) for stage in stages.tolist()]
        rounds, reads = drafted[:, lengths], segments[:, segment_stages, segment_rows]
        seen = (self.verify_cached[groups][:, lengths], self.segments_cached[groups][:, segment_stages, segment_rows])
        nothing = np.zeros((len(drafted), len(lengths) + len(stages)), np.int64)
        return shapes, np.hstack([rounds, reads, rounds, checks[:, stages]]), np.hstack([*seen, nothing])


def replay(trace: AcceptanceTrace, policy: ExitPolicy | None) -> tuple[RoundStats, ...]:
    """What the policy would have done, one record per prompt. `None` is plain decoding.

    Raises:
        BadPolicy: the policy looks at an exit that the traced draft does not have, or at another confidence.
    """
    batch = replay_by_prompt(trace, policy)
    return tuple(batch.stats(prompt) for prompt in range(len(trace.header.prompts)))


def replay_by_prompt(trace: AcceptanceTrace, policy: ExitPolicy | None) -> ReplayBatch:
    """What the policy would have done, prompt by prompt and ready to be priced."""
    tape = make_tape(trace, [policy])
    by_prompt = Grouping(num_groups=len(tape.begin), of_column=tape.prompt)
    return _stack([count_passes(tape, course, by_prompt) for _, course in run_courses(tape, [policy])], num_prompts=1)


def replay_many(trace: AcceptanceTrace, policies: Sequence[ExitPolicy | None]) -> ReplayBatch:
    """What each policy would have done over all prompts together."""
    tape = make_tape(trace, policies)
    together = Grouping(num_groups=1, of_column=None)
    counts = {place: count_passes(tape, course, together) for place, course in run_courses(tape, policies)}
    return _stack([counts[place] for place in range(len(policies))], num_prompts=len(tape.begin))


def block_lengths(trace: AcceptanceTrace, policy: ExitPolicy | None) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Drafted and accepted tokens of every round, by prompt: what a run must reproduce block by block."""
    tape = make_tape(trace, [policy])
    [(_, course)] = run_courses(tape, [policy])
    blocks = zip(course.drafted.tolist(), course.accepted.tolist(), strict=True)
    by_prompt: list[list[tuple[int, int]]] = [[] for _ in tape.begin]
    for prompt, block in zip(tape.prompt[course.start].tolist(), blocks, strict=True):
        by_prompt[prompt].append(block)
    return tuple(tuple(rounds) for rounds in by_prompt)


def _at_least(counts: Counts) -> Counts:
    """Entry i: how many are at least i."""
    return np.cumsum(counts[::-1])[::-1]


def _stack(tables: Sequence[PassTable], *, num_prompts: int) -> ReplayBatch:
    """One batch of many tables, each padded to the widest."""
    return ReplayBatch(
        num_prompts=num_prompts,
        num_tokens=_join([table.num_tokens for table in tables]),
        drafted=_join([table.drafted for table in tables]),
        accepted=_join([table.accepted for table in tables]),
        verify_cached=_join([table.verify_cached for table in tables]),
        exit_checks=_join([table.exit_checks for table in tables]),
        exits_taken=_join([table.exits_taken for table in tables]),
        segments=_join([table.segments for table in tables]),
        segments_cached=_join([table.segments_cached for table in tables]),
        cold_segments=_join([table.cold_segments for table in tables]),
        cold_checks=_join([table.cold_checks for table in tables]),
        verify_depths=_join([table.verify_depths for table in tables]),
    )


def _join(parts: Sequence[Counts]) -> Counts:
    """Concatenated along the first axis, the last axis padded with zeros."""
    widths = {part.shape[-1] for part in parts}
    if parts[0].ndim == 1 or len(widths) == 1:
        return np.concatenate(parts)
    joined = np.zeros((sum(map(len, parts)), *parts[0].shape[1:-1], max(widths)), np.int64)
    start = 0
    for part in parts:
        joined[start : start + len(part), ..., : part.shape[-1]] = part
        start += len(part)
    return joined
