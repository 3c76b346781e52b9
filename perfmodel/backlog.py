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
from perfmodel.tails import Tails
from perfmodel.tape import Bools, Counts, Integers, Lengths, Tape, places_of, run_lengths, spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passed:
    """Passes of a segment."""

    at: Counts
    """Rising places, of the same prompts as the passes."""
    rows: Integers
    known: Integers
    """Tokens known to each after its rows."""
    times: Lengths | None
    """How many passes are alike; one where it is None."""

    @property
    def cached(self) -> Integers:
        """Cached tokens before them, in sum over those alike."""
        cached = self.known - self.rows
        return cached if self.times is None else cached * self.times


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Depth:
    """What comes to a segment that some tokens never reach."""

    round_: Counts  # [S]; the rounds with a token that comes
    num_came: Lengths  # [S]; their tokens that come, told up to P
    first: Passed  # [S]; their first passes
    behind: Passed | None
    """Of blocks that went on after a mistake: the first passes behind it, where some were before it."""
    further: Passed
    pushed: Passed | None  # [N]; passes of a self draft's verification over what it has not processed

    @property
    def drafting(self) -> list[Passed]:
        """All passes of a block's tokens."""
        return [some for some in (self.first, self.behind, self.further) if some is not None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Came:
    """Tokens that come, by the runs of columns that hold any."""

    run: Counts  # [any]; of rounds where these are all that there is
    first: Counts  # [any]; place of the first
    last: Counts  # [any]
    number: Lengths  # [any]; of them, told up to P


def depth_of(tape: Tape, courses: Courses, comes: Bools) -> Depth:
    """The passes of a segment.

    Args:
        tape: the trace.
        courses: rounds.
        comes: the tokens that run through the segment. [Q * C].
    """
    stays_out = ~comes
    until, since = run_lengths(stays_out, tape.longest), run_lengths(stays_out, tape.longest, back=True)
    came, behind = _came(until, since, *courses.runs), None
    times = _times_again(tape, comes, came)
    if courses.tails is not None:
        came, behind = _joined(courses, courses.tails, came)
    begin, known = courses.start.take(came.run, mode="clip"), courses.known.take(came.run, mode="clip")
    return Depth(
        round_=came.run,
        num_came=came.number,
        first=Passed(
            at=begin,
            rows=came.first - _processed(tape, courses, came.run, begin, came.last),
            known=known + (came.first - begin),
            times=None,
        ),
        behind=behind,
        further=_further(tape, courses, times, since),
        pushed=_pushed(courses, came.run, came.last) if tape.is_self_draft else None,
    )


def _came(until: Lengths, since: Lengths, start: Counts, length: Lengths) -> _Came:
    """The tokens that come of some runs of columns."""
    skipped = until.take(start)
    run = np.flatnonzero(skipped < length)
    start = start.take(run, mode="clip")
    first, last = start + skipped.take(run), start + length.take(run) - 1
    last -= since.take(last)
    return _Came(run=run, first=first, last=last, number=_num_came(until, first, last))


def _joined(courses: Courses, tails: Tails, came: _Came) -> tuple[_Came, Passed]:
    """What came by rounds, tails' places taken back to the text's path, and the first passes behind mistakes.

    Behind a mistake the first token that comes catches up on all that stayed out since the last one before the mistake. Where
    none came before it, its pass is the block's first.
    """
    num_rounds = len(courses.start)
    split = np.searchsorted(came.run, num_rounds)
    before, tail = came.run[:split], came.run[split:] - num_rounds
    behind = tails.round_.take(tail)
    to_path = (courses.start.take(tails.round_) + tails.to_mistake - tails.at).take(tail)
    first, last, number = np.zeros((3, num_rounds), np.int64)
    first[behind] = came.first[split:] + to_path
    last[before] = came.last[:split]
    again = behind[np.isin(behind, before, assume_unique=True)]
    passed = Passed(
        at=courses.start.take(again),
        rows=(first - last).take(again),
        known=(courses.known - courses.start + first).take(again),
        times=None,
    )
    first[before] = came.first[:split]
    last[behind] = came.last[split:] + to_path
    number[before] = came.number[:split]
    number[behind] += came.number[split:]
    round_ = np.flatnonzero(number)
    first, last, number = (of_rounds.take(round_) for of_rounds in (first, last, number))
    return _Came(run=round_, first=first, last=last, number=number.astype(came.number.dtype)), passed


def _num_came(until: Lengths, first: Counts, last: Counts) -> Lengths:
    """Tokens that come from the first to the last one of each block, told up to P. [S]."""
    number, at = np.ones(len(first), np.uint8), first
    number += first < last
    for _ in range(COLD_PLACES - 2):
        at = at + 1
        at += until.take(at, mode="clip")
        number += at < last
    return number


def _processed(tape: Tape, courses: Courses, round_: Counts, start: Counts, last: Counts) -> Counts:
    """Last place that the segment had processed when each of some rounds began.

    Args:
        tape: the trace.
        courses: rounds.
        round_: those with a token that comes. [S].
        start: where they begin. [S].
        last: their last tokens that come. [S].
    """
    if tape.is_self_draft:
        return start - 1
    left = np.minimum(last, start + courses.accepted.take(round_))  # by the rollback after each round
    bounds = places_of(tape, courses.num_policies).prompts
    processed = spread(start, bounds, bounds[:-1] - 1)
    np.maximum(processed[1:], left[:-1], out=processed[1:])
    return processed


def _times_again(tape: Tape, comes: Bools, came: _Came) -> Lengths:
    """How many runs of columns hold each token that comes, but not as the first that does: up to their last. [Q * C]."""
    times = np.zeros(len(comes) + 1, tape.room.dtype)
    once = times.dtype.type(1)  # of another type, they take ten times as long
    np.add.at(times, came.first + 1, once)
    np.subtract.at(times, came.last + 1, once)
    np.add.accumulate(times, out=times)
    times = times[:-1]
    times *= comes.view(np.uint8)
    return times


def _further(tape: Tape, courses: Courses, times: Lengths, since: Lengths) -> Passed:
    """All passes but the first of each block.

    Args:
        tape: the trace.
        courses: rounds.
        times: how many of them each token has. [Q * C].
        since: columns from the last token that came. [Q * C].
    """
    at = np.flatnonzero(times > 0)
    return Passed(
        at=at,
        rows=since.take(at - 1) + 1,
        known=places_of(tape, courses.num_policies).known.take(at),
        times=times.take(at),
    )


def _pushed(courses: Courses, round_: Counts, last: Counts) -> Passed:
    """Over what the segment has not processed of each block and its lead."""
    done = courses.start - 1
    done[round_] = last
    rows = courses.start + courses.drafted - done
    return Passed(at=courses.start, rows=rows, known=courses.known + courses.drafted, times=None)
