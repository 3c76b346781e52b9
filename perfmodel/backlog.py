"""The passes of a segment that some tokens never reach: when one does, the segment catches up on all before it.

A segment has processed n tokens. To draft the token of a column it runs over everything known before that column, and n
becomes that; after a round, n is at most what was known before the new lead. So along a text a pass has as many rows as there
are columns from the last *mark*: a token that came and was judged, or a mistake behind which others came in vain. Every token
of a text is judged in one round at most, whatever the policy. Behind a mistake columns are drafted in vain, in several rounds
even: there the first token that comes catches up from the last mark, and others from the one before.

A self draft hands the block's last token to the verification: it runs through all segments, and answers nothing. So the end
of every round is a mark.

Letters: Q policies, C columns, N rounds, S places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.blocks import Coming
from perfmodel.courses import Courses
from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Bools, Counts, Integers, Lengths, Tape, places_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Endings:
    """Where rounds end: at their first mistake or, accepted in full, at the bonus token."""

    rest: Lengths  # [Q * C]; 1 and the tokens drafted from a round's end on; 0 where none ends
    judged: Bools  # [Q, C]; columns whose token was drafted, and accepted or not: a text's, but for the bonus tokens of full blocks
    in_vain: Lengths  # [Q, C]; blocks that drafted a token of the column behind a mistake


def endings_of(tape: Tape, courses: Courses) -> Endings:
    """Of all rounds."""
    shape = courses.blocks.right.shape
    rest = np.zeros(shape, courses.drafted.dtype)
    rest.ravel()[courses.start + courses.accepted] = courses.drafted - courses.accepted + 1
    in_vain = np.zeros_like(rest)
    flat = in_vain.ravel()
    for behind in range(1, int(rest.max()) - 1):
        flat[behind:] += (rest.ravel()[:-behind] > behind + 1).view(np.uint8)
    return Endings(rest=rest.ravel(), judged=(rest != 1) & tape.is_text, in_vain=in_vain)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passed:
    """Passes of a segment."""

    at: Counts  # [S]; places, all of the same prompts as the passes, and in the prompts' order
    rows: Integers  # [S]
    times: Lengths | Bools | None  # [S]; how many passes are alike; one where it is None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Depth:
    """What comes to a segment that some tokens never reach."""

    num_came: Lengths  # [N]; tokens of each round that come, told up to P
    drafting: tuple[Passed, ...]
    """All passes of blocks' tokens."""
    pushed: Passed | None  # [N]; passes of a self draft's verification over what it has not processed


def depth_of(tape: Tape, courses: Courses, endings: Endings, level: int) -> Depth:
    """The passes of the segments that are reached by the tokens which leave at none of so many looked-at exits, and one."""
    blocks, rest = courses.blocks, endings.rest
    on_path, off_path = blocks.on_path.coming[level], blocks.off_path.coming[level]
    comes, until, since = (of.ravel() for of in (off_path.flags, off_path.until, off_path.since))
    judged = (on_path.flags & endings.judged).ravel()
    in_vain = np.zeros_like(judged)  # mistakes behind which tokens come
    np.less(until[1:] + until.dtype.type(2), rest[:-1], out=in_vain[:-1])
    marks = judged | (rest > 0 if tape.is_self_draft else in_vain)
    marks[places_of(tape, courses.num_policies).prompts[1:-1] - 1] = True
    at = np.flatnonzero(marks)
    to_last, is_judged = np.diff(at, prepend=-1), judged.take(at)
    behind = np.flatnonzero(in_vain.take(at))
    skipped = until.take(at.take(behind) + 1)
    first = at.take(behind) + 1 + skipped
    times = (endings.in_vain * off_path.flags).ravel()
    np.subtract.at(times, first, times.dtype.type(1))
    again = np.flatnonzero(times > 0)
    return Depth(
        num_came=_num_came(courses, level),
        drafting=(
            Passed(at=at, rows=to_last, times=is_judged),
            Passed(at=first, rows=skipped + 1 + to_last.take(behind) * ~is_judged.take(behind), times=None),
            Passed(at=again, rows=since.take(again - 1) + 1, times=times.take(again)),
        ),
        pushed=_pushed(rest, in_vain, since, at, to_last * ~is_judged) if tape.is_self_draft else None,
    )


def _pushed(rest: Lengths, in_vain: Bools, since: Lengths, at: Counts, to_last: Counts) -> Passed:
    """Over what the segment has not processed of each block and its lead."""
    is_end = np.flatnonzero(rest.take(at) > 0)
    end = at.take(is_end)
    processed = end - to_last.take(is_end)
    past = end + rest.take(end) - 1
    behind = np.flatnonzero(in_vain.take(end))
    processed[behind] = past.take(behind) - 1 - since.take(past.take(behind) - 1)
    return Passed(at=past, rows=past - processed, times=None)


def _num_came(courses: Courses, level: int) -> Lengths:
    """Tokens that come of each round, told up to P. [N]."""
    blocks = courses.blocks
    on_path, off_path = blocks.on_path.coming[level], blocks.off_path.coming[level]
    if off_path is on_path:
        return _num_of_runs(on_path, courses.start, courses.drafted)
    number = _num_of_runs(on_path, courses.start, np.minimum(courses.drafted, courses.accepted + 1))
    behind = np.flatnonzero(courses.drafted > courses.accepted + 1)
    accepted = courses.accepted.take(behind)
    start, length = courses.start.take(behind) + accepted + 1, courses.drafted.take(behind) - accepted - 1
    number[behind] += _num_of_runs(off_path, start, length)
    return np.minimum(number, COLD_PLACES)


def _num_of_runs(coming: Coming, start: Counts, length: Lengths) -> Lengths:
    """Tokens that come of each run of columns, told up to P."""
    until, end = coming.until.ravel(), start + length
    at = start + until.take(start)
    number = (at < end).view(np.uint8)
    for _ in range(COLD_PLACES - 1):
        at += 1
        at += until.take(at, mode="clip")
        number += at < end
    return number
