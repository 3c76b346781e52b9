"""What a policy would have done along a target's own text: AcceptanceTrace + ExitPolicy -> RoundStats.

Under one policy a round is a jump from one column of the tape to a later one. Replay follows the jumps, all prompts and
policies in step, and then counts the passes of the rounds it visited; no token is looked at one by one.

Exact rules are replayed exactly. Under the ratio test acceptance is drawn once per position and shared by all policies:
right in expectation, and differences between policies are not drowned in noise. After a block's first mistake the true
prefix's confidences stand in for the draft's own, or what a second trace makes of them (`perfmodel.off_path`); that changes
the draft's cost only.

Letters: G replays (policies, or the prompts of one policy), E exits or segments, K tokens drafted, R rows of a pass, P places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from perfmodel.courses import run_courses
from perfmodel.grouping import Grouping
from perfmodel.passes import COLD_PLACES, SEGMENT_KINDS, ColdCount, PassCount, PassKind, PassName
from perfmodel.policy import ExitPolicy
from perfmodel.rounds import RoundStats
from perfmodel.tally import PassTable, count_passes
from perfmodel.tape import Counts, Floats, Tape, make_tape, places_of
from perfmodel.trace import AcceptanceTrace
from perfmodel.units import Seconds

_LONGEST_STEP = 16


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
    exit_checks: Counts  # [G, E]; but those that are waited for while a segment runs ahead
    exits_taken: Counts  # [G, E]
    segments: Counts  # [G, E, R]; passes of a segment over r rows
    segments_cached: Counts  # [G, E, R]; cached tokens before them, in sum
    cold_segments: Counts  # [G, E, P]; passes of a segment at the first places of their rounds
    aheads: Counts  # [G, E, R]; passes of a segment over r rows, ahead of the answer of the exit before it
    aheads_cached: Counts  # [G, E, R]
    cold_aheads: Counts  # [G, E, P]
    cold_checks: Counts  # [G, P]; exit checks there
    verify_depths: Counts  # [G, E]; rounds in which so many segments ran, one or more

    def stats(self) -> tuple[RoundStats, ...]:
        """The record of each of the G."""
        shapes, *counts = self._shapes()
        places, cold = self._cold()
        by_shape, by_place = (sorted(range(len(names)), key=names.__getitem__) for names in (shapes, places))
        passes = zip(*(numbers.tolist() for numbers in counts), cold.tolist(), strict=True)
        drafted, accepted = _at_least(self.drafted), _at_least(self.accepted)
        longest = (np.count_nonzero(drafted, axis=1) - 1).tolist()
        return tuple(
            RoundStats(
                num_prompts=self.num_prompts,
                num_rounds=int(drafted[group, 0]),
                num_tokens=int(self.num_tokens[group]),
                num_drafted=int(drafted[group, 1:].sum()),
                num_accepted=float(accepted[group, 1:].sum()),
                drafted_by_position=tuple(drafted[group, 1 : longest[group] + 1].tolist()),
                accepted_by_position=tuple(accepted[group, 1 : longest[group] + 1].astype(float).tolist()),
                exits_taken=tuple(self.exits_taken[group].tolist()),
                passes=tuple(_pass_count(shapes[i], number[i], cached[i]) for i in by_shape if number[i]),
                cold_passes=tuple(_cold_count(places[i], early[i]) for i in by_place if early[i]),
            )
            for group, (number, cached, early) in enumerate(passes)
        )

    def seconds(self, price: Price) -> Floats:
        """Predicted seconds of each of the G, prefill not included: counts times base plus cached tokens times slope."""
        shapes, number, cached = self._shapes()
        base_s, per_cached_token_s = np.array([price.line(*shape) for shape in shapes]).T
        ran, seconds = number > 0, np.zeros(number.shape)
        np.multiply(number, base_s, out=seconds, where=ran)
        np.add(seconds, cached * per_cached_token_s, out=seconds, where=ran)
        total: Floats = seconds.sum(axis=1)
        places, number = self._cold()
        total += number @ np.array([price.cold_s(*place) for place in places])
        return total

    def _cold(self) -> tuple[list[PassName], Counts]:
        """Kind, stage and place of each pass that may be cold, and their numbers in each of the G. Of S: [G, S]."""
        num_segments, first = self.cold_segments.shape[1], range(1, COLD_PLACES + 1)
        places: list[PassName] = [("exit", 0, place) for place in first]
        places += [("verify", 0, depth) for depth in range(2, num_segments + 1)]
        number = [self.cold_checks, self.verify_depths[:, 1:]]
        for kind, cold in zip(SEGMENT_KINDS, (self.cold_segments, self.cold_aheads), strict=True):
            places += [(kind, stage, 1 + place) for stage in range(num_segments) for place in range(cold.shape[2])]
            number.append(cold.reshape(len(cold), -1))
        return places, np.hstack(number)

    def _shapes(self) -> tuple[list[PassName], Counts, Counts]:
        """Kind, stage and rows of each pass that occurs in any of the G, with their numbers and their cached tokens.

        Of S shapes: [G, S] each.
        """
        lengths, stages = np.flatnonzero(self.drafted.any(axis=0)), np.flatnonzero(self.exit_checks.any(axis=0))
        rounds, nothing = self.drafted[:, lengths], np.zeros((len(self.drafted), len(lengths) + len(stages)), np.int64)
        shapes: list[PassName] = [("round", 0, length) for length in lengths.tolist()]
        shapes += [("exit", stage, 1) for stage in stages.tolist()]
        shapes += [("verify", 0, length + 1) for length in lengths.tolist()]
        number, cached = [rounds, self.exit_checks[:, stages], rounds], [nothing, self.verify_cached[:, lengths]]
        passes = ((self.segments, self.segments_cached), (self.aheads, self.aheads_cached))
        for kind, (ran, seen) in zip(SEGMENT_KINDS, passes, strict=True):
            at, rows = np.nonzero(ran.any(axis=0))
            shapes += [(kind, *one) for one in zip(at.tolist(), rows.tolist(), strict=True)]
            number.append(ran[:, at, rows])
            cached.append(seen[:, at, rows])
        return shapes, np.hstack(number), np.hstack(cached)


def replay(trace: AcceptanceTrace, policy: ExitPolicy | None) -> tuple[RoundStats, ...]:
    """What the policy would have done, one record per prompt. `None` is plain decoding.

    Raises:
        BadPolicy: the policy looks at an exit that the traced draft does not have, or at another confidence.
    """
    return replay_by_prompt(trace, [policy]).stats()


def replay_by_prompt(trace: AcceptanceTrace, policies: Sequence[ExitPolicy | None]) -> ReplayBatch:
    """What each policy would have done, prompt by prompt: as many replays as policies times prompts, policy after policy."""
    return _replay(trace, policies, by_prompt=True)


def replay_many(trace: AcceptanceTrace, policies: Sequence[ExitPolicy | None]) -> ReplayBatch:
    """What each policy would have done over all prompts together."""
    return _replay(trace, policies, by_prompt=False)


def _replay(trace: AcceptanceTrace, policies: Sequence[ExitPolicy | None], *, by_prompt: bool) -> ReplayBatch:
    tape = _tape_for(trace, policies)
    order: list[int] = []
    tables = []
    for places, courses in run_courses(tape, policies):
        order += places
        tables.append(count_passes(tape, courses, Grouping(tape, len(places), by_prompt=by_prompt)))
    return _stack(tables, np.argsort(order), num_prompts=1 if by_prompt else len(trace.header.prompts))


def _tape_for(trace: AcceptanceTrace, policies: Sequence[ExitPolicy | None]) -> Tape:
    """Laid out for blocks a little longer than needed, so that one layout serves many searches' steps."""
    longest = max((policy.length.draft_cap for policy in policies if policy), default=1)
    return make_tape(trace, -(-longest // _LONGEST_STEP) * _LONGEST_STEP)


def block_lengths(trace: AcceptanceTrace, policy: ExitPolicy | None) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Drafted and accepted tokens of every round, by prompt: what a run must reproduce block by block."""
    tape = _tape_for(trace, [policy])
    [(_, courses)] = run_courses(tape, [policy])
    blocks = list(zip(courses.drafted.tolist(), courses.accepted.tolist(), strict=True))
    bounds = np.searchsorted(courses.start, places_of(tape, 1).prompts).tolist()
    return tuple(tuple(blocks[first:past]) for first, past in pairwise(bounds))


def _at_least(counts: Counts) -> Counts:
    """Entry i of each row: how many are at least i."""
    at_least: Counts = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    return at_least


def _pass_count(name: PassName, number: int, cached: int) -> PassCount:
    kind, stage, rows = name
    return PassCount(kind=kind, stage=stage, rows=rows, num_passes=number, cached_tokens_sum=cached)


def _cold_count(name: PassName, number: int) -> ColdCount:
    kind, stage, place = name
    return ColdCount(kind=kind, stage=stage, place=place, num_passes=number)


def _stack(tables: Sequence[PassTable], order: Counts, *, num_prompts: int) -> ReplayBatch:
    """One batch of many tables, each padded to the widest; their policies in an order."""

    def joined(of_table: Callable[[PassTable], Counts]) -> Counts:
        rows = _join([of_table(table) for table in tables])
        by_policy: Counts = rows.reshape(len(order), len(rows) // len(order), *rows.shape[1:])[order]
        return by_policy.reshape(rows.shape)

    return ReplayBatch(
        num_prompts=num_prompts,
        num_tokens=joined(lambda table: table.num_tokens),
        drafted=joined(lambda table: table.drafted),
        accepted=joined(lambda table: table.accepted),
        verify_cached=joined(lambda table: table.verify_cached),
        exit_checks=joined(lambda table: table.exit_checks),
        exits_taken=joined(lambda table: table.exits_taken),
        segments=joined(lambda table: table.segments),
        segments_cached=joined(lambda table: table.segments_cached),
        cold_segments=joined(lambda table: table.cold_segments),
        aheads=joined(lambda table: table.aheads),
        aheads_cached=joined(lambda table: table.aheads_cached),
        cold_aheads=joined(lambda table: table.cold_aheads),
        cold_checks=joined(lambda table: table.cold_checks),
        verify_depths=joined(lambda table: table.verify_depths),
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
