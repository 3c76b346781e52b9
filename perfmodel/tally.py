"""The passes of the rounds that policies ran, counted by kind, rows and cached tokens.

A segment that every token runs through has passes of one row, but for the first after a block accepted in full. One that
some tokens never reach catches up: `perfmodel.backlog`.

How many passes of a round are cold follows from how many there are: of n, the first is at place 1, the second at place 2. How
cold its verification is follows from the deepest exit that a token of it came to.

Letters: Q policies, N rounds, G groups, E exits or segments, L exits that are looked at, K tokens drafted, R rows, P places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perfmodel.backlog import Depth, depth_of
from perfmodel.courses import Courses
from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Counts, Integers, Tape, spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassTable:
    """Counts by group; K and R as wide as they need to be."""

    num_tokens: Counts  # [G]
    drafted: Counts  # [G, K]
    accepted: Counts  # [G, K]
    verify_cached: Counts  # [G, K]
    exit_checks: Counts  # [G, E]
    exits_taken: Counts  # [G, E]
    segments: Counts  # [G, E, R]
    segments_cached: Counts  # [G, E, R]
    cold_segments: Counts  # [G, E, P]
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

    def of(self, places: Counts) -> Counts:
        """The group of each of some rising places."""
        return spread(places, self.bounds, np.arange(self.num_groups))

    def number(self, places: Counts) -> Counts:
        """How many of some rising places are of each group. [G]."""
        return np.diff(np.searchsorted(places, self.bounds))

    def total(self, group: Counts, weight: Integers) -> Counts:
        """Sum of the weights of each group. [G]."""
        return np.bincount(group, weight, minlength=self.num_groups).astype(np.int64)

    def histograms(self, group: Counts, value: Integers, width: int, weights: Sequence[Integers | None]) -> list[Counts]:
        """How often each value below `width` occurs in each group (a weight of None), or the sum of a weight. [G, width]."""
        key = group * width
        key += value
        found = (np.bincount(key, weight, minlength=self.num_groups * width) for weight in weights)
        return [counts.astype(np.int64, copy=False).reshape(self.num_groups, width) for counts in found]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Passes:
    """Passes of a segment."""

    number: Counts  # [G, R]; by their rows
    cached: Counts  # [G, R]; cached tokens before them
    cold: Counts  # [G, P]
    rounds: Counts  # [G]; in which a drafted token came to the segment
    tokens: Counts  # [G]; that came


def count_passes(tape: Tape, courses: Courses, grouping: Grouping) -> PassTable:
    """Count the passes of the rounds."""
    return _Tally(tape, courses, grouping).table()


class _Tally:
    """The rounds of some policies, being counted."""

    def __init__(self, tape: Tape, courses: Courses, grouping: Grouping) -> None:
        self.tape, self.courses, self.grouping = tape, courses, grouping
        self.group = grouping.of(courses.start)  # [N]
        width = int(courses.drafted.max()) + 1
        self.drafted, self.verify_cached = grouping.histograms(  # [G, K] each
            self.group, courses.drafted, width, (None, courses.known - 1)
        )
        self.depths = [depth_of(tape, courses, comes.ravel()) for comes in courses.blocks.comes]
        looked = np.repeat(courses.blocks.looked, grouping.num_groups // courses.num_policies, axis=0)
        self.looked = looked  # [G, L]

    def table(self) -> PassTable:
        """All counts."""
        looked, num_segments = self.looked, len(self.tape.exit_layers)
        checks, taken, depths = np.zeros((3, self.grouping.num_groups, num_segments), np.int64)
        levels = list(self._levels())
        came, rounds = ([getattr(level, name) for level in levels[:-1]] for name in ("tokens", "rounds"))
        if came:
            np.put_along_axis(checks, looked, np.stack(came, axis=1), axis=1)
            np.put_along_axis(taken, looked, _but_deeper(np.stack(came, axis=1)), axis=1)
            np.put_along_axis(depths, looked, _but_deeper(np.stack(rounds, axis=1)), axis=1)
            if self.tape.is_self_draft:  # all segments run before its verification
                depths[:] = 0
                depths[:, -1] = self.drafted.sum(axis=1)
        level_of = (looked[:, :, None] < np.arange(num_segments)).sum(axis=1)  # [G, E]
        group = np.arange(len(looked))[:, None]
        number, cached, cold = (_stack([getattr(level, name) for level in levels]) for name in ("number", "cached", "cold"))
        num_policies = self.courses.num_policies
        texts = self.grouping.of(self.tape.prompt_bounds(num_policies)[:-1])
        return PassTable(
            num_tokens=self.grouping.total(texts, np.tile(self.tape.end - self.tape.begin, num_policies)),
            drafted=self.drafted,
            accepted=self.grouping.histograms(self.group, self.courses.accepted, self.drafted.shape[1], [None])[0],
            verify_cached=self.verify_cached,
            exit_checks=checks,
            exits_taken=taken,
            segments=number[level_of, group],
            segments_cached=cached[level_of, group],
            cold_segments=cold[level_of, group],
            cold_checks=self._cold_checks(),
            verify_depths=depths,
        )

    def _levels(self) -> Iterator[_Passes]:
        """The passes of the segments down to each looked-at exit, and last of those below them all."""
        if not self.looked.shape[1]:
            yield self._passes_of_no_token()
            return
        yield self._passes_of_every_token()
        yield from map(self._passes_of_some_tokens, self.depths)
        yield self._pushed() if self.tape.is_self_draft else self._passes_of_no_token()

    def _passes_of_no_token(self) -> _Passes:
        nothing = np.zeros((self.grouping.num_groups, COLD_PLACES), np.int64)
        return _Passes(number=nothing, cached=nothing, cold=nothing, rounds=nothing[:, 0], tokens=nothing[:, 0])

    def _pushed(self) -> _Passes:
        """Passes of a self draft's verification below its last exit: one a round over its block and lead."""
        wider, nothing = ((0, 0), (1, 0)), self._passes_of_no_token()
        cold = nothing.cold.copy()
        cold[:, 0] = self.drafted.sum(axis=1)
        return replace(nothing, number=np.pad(self.drafted, wider), cached=np.pad(self.verify_cached, wider), cold=cold)

    def _passes_of_every_token(self) -> _Passes:
        """Passes of a segment that every token runs through: one row each, k tokens in a round that drafted k. [G, 3].

        A block accepted in full leaves its last token unprocessed, so that the next one's first pass has two rows, the first
        of which is no longer cached. A self draft has pushed that token in the verification, as one more token of the round.
        """
        rounds, reads, is_self_draft = self.drafted, self.verify_cached, self.tape.is_self_draft
        tokens = np.arange(rounds.shape[1]) + is_self_draft
        number, cached = np.zeros((2, self.grouping.num_groups, 3), np.int64)
        number[:, 1] = rounds @ tokens
        cached[:, 1] = reads @ tokens + rounds @ (tokens * (tokens - 1) // 2)
        if not is_self_draft:
            after_full = self._after_full()
            group, known = self.group.take(after_full), self.courses.known.take(after_full)
            number[:, 2] = self.grouping.number(self.courses.start.take(after_full))
            one_row = self.grouping.total(group, known - 1)
            cached[:, 2] = one_row - number[:, 2]
            number[:, 1] -= number[:, 2]
            cached[:, 1] -= one_row
        return _Passes(
            number=number,
            cached=cached,
            cold=_cold(np.pad(rounds, ((0, 0), (1, 0))) if is_self_draft else rounds),
            rounds=rounds[:, 1:].sum(axis=1),
            tokens=rounds @ np.arange(rounds.shape[1]),
        )

    def _after_full(self) -> Counts:
        """The rounds that draft anything and follow on a block accepted in full."""
        courses = self.courses
        is_next = np.diff(courses.start) == courses.drafted[:-1] + 1  # a rejection comes sooner, another prompt later
        return np.flatnonzero(is_next & (courses.drafted[1:] > 0)) + 1

    def _passes_of_some_tokens(self, depth: Depth) -> _Passes:
        """Passes of a segment that some tokens never reach."""
        passed, group, num_passes = [depth.first, depth.further], self.group.take(depth.round_), depth.num_came
        if depth.pushed is not None:
            passed, group, num_passes = [*passed, depth.pushed], self.group, np.ones_like(self.group)
            num_passes[depth.round_] += depth.num_came
        width = 1 + max(int(some.rows.max(initial=0)) for some in passed)
        each = [
            self.grouping.histograms(self.grouping.of(some.at), some.rows, width, (some.times, some.cached)) for some in passed
        ]
        rounds, further = (number.sum(axis=1) for number, _ in each[:2])
        number, cached = (np.sum(counts, axis=0) for counts in zip(*each, strict=True))
        return _Passes(number=number, cached=cached, cold=self._cold(group, num_passes), rounds=rounds, tokens=rounds + further)

    def _cold_checks(self) -> Counts:
        """Exit checks at the first places of their rounds. [G, P]."""
        if not self.depths:
            return _cold(self.drafted)
        number = self.courses.drafted.astype(np.int64)
        for depth in self.depths:
            number[depth.round_] += depth.num_came
        return self._cold(self.group, number)

    def _cold(self, group: Counts, number: Counts) -> Counts:
        """Passes at the first places, where rounds have so many passes each. [G, P]."""
        most = np.minimum(number, COLD_PLACES)
        return _cold(*self.grouping.histograms(group, most, COLD_PLACES + 1, [None]))


def _cold(by_number: Counts) -> Counts:
    """Passes at places 1, 2, ... of their rounds, from the rounds by their number of passes: [G, any] -> [G, P]."""
    at_least = by_number[:, :0:-1].cumsum(axis=1)[:, ::-1][:, :COLD_PLACES]
    cold = np.zeros((len(by_number), COLD_PLACES), np.int64)
    cold[:, : at_least.shape[1]] = at_least
    return cold


def _but_deeper(came: Counts) -> Counts:
    """Of what came to each exit, that which came to no deeper one. [G, L]."""
    stayed = came.copy()
    stayed[:, :-1] -= came[:, 1:]
    return stayed


def _stack(tables: Sequence[Counts]) -> Counts:
    """Tables of several levels as one, each padded to the widest: [G, any] each -> [levels, G, any]."""
    stacked = np.zeros((len(tables), len(tables[0]), max(table.shape[1] for table in tables)), np.int64)
    for level, table in enumerate(tables):
        stacked[level, :, : table.shape[1]] = table
    return stacked
