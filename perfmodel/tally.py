"""The passes of the rounds that a policy ran: where the ladder's backlog becomes rows and cached tokens.

A segment has processed n tokens. To draft the token of a column it runs over everything known before that column, and n
becomes that; after a round, n is at most what was known before the new lead. So the rows of its passes follow from the
columns at which it ran, and from where the next round began:

- A segment that every token runs through has passes of one row, but for the first after a block accepted in full.
- A segment that some tokens never reach catches up. The further passes of a block have as many rows as there are columns
  from one token that reaches it to the next, whatever the block, so blocks are only counted; the first pass of each block
  is worked out.
- A self draft hands the block's last token to the verification: it runs through all segments, and answers nothing.

How many passes of a round are cold follows from how many there are: of n, the first is at place 1, the second at place 2. How
cold its verification is follows from the deepest exit that a token of it came to.

Letters: C columns, N rounds, S of which come to a segment, G groups, E exits or segments, K tokens drafted, R rows, P places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from perfmodel.courses import Course
from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Counts, Depth, Gate, Tape


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassTable:
    """The counts of one policy in G groups; K and R as wide as they need to be."""

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
    """What is counted together: each prompt by itself, or, where there is no `of_column`, all of them."""

    num_groups: int
    of_column: Counts | None  # [C]

    def sums(self, column: Counts, value: Counts) -> Counts:
        """The values at some columns summed by group. [G]."""
        if self.of_column is None:
            return np.array([value.sum()])
        return np.bincount(self.of_column[column], value, minlength=self.num_groups).astype(np.int64)

    def histogram(self, column: Counts, value: Counts, width: int, weight: Counts | None = None) -> Counts:
        """How often each value below `width` occurs at some columns, or the sum of its weights, by group. [G, width]."""
        place = value if self.of_column is None else self.of_column[column] * width + value
        counts: Counts = np.bincount(place, weight, minlength=self.num_groups * width).astype(np.int64, copy=False)
        by_group: Counts = counts.reshape(self.num_groups, width)
        return by_group

    def cold(self, column: Counts, number: Counts) -> Counts:
        """Passes at the first places, where rounds that begin at some columns have so many passes each. [G, P]."""
        return _cold(self.histogram(column, np.minimum(number, COLD_PLACES), COLD_PLACES + 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Passes:
    """Passes of a segment by their rows, or rounds by their drafted tokens; the cached tokens before them; the cold ones."""

    number: Counts  # [G, R]
    cached: Counts  # [G, R]
    cold: Counts  # [G, P]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Span:
    """The rounds that come as deep as some exit, and their tokens that do: first, ..., past - 1 of that depth."""

    depth: Depth
    came: Counts  # [S]; rounds
    start: Counts  # [S]; their first columns
    first: Counts  # [S]
    past: Counts  # [S]


def count_passes(tape: Tape, course: Course, grouping: Grouping) -> PassTable:
    """Count the passes of a policy's rounds."""
    start, drafted = course.start, course.drafted
    width = int(drafted.max()) + 1
    by_length = grouping.histogram(start, drafted, width)
    rounds = _Passes(
        number=by_length,
        cached=grouping.histogram(start, drafted, width, tape.known.take(start) - 1),
        cold=_cold(by_length),
    )
    num_segments = len(tape.exit_layers)
    segments = segments_cached = np.zeros((grouping.num_groups, num_segments, 1), np.int64)
    cold_segments = np.zeros((grouping.num_groups, num_segments, COLD_PLACES), np.int64)
    checks, cold_checks, depths = segments[:, :, 0], cold_segments[:, 0], segments[:, :, 0]
    if course.gate:
        spans = [_span(course, depth) for depth in course.gate.depths]
        checks = _exit_checks(tape, course.gate, spans, rounds, grouping)
        cold_checks = _cold_checks(course, spans, rounds, grouping)
        depths = _verify_depths(tape, course.gate, spans, rounds, grouping)
        each = list(_segments(tape, course, course.gate, spans, rounds, grouping))
        segments, segments_cached = _join(each, num_segments)
        cold_segments[:, : len(each)] = np.stack([passes.cold for passes in each], axis=1)
    return PassTable(
        num_tokens=grouping.sums(tape.begin, tape.end - tape.begin),
        drafted=rounds.number,
        accepted=grouping.histogram(start, course.accepted, width),
        verify_cached=rounds.cached,
        exit_checks=checks,
        exits_taken=_exits_taken(checks, course.gate),
        segments=segments,
        segments_cached=segments_cached,
        cold_segments=cold_segments,
        cold_checks=cold_checks,
        verify_depths=depths,
    )


def _cold(by_number: Counts) -> Counts:
    """Passes at places 1, 2, ... of their rounds, from the rounds by their number of passes: [G, any] -> [G, P]."""
    at_least = by_number[:, :0:-1].cumsum(axis=1)[:, ::-1][:, :COLD_PLACES]
    cold = np.zeros((len(by_number), COLD_PLACES), np.int64)
    cold[:, : at_least.shape[1]] = at_least
    return cold


def _span(course: Course, depth: Depth) -> _Span:
    first, past = depth.before.take(course.start), depth.before.take(course.past)
    came = np.flatnonzero(past > first)
    return _Span(depth=depth, came=came, start=course.start.take(came), first=first.take(came), past=past.take(came))


def _exit_checks(tape: Tape, gate: Gate, spans: Sequence[_Span], rounds: _Passes, grouping: Grouping) -> Counts:
    """Drafted tokens that came to each looked-at exit. [G, E]."""
    checks = np.zeros((grouping.num_groups, len(tape.exit_layers)), np.int64)
    checks[:, gate.looked[0]] = rounds.number @ np.arange(rounds.number.shape[1])
    for exit_id, span in zip(gate.looked[1:], spans, strict=True):
        checks[:, exit_id] = grouping.sums(span.start, span.past - span.first)
    return checks


def _cold_checks(course: Course, spans: Sequence[_Span], rounds: _Passes, grouping: Grouping) -> Counts:
    """Exit checks at the first places of their rounds. [G, P]."""
    if not spans:
        return rounds.cold
    number = course.drafted.copy()
    for span in spans:
        number[span.came] += span.past - span.first
    return grouping.cold(course.start, number)


def _verify_depths(tape: Tape, gate: Gate, spans: Sequence[_Span], rounds: _Passes, grouping: Grouping) -> Counts:
    """Rounds by the segments that ran in them; a self draft runs all of them before it verifies. [G, E]."""
    depths = np.zeros((grouping.num_groups, len(tape.exit_layers)), np.int64)
    if tape.is_self_draft:
        depths[:, -1] = rounds.number.sum(axis=1)
        return depths
    came = [rounds.number[:, 1:].sum(axis=1), *(grouping.sums(span.start, np.ones_like(span.start)) for span in spans)]
    for exit_id, number, deeper in zip(gate.looked, came, [*came[1:], 0], strict=True):
        depths[:, exit_id] = number - deeper
    return depths


def _exits_taken(checks: Counts, gate: Gate | None) -> Counts:
    """A token leaves at the exit after which it comes to no other. [G, E]."""
    taken = checks.copy()
    for exit_id, deeper in pairwise(gate.looked if gate else ()):
        taken[:, exit_id] -= checks[:, deeper]
    return taken


def _segments(
    tape: Tape, course: Course, gate: Gate, spans: Sequence[_Span], rounds: _Passes, grouping: Grouping
) -> Iterator[_Passes]:
    """The passes of each segment, as far down as any token goes."""
    yield from [_passes_of_every_token(tape, course, rounds, grouping)] * (gate.looked[0] + 1)
    for (above, exit_id), span in zip(pairwise(gate.looked), spans, strict=True):
        yield from [_passes_of_some_tokens(tape, course, span, grouping)] * (exit_id - above)
    if tape.is_self_draft:  # one pass a round over its block and lead, as in the verification
        wider = ((0, 0), (1, 0))
        once = np.zeros_like(rounds.cold)
        once[:, 0] = rounds.number.sum(axis=1)
        pushed = _Passes(number=np.pad(rounds.number, wider), cached=np.pad(rounds.cached, wider), cold=once)
        yield from [pushed] * (len(tape.exit_layers) - 1 - gate.looked[-1])


def _passes_of_every_token(tape: Tape, course: Course, rounds: _Passes, grouping: Grouping) -> _Passes:
    """Passes of a segment that every token runs through: one row each, k tokens in a round that drafted k. [G, 3].

    A block accepted in full leaves its last token unprocessed, so that the next one's first pass has two rows, the first
    of which is no longer cached. A self draft has pushed that token in the verification, as one more token of the round.
    """
    tokens = np.arange(rounds.number.shape[1]) + tape.is_self_draft
    number, cached = np.zeros((2, grouping.num_groups, 3), np.int64)
    number[:, 1] = rounds.number @ tokens
    cached[:, 1] = rounds.cached @ tokens + rounds.number @ (tokens * (tokens - 1) // 2)
    if not tape.is_self_draft:
        is_after_full = (course.start[1:] == course.past[:-1] + 1) & (course.drafted[1:] > 0)
        after_full = course.start.take(np.flatnonzero(is_after_full) + 1)
        number[:, 2] = grouping.sums(after_full, np.ones_like(after_full))
        one_row = grouping.sums(after_full, tape.known[after_full] - 1)
        cached[:, 2] = one_row - number[:, 2]
        number[:, 1] -= number[:, 2]
        cached[:, 1] -= one_row
    cold = _cold(np.pad(rounds.number, ((0, 0), (1, 0)))) if tape.is_self_draft else rounds.cold
    return _Passes(number=number, cached=cached, cold=cold)


def _passes_of_some_tokens(tape: Tape, course: Course, span: _Span, grouping: Grouping) -> _Passes:
    """Passes of a segment that only the tokens of this depth run through. [G, R]."""
    column, last = span.depth.column.take(span.first), span.depth.column.take(span.past - 1)
    start, each = span.start, span.past - span.first
    parts = [(column, column - _processed(tape, course, span, last), np.ones_like(column)), _further_passes(span)]
    if tape.is_self_draft:
        done = course.start - 1
        done[span.came] = last
        parts.append((course.past, course.past - done, np.ones_like(done)))
        start, each = course.start, np.bincount(span.came, each, len(done)).astype(np.int64) + 1
    column, rows, times = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    width = int(rows.max(initial=0)) + 1
    return _Passes(
        number=grouping.histogram(column, rows, width, times),
        cached=grouping.histogram(column, rows, width, times * (tape.known.take(column) - rows)),
        cold=grouping.cold(start, each),
    )


def _processed(tape: Tape, course: Course, span: _Span, last: Counts) -> Counts:
    """Last column that the segment had processed when each round of the span began; `last`: of its own tokens. [S]."""
    if tape.is_self_draft:
        return span.start - 1
    left = np.minimum(last, span.start + course.accepted.take(span.came))  # by the rollback after each round
    processed = tape.first.take(span.start) - 1
    np.maximum(processed[1:], left[:-1], out=processed[1:])
    return processed


def _further_passes(span: _Span) -> tuple[Counts, Counts, Counts]:
    """Column, rows and number of all passes but the first of each block: those after token `first` and before `past`."""
    size = len(span.depth.column) + 1
    times = (np.bincount(span.first + 1, minlength=size) - np.bincount(span.past, minlength=size)).cumsum()[:-1]
    ran = np.flatnonzero(times > 0)
    column = span.depth.column.take(ran)
    return column, column - span.depth.column.take(ran - 1), times.take(ran)


def _join(segments: list[_Passes], num_segments: int) -> tuple[Counts, Counts]:
    """All segments as one array of their numbers and one of their cached tokens. [G, E, R]."""
    width = max(passes.number.shape[1] for passes in segments)
    number, cached = np.zeros((2, len(segments[0].number), num_segments, width), np.int64)
    for stage, passes in enumerate(segments):
        number[:, stage, : passes.number.shape[1]] = passes.number
        cached[:, stage, : passes.number.shape[1]] = passes.cached
    return number, cached
