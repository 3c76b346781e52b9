"""The passes of a segment that some tokens never reach: when one does, the segment catches up on all before it.

A segment has processed n tokens. To draft the token of a column it runs over everything known before that column, and n
becomes that; after a round, n is at most what was known before the new lead. So the further passes of a block have as many
rows as there are columns from one token that reaches it to the next, whatever the block, and blocks are only counted; the
rows of a block's first pass follow from where the segment was left by the last block that came to it.

A self draft hands the block's last token to the verification: it runs through all segments, and answers nothing.

Letters: Q policies, C columns, N rounds, S of which come to a segment, P places (`perfmodel.passes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.courses import Courses
from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Bools, Counts, Integers, Lengths, Tape, run_lengths, spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passed:
    """Passes of a segment."""

    at: Counts
    """Rising places, of the same prompts as the passes."""
    rows: Integers
    known: Counts
    """Tokens known to each after its rows."""
    times: Lengths | None
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
    longest = int(courses.drafted.max())
    ahead = run_lengths(~comes, longest)  # from each place on, tokens before one that comes
    behind = run_lengths(~comes[::-1], longest)[::-1]  # from each place back
    round_ = np.flatnonzero(ahead.take(courses.start) < courses.drafted)
    start = courses.start.take(round_)
    end = start + courses.drafted.take(round_) - 1
    first = start + ahead.take(start)
    last = end - behind.take(end)
    rows = first - _processed(tape, courses, round_, last)
    known = courses.known.take(round_) + (first - start)
    return Depth(
        round_=round_,
        num_came=_num_came(ahead, first, end),
        first=Passed(at=start, rows=rows, known=known, times=None),
        further=_further(tape, courses, comes, ahead, behind),
        pushed=_pushed(courses, round_, last) if tape.is_self_draft else None,
    )


def _num_came(ahead: Lengths, first: Counts, end: Counts) -> Counts:
    """Tokens that come, from the first of each block to its end, told up to P. [S]."""
    number, at = np.ones_like(first), first
    for _ in range(COLD_PLACES - 1):
        at = at + 1
        at += ahead.take(at, mode="clip")
        number += at <= end
    return number


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


def _further(tape: Tape, courses: Courses, comes: Bools, ahead: Lengths, behind: Lengths) -> Passed:
    """All passes but the first of each block: over as many blocks as hold a token that comes, but not as the first."""
    times = np.zeros_like(courses.started)
    for step in range(1, int(courses.drafted.max())):
        holds = courses.started[:-step] > step
        holds &= ahead[:-step] < step
        times[step:] += holds.view(np.uint8)
    times *= comes.view(np.uint8)
    ran = np.flatnonzero(times > 0)
    bounds = tape.policy_bounds(courses.num_policies)
    column = ran - spread(ran, bounds, bounds[:-1])
    rows: Integers = behind.take(ran - 1) + 1
    return Passed(at=ran, rows=rows, known=tape.known.take(column), times=times.take(ran))


def _pushed(courses: Courses, round_: Counts, last: Counts) -> Passed:
    """Over what the segment has not processed of each block and its lead."""
    done = courses.start - 1
    done[round_] = last
    rows = courses.start + courses.drafted - done
    return Passed(at=courses.start, rows=rows, known=courses.known + courses.drafted, times=None)
