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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.backlog import Passed, depth_of, endings_of
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
    most_known: float
    """Tokens known at any place."""

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.bounds) - 1

    def histogram(self, places: Counts, value: Integers, width: int) -> Counts:
        """Of places in the groups' order: how often each value below `width` occurs in each group. [G, width]."""
        key = self._key(places, value, width)
        return np.bincount(key, minlength=self.num_groups * width).reshape(self.num_groups, width)

    def passes(self, parts: Sequence[Passed], width: int, known: Floats) -> tuple[Counts, Counts]:
        """Passes by group and rows, and the tokens known at their places, in sum. [G, width] each.

        Weights cost more than anything else here, so both are summed as one, the number in units that no sum of known tokens
        reaches, wherever a float holds that exactly.
        """
        most = sum(len(some.at) * (1 if some.times is None else int(some.times.max(initial=0))) for some in parts)
        unit = 2.0 ** np.ceil(np.log2(1 + most * self.most_known))
        if most * unit > _EXACT:
            number, sums = self._sums(parts, width, known, 0.0, 1.0), self._sums(parts, width, known, 1.0, 0.0)
        else:
            both = self._sums(parts, width, known, 1.0, unit)
            number = both // unit
            sums = both - number * unit
        return number.astype(np.int64), sums.astype(np.int64)

    def _sums(self, parts: Sequence[Passed], width: int, known: Floats, scale: float, unit: float) -> Floats:
        """Units, and known tokens in a scale of 0 or 1, summed by group and rows. [G, width]."""
        total = np.zeros(self.num_groups * width)
        for some in parts:
            weight = known.take(some.at)
            if not scale:
                weight[:] = 0
            weight += unit
            if some.times is not None:
                weight *= some.times
            total += np.bincount(self._key(some.at, some.rows, width), weight, minlength=len(total))
        return total.reshape(self.num_groups, width)

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
        num_levels = len(courses.blocks.on_path.coming)
        endings = endings_of(tape, courses) if num_levels else None
        self.depths = [depth_of(tape, courses, endings, level) for level in range(num_levels)]
        # rounds by tokens drafted, by whether they follow on a block accepted in full, and by tokens that came to each exit
        shape = self.width, 2, *(num_levels * [COLD_PLACES + 1])
        value = courses.drafted.astype(np.min_scalar_type(math.prod(shape)))
        for some in (self._follows_full(), *(depth.num_came for depth in self.depths)):
            value *= 2 if some.dtype == np.bool_ else COLD_PLACES + 1
            value += some
        by_kind = grouping.passes([Passed(at=courses.start, rows=value, times=None)], math.prod(shape), self.known)
        self.rounds, known = (counts.reshape(-1, *shape) for counts in by_kind)
        by_length, known = (counts.sum(axis=tuple(range(3, 3 + num_levels))) for counts in (self.rounds, known))
        reads = known - by_length
        self.drafted, self.verify_cached = by_length.sum(axis=2), reads.sum(axis=2)  # [G, K] each
        self.after_full, self.after_full_cached = by_length[:, 1:, 1].sum(axis=1), reads[:, 1:, 1].sum(axis=1)  # [G] each
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
            for some in map(self._level_of_some_tokens, range(len(self.depths))):
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

    def _level_of_some_tokens(self, level: int) -> Level:
        """A segment that some tokens never reach."""
        depth = self.depths[level]
        number, cached = self._counted(depth.drafting)
        cold = cold_of(self._rounds_by_came(level))
        pushed = None if depth.pushed is None else self._one_a_round(*self._counted([depth.pushed]))
        return Level(
            drafting=Passes(number=number, cached=cached, cold=cold), pushed=pushed, rounds=cold[:, 0], tokens=number.sum(axis=1)
        )

    def _rounds_by_came(self, level: int) -> Counts:
        """Rounds by the tokens that came to an exit, told up to P. [G, P + 1]."""
        return self.rounds.sum(axis=tuple(axis for axis in range(1, self.rounds.ndim) if axis != 3 + level))

    def _counted(self, parts: Sequence[Passed]) -> tuple[Counts, Counts]:
        """Passes by their rows, and their cached tokens. [G, R] each."""
        width = 1 + max(int(some.rows.max(initial=0)) for some in parts)
        number, known = self.grouping.passes(parts, width, self.known)
        number[:, 0] = known[:, 0] = 0
        return number, known - number * np.arange(width)

    def _cold_checks(self) -> Counts:
        """Exit checks that are waited for at the first places of their rounds. [G, P]."""
        if self.courses.blocks.runs_ahead:
            return cold_of(self._rounds_by_came(len(self.depths) - 1))
        drafted, _, *came = np.indices(self.rounds.shape[1:])
        checks = np.minimum(drafted + sum(came), COLD_PLACES).ravel()
        return cold_of(self.rounds.reshape(len(self.rounds), -1).astype(np.float64) @ np.eye(COLD_PLACES + 1)[checks])


def _but_deeper(came: Sequence[Counts]) -> list[Counts]:
    """Of what came to each exit, that which came to no deeper one."""
    return [here if deeper is None else here - deeper for here, deeper in zip_longest(came, came[1:])]
