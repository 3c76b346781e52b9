"""The passes of the rounds that policies ran, counted by kind, rows and cached tokens.

A segment that every token runs through has passes of one row, but for the first after a block accepted in full. One that
some tokens never reach catches up: `perfmodel.backlog`.

How many passes of a round are cold follows from how many there are: of n, the first is at place 1, the second at place 2. How
cold its verification is follows from the deepest exit that a token of it came to.

Letters: Q policies, N rounds, G groups, E exits or segments, L exits that are looked at, K tokens drafted, R rows, P places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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

    def count(self, group: Counts, weight: Integers | None = None) -> Counts:
        """How many there are of each group, or the sum of their weights. [G]."""
        return np.bincount(group, weight, minlength=self.num_groups).astype(np.int64, copy=False)

    def histograms(self, group: Counts, value: Integers, width: int, weights: Sequence[Integers | None]) -> list[Counts]:
        """How often each value below `width` occurs in each group (a weight of None), or the sum of a weight. [G, width]."""
        key = group * width
        key += value
        found = (np.bincount(key, weight, minlength=self.num_groups * width) for weight in weights)
        return [counts.astype(np.int64, copy=False).reshape(self.num_groups, width) for counts in found]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Passes:
    """Passes of a segment by their rows, or rounds by their drafted tokens; the cached tokens before them; the cold ones."""

    number: Counts  # [G, R]
    cached: Counts  # [G, R]
    cold: Counts  # [G, P]


def count_passes(tape: Tape, courses: Courses, grouping: Grouping) -> PassTable:
    """Count the passes of the rounds."""
    return _Tally(tape, courses, grouping).table()


class _Tally:
    """The rounds of some policies, being counted."""

    def __init__(self, tape: Tape, courses: Courses, grouping: Grouping) -> None:
        self.tape, self.courses, self.grouping = tape, courses, grouping
        self.looked = courses.blocks.looked
        self.group = grouping.of(courses.start)  # [N]
        width = int(courses.drafted.max()) + 1
        number, cached = grouping.histograms(self.group, courses.drafted, width, (None, courses.known - 1))
        self.rounds = _Passes(number=number, cached=cached, cold=_cold(number))
        self.depths = [depth_of(tape, courses, comes.ravel()) for comes in courses.blocks.comes]

    def table(self) -> PassTable:
        """All counts."""
        rounds, num_segments = self.rounds, len(self.tape.exit_layers)
        checks, taken, depths = np.zeros((3, self.grouping.num_groups, num_segments), np.int64)
        segments = segments_cached = checks[:, :, None]
        cold_segments = np.zeros((self.grouping.num_groups, num_segments, COLD_PLACES), np.int64)
        cold_checks = cold_segments[:, 0]
        if self.looked:
            each = list(self._segments())
            segments, segments_cached = _join(each, num_segments)
            cold_segments[:, : len(each)] = np.stack([passes.cold for passes in each], axis=1)
            checks[:, self.looked] = came = self._exit_checks()
            taken[:, self.looked] = _but_deeper(came)
            cold_checks = self._cold_checks()
            depths[:, self.looked] = _but_deeper(self._rounds_that_came())
            if self.tape.is_self_draft:  # all segments run before its verification
                depths[:] = 0
                depths[:, -1] = rounds.number.sum(axis=1)
        num_policies = self.courses.num_policies
        texts = self.grouping.of(self.tape.prompt_bounds(num_policies)[:-1])
        return PassTable(
            num_tokens=self.grouping.count(texts, np.tile(self.tape.end - self.tape.begin, num_policies)),
            drafted=rounds.number,
            accepted=self.grouping.histograms(self.group, self.courses.accepted, rounds.number.shape[1], [None])[0],
            verify_cached=rounds.cached,
            exit_checks=checks,
            exits_taken=taken,
            segments=segments,
            segments_cached=segments_cached,
            cold_segments=cold_segments,
            cold_checks=cold_checks,
            verify_depths=depths,
        )

    def _segments(self) -> Iterator[_Passes]:
        """The passes of each segment, as far down as any token goes."""
        yield from [self._passes_of_every_token()] * (self.looked[0] + 1)
        for (above, exit_id), depth in zip(pairwise(self.looked), self.depths, strict=True):
            yield from [self._passes_of_some_tokens(depth)] * (exit_id - above)
        if self.tape.is_self_draft:  # one pass a round over its block and lead, as in the verification
            rounds, wider = self.rounds, ((0, 0), (1, 0))
            once = np.zeros_like(rounds.cold)
            once[:, 0] = rounds.number.sum(axis=1)
            pushed = _Passes(number=np.pad(rounds.number, wider), cached=np.pad(rounds.cached, wider), cold=once)
            yield from [pushed] * (len(self.tape.exit_layers) - 1 - self.looked[-1])

    def _passes_of_every_token(self) -> _Passes:
        """Passes of a segment that every token runs through: one row each, k tokens in a round that drafted k. [G, 3].

        A block accepted in full leaves its last token unprocessed, so that the next one's first pass has two rows, the first
        of which is no longer cached. A self draft has pushed that token in the verification, as one more token of the round.
        """
        rounds, is_self_draft = self.rounds, self.tape.is_self_draft
        tokens = np.arange(rounds.number.shape[1]) + is_self_draft
        number, cached = np.zeros((2, self.grouping.num_groups, 3), np.int64)
        number[:, 1] = rounds.number @ tokens
        cached[:, 1] = rounds.cached @ tokens + rounds.number @ (tokens * (tokens - 1) // 2)
        if not is_self_draft:
            after_full = self._after_full()
            group, known = self.group.take(after_full), self.courses.known.take(after_full)
            number[:, 2] = self.grouping.count(group)
            one_row = self.grouping.count(group, known - 1)
            cached[:, 2] = one_row - number[:, 2]
            number[:, 1] -= number[:, 2]
            cached[:, 1] -= one_row
        cold = _cold(np.pad(rounds.number, ((0, 0), (1, 0)))) if is_self_draft else rounds.cold
        return _Passes(number=number, cached=cached, cold=cold)

    def _after_full(self) -> Counts:
        """The rounds that draft anything and follow on a block accepted in full."""
        courses = self.courses
        is_next = np.diff(courses.start) == courses.drafted[:-1] + 1  # a rejection comes sooner, another prompt later
        return np.flatnonzero(is_next & (courses.drafted[1:] > 0)) + 1

    def _passes_of_some_tokens(self, depth: Depth) -> _Passes:
        """Passes of a segment that some tokens never reach. [G, R]."""
        passed, group, num_passes = [depth.first, depth.further], self.group.take(depth.round_), depth.num_came
        if depth.pushed is not None:
            passed, group, num_passes = [*passed, depth.pushed], self.group, np.ones_like(self.group)
            num_passes[depth.round_] += depth.num_came
        width = 1 + max(int(some.rows.max(initial=0)) for some in passed)
        each = [
            self.grouping.histograms(self.grouping.of(some.at), some.rows, width, (some.times, some.cached)) for some in passed
        ]
        number, cached = (np.sum(counts, axis=0) for counts in zip(*each, strict=True))
        return _Passes(number=number, cached=cached, cold=self._cold(group, num_passes))

    def _exit_checks(self) -> Counts:
        """Drafted tokens that came to each looked-at exit. [G, L]."""
        came = [self.rounds.number @ np.arange(self.rounds.number.shape[1])]
        for depth in self.depths:
            further = self.grouping.count(self.grouping.of(depth.further.at), depth.further.times)
            came.append(self.grouping.count(self.group.take(depth.round_)) + further)
        return np.stack(came, axis=1)

    def _cold_checks(self) -> Counts:
        """Exit checks at the first places of their rounds. [G, P]."""
        if not self.depths:
            return self.rounds.cold
        number = self.courses.drafted.astype(np.int64)
        for depth in self.depths:
            number[depth.round_] += depth.num_came
        return self._cold(self.group, number)

    def _cold(self, group: Counts, number: Counts) -> Counts:
        """Passes at the first places, where rounds have so many passes each. [G, P]."""
        most = np.minimum(number, COLD_PLACES)
        return _cold(*self.grouping.histograms(group, most, COLD_PLACES + 1, [None]))

    def _rounds_that_came(self) -> Counts:
        """Rounds of which some token ran through the segment of each looked-at exit. [G, L]."""
        came = [self.rounds.number[:, 1:].sum(axis=1)]
        came += [self.grouping.count(self.group.take(depth.round_)) for depth in self.depths]
        return np.stack(came, axis=1)


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


def _join(segments: list[_Passes], num_segments: int) -> tuple[Counts, Counts]:
    """All segments as one array of their numbers and one of their cached tokens. [G, E, R]."""
    width = max(passes.number.shape[1] for passes in segments)
    number, cached = np.zeros((2, len(segments[0].number), num_segments, width), np.int64)
    for stage, passes in enumerate(segments):
        number[:, stage, : passes.number.shape[1]] = passes.number
        cached[:, stage, : passes.number.shape[1]] = passes.cached
    return number, cached
