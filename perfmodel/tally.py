"""The passes of the rounds that policies ran, counted by kind, rows and cached tokens.

A segment that every token runs through has passes of one row, but for the first after a block accepted in full: so have all
where a token that left catches up at once. Otherwise a segment that some tokens never reach catches up when one comes:
`perfmodel.backlog`.

How many passes of a round are cold follows from how many there are: of n, the first is at place 1, the second at place 2. How
cold its verification is follows from the deepest exit that a token of it came to.

Letters: Q policies, N rounds, G groups, E exits or segments, L exits that are looked at, K tokens drafted, R rows, P places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.backlog import Depth, Passed, depth_of, endings_of
from perfmodel.courses import Courses
from perfmodel.levels import Level, Passes, chosen_passes, cold_of
from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Bools, Counts, Floats, Integers, Lengths, Tape, places_of, small_integer, spread

_EXACT = 2.0**53
"""Up to here a float holds every whole number."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouping:
    """What is counted together: the places from one bound to the next."""

    bounds: Counts  # [G + 1]; rising, from the first place to past the last

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.bounds) - 1

    def histogram(self, places: Counts, value: Integers, width: int) -> Counts:
        """Of places in the groups' order: how often each value below `width` occurs in each group. [G, width]."""
        return self._sums(self._key(places, value, width), None, width)

    def histograms(
        self, places: Counts, value: Integers, width: int, known: Floats, times: Lengths | Bools | None = None
    ) -> tuple[Counts, Counts]:
        """The same, each as often as some times say, and the sum of tokens that are known at its places. [G, width] each.

        Weights cost more than anything else here, so both are summed as one, the number in units that no sum of known tokens
        reaches, wherever a float holds that exactly.
        """
        key, weight = self._key(places, value, width), known.take(places)
        most = len(places) * (1 if times is None else int(times.max(initial=0)))
        unit = 2.0 ** np.ceil(np.log2(1 + most * weight.max(initial=0)))
        if most * unit > _EXACT:
            number, sums = self._sums(key, times, width), self._sums(key, weight if times is None else weight * times, width)
        else:
            weight += unit
            if times is not None:
                weight *= times
            both = self._sums(key, weight, width)
            number = both // unit
            sums = both - number * unit
        return number.astype(np.int64), sums.astype(np.int64)

    def _sums(self, key: Counts, weight: Lengths | Bools | Floats | None, width: int) -> NDArray[Any]:
        return np.bincount(key, weight, minlength=self.num_groups * width).reshape(self.num_groups, width)

    def _key(self, places: Counts, value: Integers, width: int) -> Counts:
        key = spread(places, self.bounds, np.arange(self.num_groups) * width)
        key += value
        return key


def count_passes(tape: Tape, courses: Courses, grouping: Grouping) -> PassTable:
    """Count the passes of the rounds."""
    return _Tally(tape, courses, grouping).table()


class _Tally:
    """The rounds of some policies, being counted."""

    def __init__(self, tape: Tape, courses: Courses, grouping: Grouping) -> None:
        self.tape, self.courses, self.grouping = tape, courses, grouping
        self.width = int(courses.drafted.max()) + 1  # K
        self.known = places_of(tape, courses.num_policies).known
        value = courses.drafted.astype(small_integer(2 * self.width))
        value *= 2
        value += self._follows_full()
        by_length = grouping.histograms(courses.start, value, 2 * self.width, self.known)
        rounds, known = (counts.reshape(-1, self.width, 2) for counts in by_length)  # the last axis: whether they follow
        reads = known - rounds
        self.drafted, self.verify_cached = rounds.sum(axis=2), reads.sum(axis=2)  # [G, K] each
        self.after_full, self.after_full_cached = rounds[:, 1:, 1].sum(axis=1), reads[:, 1:, 1].sum(axis=1)  # [G] each
        num_levels = len(courses.blocks.on_path.coming)
        endings = endings_of(tape, courses) if num_levels else None
        self.depths = [depth_of(tape, courses, endings, level) for level in range(num_levels)]
        looked = np.repeat(courses.blocks.looked, grouping.num_groups // courses.num_policies, axis=0)
        self.looked = looked  # [G, L]

    def table(self) -> PassTable:
        """All counts."""
        levels, num_policies = list(self._levels()), self.courses.num_policies
        checks, taken, depths = self._exits([level.tokens for level in levels[:-1]], [level.rounds for level in levels[:-1]])
        segments, aheads = self._segments(levels)
        texts, lengths = places_of(self.tape, num_policies).prompts[:-1], np.tile(self.tape.end - self.tape.begin, num_policies)
        return PassTable(
            num_tokens=np.diff(np.append(0, np.cumsum(lengths))[np.searchsorted(texts, self.grouping.bounds)]),
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
            cold_checks=self._cold_checks(),
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
            for some in map(self._level_of_some_tokens, self.depths):
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

    def _level_of_some_tokens(self, depth: Depth) -> Level:
        """A segment that some tokens never reach."""
        width = 1 + max(int(some.rows.max(initial=0)) for some in depth.drafting)
        number, cached = (sum(tables) for tables in zip(*(self._counted(some, width) for some in depth.drafting), strict=True))
        cold = self._cold(depth.num_came)
        pushed = depth.pushed
        return Level(
            drafting=Passes(number=number, cached=cached, cold=cold),
            pushed=None if pushed is None else self._one_a_round(*self._counted(pushed, 1 + int(pushed.rows.max()))),
            rounds=cold[:, 0],
            tokens=number.sum(axis=1),
        )

    def _counted(self, passed: Passed, width: int) -> tuple[Counts, Counts]:
        """Passes by their rows, and their cached tokens. [G, width] each."""
        number, known = self.grouping.histograms(passed.at, passed.rows, width, self.known, passed.times)
        return number, known - number * np.arange(width)

    def _cold_checks(self) -> Counts:
        """Exit checks that are waited for at the first places of their rounds. [G, P]."""
        if not self.depths:
            return cold_of(self.drafted)
        runs_ahead = self.courses.blocks.runs_ahead
        most = 0 if runs_ahead else COLD_PLACES
        number = np.minimum(self.courses.drafted, most).astype(np.uint8)  # later places are not told, and sums of these fit a byte
        for depth in self.depths[-1:] if runs_ahead else self.depths:
            number += depth.num_came
        return self._cold(number)

    def _cold(self, number: Integers) -> Counts:
        """Passes at the first places, where every round has so many. [G, P]."""
        return cold_of(self.grouping.histogram(self.courses.start, np.minimum(number, COLD_PLACES), COLD_PLACES + 1))


def _but_deeper(came: Sequence[Counts]) -> list[Counts]:
    """Of what came to each exit, that which came to no deeper one."""
    return [here if deeper is None else here - deeper for here, deeper in zip_longest(came, came[1:])]
