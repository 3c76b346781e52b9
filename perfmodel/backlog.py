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
from perfmodel.grouping import Found
from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Bools, Counts, Lengths, Tape, places_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Endings:
    """Where rounds end: at their first mistake or, accepted in full, at the bonus token."""

    drafted: Lengths  # [Q, C]; tokens drafted by a round that begins here
    rest: Lengths  # [Q * C]; 1 and the tokens drafted from a round's end on; 0 where none ends
    judged: Bools  # [Q, C]; columns whose token was drafted and judged: a text's, but for bonus tokens of full blocks
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
    return Endings(drafted=courses.drafted_at, rest=rest.ravel(), judged=(rest != 1) & tape.is_text, in_vain=in_vain)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Depth:
    """What comes to a segment that some tokens never reach."""

    num_came: Lengths  # [N]; tokens of each round that come, told up to P
    drafting: tuple[Found, ...]
    """All passes of blocks' tokens, by their rows; marks of 0 rows are none."""
    pushed: Found | None  # [N]; by their rows, passes of a self draft's verification over what it has not processed


def depth_of(tape: Tape, courses: Courses, endings: Endings, level: int) -> Depth:
    """The passes of the segments that are reached by the tokens which leave at none of so many looked-at exits, and one."""
    blocks, rest = courses.blocks, endings.rest
    on_path, off_path = blocks.on_path.coming[level], blocks.off_path.coming[level]
    until, since = off_path.until[0].ravel(), off_path.since.ravel()
    judged = (on_path.flags & endings.judged).ravel()
    in_vain = np.zeros_like(judged)  # mistakes behind which tokens come
    np.less(until[1:] + until.dtype.type(2), rest[:-1], out=in_vain[:-1])
    stops = rest > 0 if tape.is_self_draft else in_vain.copy()
    stops[places_of(tape, courses.num_policies).prompts[1:-1] - 1] = True
    at = np.flatnonzero(judged | stops)
    rows = np.empty_like(at)
    rows[:1] = at[:1] + 1
    np.subtract(at[1:], at[:-1], out=rows[1:])
    stop = np.flatnonzero(stops.take(at))
    place = at.take(stop)
    is_passed = judged.take(place)
    owed = rows.take(stop) * ~is_passed  # columns from the last mark on
    rows[stop.compress(~is_passed)] = 0
    is_in_vain = in_vain.take(place)
    first = place.compress(is_in_vain)
    first += 1
    skipped = until.take(first)
    first += skipped
    first_rows = owed.compress(is_in_vain)
    first_rows += skipped
    first_rows += 1
    times = (endings.in_vain * off_path.flags).ravel()
    np.subtract.at(times, first, times.dtype.type(1))
    again = np.flatnonzero(times > 0)
    return Depth(
        num_came=_num_came(courses, endings, level),
        drafting=(
            Found(at=at, value=rows, times=None),
            Found(at=first, value=first_rows, times=None),
            Found(at=again, value=since.take(again - 1) + since.dtype.type(1), times=times.take(again)),
        ),
        pushed=_pushed(endings, in_vain, since, place, owed) if tape.is_self_draft else None,
    )


def _pushed(endings: Endings, in_vain: Bools, since: Lengths, place: Counts, owed: Counts) -> Found:
    """Over what the segment has not processed of each block and its lead."""
    rest = endings.rest.take(place)
    is_end = rest > 0
    end, past = place.compress(is_end), (place + rest - 1).compress(is_end)
    processed = end - owed.compress(is_end)
    behind = np.flatnonzero(in_vain.take(end))
    processed[behind] = past.take(behind) - 1 - since.take(past.take(behind) - 1)
    return Found(at=past, value=past - processed, times=None)


def _num_came(courses: Courses, endings: Endings, level: int) -> Lengths:
    """Tokens that come of each round, told up to P. [N]."""
    blocks = courses.blocks
    on_path, off_path = blocks.on_path.coming[level], blocks.off_path.coming[level]
    if off_path is on_path:
        return _num_within(on_path, endings.drafted).ravel().take(courses.start)
    length = np.minimum(courses.drafted, courses.accepted + 1)
    number = _num_within(on_path, length, courses.start)
    behind = np.flatnonzero(courses.drafted > courses.accepted + 1)
    accepted = courses.accepted.take(behind)
    start, length = courses.start.take(behind) + accepted + 1, courses.drafted.take(behind) - accepted - 1
    number[behind] += _num_within(off_path, length, start)
    return np.minimum(number, COLD_PLACES)


def _num_within(coming: Coming, length: Lengths, start: Counts | None = None) -> Lengths:
    """Tokens that come of runs of columns, told up to P: from some places on, or from every one."""
    number = np.zeros(length.shape, np.uint8)
    for until in coming.until:
        number += (until if start is None else until.ravel().take(start)) < length
    return number
