"""The passes of the rounds that policies ran, counted by kind, rows and cached tokens.

A segment that every token runs through has passes of one row, but for the first after a block accepted in full: so have all
where a token that left catches up at once. Otherwise a segment that some tokens never reach catches up when one comes:
`perfmodel.backlog`.

How many passes of a round are cold follows from how many there are: of n, the first is at place 1, the second at place 2. How
cold its verification is follows from the deepest exit that a token of it came to.

Letters: Q policies, N rounds, G groups, E exits or segments, L exits that are looked at, K tokens drafted, R rows, P places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from perfmodel.backlog import Depth, depth_of, endings_of
from perfmodel.courses import Courses
from perfmodel.grouping import Found, Grouping
from perfmodel.levels import Level, Passes, chosen_passes, cold_of
from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Bools, Counts, Lengths, Tape, places_of

_TOLD = COLD_PLACES + 1
"""Numbers that are told apart, if they are told up to P."""
_MOST_VALUES = 4096
"""Of a histogram of several things at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassTable:
    """Counts by group; K and R as wide as they need to be."""

    num_tokens: Counts  # [G]
    drafted: Counts  # [G, K]
    accepted: Counts  # [G, K]
    verify_cached: Counts  # [G, K]
    exit_checks: Counts  # [G, E]; but those that are waited for while a segment runs ahead
    exits_taken: Counts  # [G, E]
    segments: Counts  # [G, E, R]
    segments_cached: Counts  # [G, E, R]
    cold_segments: Counts  # [G, E, P]
    aheads: Counts  # [G, E, R]; by the segment that runs ahead
    aheads_cached: Counts  # [G, E, R]
    cold_aheads: Counts  # [G, E, P]
    cold_checks: Counts  # [G, P]; of exit checks, whichever the exit
    verify_depths: Counts  # [G, E]; rounds by the segments that ran in them, one or more


def count_passes(tape: Tape, courses: Courses, grouping: Grouping) -> PassTable:
    """Count the passes of the rounds."""
    return _Tally(tape, courses, grouping).table()


class _Tally:
    """The rounds of some policies, being counted."""

    def __init__(self, tape: Tape, courses: Courses, grouping: Grouping) -> None:
        self.tape, self.courses, self.grouping = tape, courses, grouping
        self.width = int(courses.drafted.max()) + 1  # K
        num_levels = len(courses.blocks.on_path.coming)
        endings = endings_of(tape, courses) if num_levels else None
        self.depths = [depth_of(tape, courses, endings, level) for level in range(num_levels)] if endings else []
        rounds, known, self.cold = self._rounds()
        reads = known - rounds
        self.drafted, self.verify_cached = rounds.sum(axis=2), reads.sum(axis=2)  # [G, K] each
        self.after_full, self.after_full_cached = rounds[:, 1:, 1].sum(axis=1), reads[:, 1:, 1].sum(axis=1)  # [G] each
        self.looked = np.repeat(courses.blocks.looked, grouping.per_policy, axis=0)  # [G, L]

    def table(self) -> PassTable:
        """All counts."""
        levels, num_policies = list(self._levels()), self.courses.num_policies
        checks, taken, depths = self._exits([level.tokens for level in levels[:-1]], [level.rounds for level in levels[:-1]])
        segments, aheads = self._segments(levels)
        lengths = (self.tape.end - self.tape.begin).reshape(self.grouping.per_policy, -1).sum(axis=1)
        return PassTable(
            num_tokens=np.tile(lengths, num_policies),
            drafted=self.drafted,
            accepted=self.grouping.histogram(self.courses.start, self.courses.accepted, self.width),
            verify_cached=self.verify_cached,
            exit_checks=checks,
            exits_taken=taken,
            segments=segments.number,
            segments_cached=segments.cached,
            cold_segments=segments.cold,
            aheads=aheads.number,
            aheads_cached=aheads.cached,
            cold_aheads=aheads.cold,
            cold_checks=self.cold[-1],
            verify_depths=depths,
        )

    def _exits(self, tokens: Sequence[Counts], rounds: Sequence[Counts]) -> tuple[Counts, Counts, Counts]:
        """Exit checks that were waited for, exits taken, rounds by depth, from what came to each looked-at exit. [G, E] each.

        Running ahead, only the last one's checks are waited for, and a segment more runs than a token comes to.
        """
        looked, runs_ahead, group = self.looked, self.courses.blocks.runs_ahead, np.arange(self.grouping.num_groups)
        checks, taken, depths = np.zeros((3, len(looked), len(self.tape.exit_layers)), np.int64)
        left_in, ended_in = _but_deeper(tokens), _but_deeper(rounds)
        for level, exits in enumerate(looked.T):
            is_ahead = runs_ahead and level < looked.shape[1] - 1
            checks[group, exits] = 0 if is_ahead else tokens[level]
            taken[group, exits] = left_in[level]
            depths[group, exits + is_ahead] += ended_in[level]
        if self.tape.is_self_draft and len(tokens):  # all segments run before its verification
            depths[:] = 0
            depths[:, -1] = self.drafted.sum(axis=1)
        return checks, taken, depths

    def _segments(self, levels: Sequence[Level]) -> tuple[Passes, Passes]:
        """By segment, the passes that run when a token comes there, and those that run ahead of it. [G, E, any] each."""
        num_exits, group = self.looked.shape[1], np.arange(len(self.looked))[:, None]
        level_of = (self.looked[:, :, None] < np.arange(len(self.tape.exit_layers))).sum(axis=1)  # [G, E]
        usual, nothing = [level.passes for level in levels], self._no_passes()
        if not self.courses.blocks.runs_ahead:
            return chosen_passes(usual, level_of, group), chosen_passes([nothing], np.zeros_like(level_of), group)
        # The first segment below a looked-at exit but the last runs for every token that comes to this exit.
        is_ahead = (np.diff(level_of, axis=1, prepend=0) > 0) & (level_of < num_exits)
        pushed = [level.pushed or nothing for level in levels]
        return (
            chosen_passes([*usual, *pushed], np.where(is_ahead, len(levels) + level_of - 1, level_of), group),
            chosen_passes([nothing, *(level.drafting for level in levels)], np.where(is_ahead, level_of, 0), group),
        )

    def _levels(self) -> Iterator[Level]:
        """The segments down to each looked-at exit, and last those below them all."""
        if self.looked.shape[1]:
            every = self._level_of_every_token()
            yield every
            for some in map(self._level_of_some_tokens, self.depths, self.cold):
                yield replace(every, tokens=some.tokens) if self.courses.blocks.catches_up_at_once else some
        none, is_pushed = np.zeros(self.grouping.num_groups, np.int64), self.tape.is_self_draft and self.looked.shape[1]
        pushed = self._pushed_through() if is_pushed else None
        yield Level(drafting=self._no_passes(), pushed=pushed, rounds=none, tokens=none)

    def _no_passes(self) -> Passes:
        nothing = np.zeros((self.grouping.num_groups, 0), np.int64)
        return Passes(number=nothing, cached=nothing, cold=nothing)

    def _pushed_through(self) -> Passes:
        """Passes of a self draft's verification below its last exit: one a round over its block and lead."""
        wider = ((0, 0), (1, 0))
        return self._one_a_round(np.pad(self.drafted, wider), np.pad(self.verify_cached, wider))

    def _one_a_round(self, number: Counts, cached: Counts) -> Passes:
        """The passes of a self draft's verification."""
        cold = np.zeros((self.grouping.num_groups, COLD_PLACES), np.int64)
        cold[:, 0] = self.drafted.sum(axis=1)
        return Passes(number=number, cached=cached, cold=cold)

    def _level_of_every_token(self) -> Level:
        """A segment that every token runs through: passes of one row each, k in a round that drafted k tokens.

        A block accepted in full leaves its last token unprocessed, so that the next one's first pass has two rows, the first
        of which is no longer cached. A self draft pushes that token in the verification.
        """
        rounds, reads, tokens = self.drafted, self.verify_cached, np.arange(self.width)
        number, cached = np.zeros((2, self.grouping.num_groups, 3), np.int64)
        number[:, 1] = rounds @ tokens
        cached[:, 1] = reads @ tokens + rounds @ (tokens * (tokens - 1) // 2)
        pushed = None
        if self.tape.is_self_draft:
            last_reads = reads.sum(axis=1) + rounds @ tokens
            pushed = self._one_a_round(*(np.pad(once[:, None], ((0, 0), (1, 0))) for once in (rounds.sum(axis=1), last_reads)))
        else:
            number[:, 2], cached[:, 2] = self.after_full, self.after_full_cached - self.after_full
            number[:, 1] -= self.after_full
            cached[:, 1] -= self.after_full_cached
        return Level(
            drafting=Passes(number=number, cached=cached, cold=cold_of(rounds)),
            pushed=pushed,
            rounds=rounds[:, 1:].sum(axis=1),
            tokens=rounds @ tokens,
        )

    def _follows_full(self) -> Bools:
        """Rounds that follow on one whose block was accepted in full. [N]."""
        courses = self.courses
        follows = np.zeros(len(courses.start), np.bool_)
        np.equal(courses.accepted[:-1], courses.drafted[:-1], out=follows[1:])
        follows[np.searchsorted(courses.start, places_of(self.tape, courses.num_policies).prompts[:-1])] = False
        return follows

    def _level_of_some_tokens(self, depth: Depth, cold: Counts) -> Level:
        """A segment that some tokens never reach."""
        number, cached = self._counted(depth.drafting)
        return Level(
            drafting=Passes(number=number, cached=cached, cold=cold),
            pushed=None if depth.pushed is None else self._one_a_round(*self._counted([depth.pushed])),
            rounds=cold[:, 0],
            tokens=number.sum(axis=1),
        )

    def _counted(self, passes: Sequence[Found]) -> tuple[Counts, Counts]:
        """Passes by their rows, and their cached tokens. [G, R] each."""
        width = 1 + max(int(some.value.max(initial=0)) for some in passes)
        number, known = self.grouping.totals(passes, width)
        number[:, 0] = known[:, 0] = 0
        return number, known - number * np.arange(width)

    def _rounds(self) -> tuple[Counts, Counts, list[Counts]]:
        """Rounds, and tokens known at their starts in sum, by drafted tokens and by whether they follow on a full block.

        [G, K, 2] each. And as what rounds have so many of is counted along, the passes at the first places of their rounds: of
        each segment that some tokens never reach, and last exit checks that are waited for. [G, P] each.
        """
        numbers = self._numbers()
        together = sum(2 * self.width * _TOLD ** (1 + place) <= _MOST_VALUES for place in range(len(numbers)))
        shape = self.width, 2, *together * [_TOLD]
        value = self.courses.drafted.astype(np.min_scalar_type(math.prod(shape)))
        value *= 2
        value += self._follows_full()
        for number in numbers[:together]:
            value *= _TOLD
            value += number
        found = Found(at=self.courses.start, value=value, times=None)
        rounds, known = (counts.reshape(-1, *shape) for counts in self.grouping.totals([found], math.prod(shape)))
        others = tuple(range(3, rounds.ndim))
        counted = [rounds.sum(axis=(1, 2, *(set(others) - {axis}))) for axis in others]
        counted += [self.grouping.histogram(found.at, number, _TOLD) for number in numbers[together:]]
        return rounds.sum(axis=others), known.sum(axis=others), [cold_of(counts) for counts in counted]

    def _numbers(self) -> list[Lengths]:
        """What rounds have several of, told up to P: tokens that come to each exit, and exit checks waited for. [N] each."""
        came = [depth.num_came for depth in self.depths]
        if self.courses.blocks.runs_ahead:
            return [*came, came[-1]]
        drafted = np.minimum(self.courses.drafted, COLD_PLACES).astype(np.uint8)  # of these, sums fit a byte
        return [*came, np.minimum(sum(came, drafted), COLD_PLACES)]


def _but_deeper(came: Sequence[Counts]) -> list[Counts]:
    """Of what came to each exit, that which came to no deeper one."""
    return [here if deeper is None else here - deeper for here, deeper in zip_longest(came, came[1:])]
