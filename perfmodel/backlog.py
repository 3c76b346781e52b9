"""The passes of a segment that some tokens never reach: when one does, the segment catches up on all before it.

A segment has processed n tokens. To draft the token of a column it runs over everything known before that column, and n
becomes that; after a round, n is at most what was known before the new lead. So the further passes of a block have as many
rows as there are columns from one token that comes to the next, whatever the block, and blocks are only counted; the rows of
a block's first pass follow from where the segment was left by the last block that came to it.

A self draft hands the block's last token to the verification: it runs through all segments, and answers nothing.

Letters: Q policies, C columns, N rounds, S of which come to a segment, T places whose token comes, P (`perfmodel.passes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.courses import Courses
from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Bools, Counts, Tape, spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passed:
    """Passes of a segment."""

    at: Counts
    """Rising places, of the same prompts as the passes."""
    rows: Counts
    known: Counts
    """Tokens known to each after its rows."""
    times: Counts | None
    """How many passes are alike; one where it is None."""

    @property
    def cached(self) -> Counts:
        """Cached tokens before them, in sum over those alike."""
        cached = self.known - self.rows
        return cached if self.times is None else cached * self.times


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Depth:
    """What comes to a segment that some tokens never reach."""

    round_: Counts  # [S]; the rounds with a token that comes
    num_came: Counts  # [S]; their tokens that come, told up to P
    first: Passed  # [S]; their first passes
    further: Passed
    pushed: Passed | None  # [N]; passes of a self draft's verification over what it has not processed


def depth_of(tape: Tape, courses: Courses, comes: Bools) -> Depth:
    """The passes of a segment.

    Args:
        tape: the trace.
        courses: rounds.
        comes: the tokens that run through the segment. [Q * C].
    """
    came = np.flatnonzero(comes)  # [T]
    before = np.zeros(len(comes) + 1, np.int32)  # tokens that come before a place: the number in `came` of the next
    np.cumsum(comes, out=before[1:])
    until_start, until_end = before.take(courses.start), before.take(courses.start + courses.drafted)
    round_ = np.flatnonzero(until_start < until_end)
    begin, end = until_start.take(round_).astype(np.int64), until_end.take(round_).astype(np.int64)
    start, first, last = courses.start.take(round_), came.take(begin), came.take(end - 1)
    return Depth(
        round_=round_,
        num_came=np.minimum(end - begin, COLD_PLACES),
        first=Passed(
            at=start,
            rows=first - _processed(tape, courses, round_, last),
            known=courses.known.take(round_) + (first - start),
            times=None,
        ),
        further=_further(tape, courses, came, begin, end),
        pushed=_pushed(courses, round_, last) if tape.is_self_draft else None,
    )


def _processed(tape: Tape, courses: Courses, round_: Counts, last: Counts) -> Counts:
    """Last place that the segment had processed when each of some rounds began; `last`: of their tokens that come. [S]."""
    start = courses.start.take(round_)
    if tape.is_self_draft:
        return start - 1
    left = np.minimum(last, start + courses.accepted.take(round_))  # by the rollback after each round
    bounds = tape.prompt_bounds(courses.num_policies)
    processed = spread(start, bounds, bounds[:-1]) - 1
    np.maximum(processed[1:], left[:-1], out=processed[1:])
    return processed


def _further(tape: Tape, courses: Courses, came: Counts, begin: Counts, end: Counts) -> Passed:
    """All passes but the first of each block: over as many blocks as hold a token that comes, but not as the first.

    Args:
        tape: the trace.
        courses: rounds.
        came: places. [T].
        begin: where in `came` the tokens of each block begin. [S].
        end: where they end. [S].
    """
    width = len(came) + 1
    times = np.cumsum(np.bincount(begin + 1, minlength=width) - np.bincount(end, minlength=width))
    ran = np.flatnonzero(times)
    at = came.take(ran)
    return Passed(
        at=at,
        rows=at - came.take(ran - 1),
        known=tape.known_at(at, courses.num_policies),
        times=times.take(ran),
    )


def _pushed(courses: Courses, round_: Counts, last: Counts) -> Passed:
    """Over what the segment has not processed of each block and its lead."""
    done = courses.start - 1
    done[round_] = last
    rows = courses.start + courses.drafted - done
    return Passed(at=courses.start, rows=rows, known=courses.known + courses.drafted, times=None)
