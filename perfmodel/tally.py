"""The passes of the rounds that a policy ran: where the ladder's backlog becomes rows and cached tokens.

A segment has processed n tokens. To draft the token of a column it runs over everything known before that column, and n
becomes that; after a round, n is at most what was known before the new lead. So the rows of its passes follow from the
columns at which it ran, and from where the next round began.

Letters: C columns, N rounds, T drafted tokens, G groups, E exits or segments, K tokens drafted, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.courses import Course
from perfmodel.tape import Counts, Gate, Tape


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouping:
    """What is counted together: each prompt by itself, or, where there is no `of_column`, all of them."""

    num_groups: int
    of_column: Counts | None  # [C]

    def at(self, column: Counts) -> Counts | None:
        """The groups of some columns; None where there is only one."""
        return None if self.of_column is None else self.of_column[column]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tokens:
    """What a draft processed, token by token in the order it ran.

    A self draft hands the block's last token to the verification: it runs through all segments, and answers nothing.
    """

    round: Counts  # [T]
    column: Counts  # [T]
    depth: NDArray[np.uint8]  # [T]; the deepest segment it ran through


def count_passes(tape: Tape, course: Course, grouping: Grouping) -> PassTable:
    """Count the passes of a policy's rounds."""
    num_groups, group = grouping.num_groups, grouping.at(course.start)
    drafted, verify_cached = _histogram(group, course.drafted, tape.known[course.start] - 1, num_groups)
    accepted = _frequencies(group, course.accepted, num_groups, width=drafted.shape[1])
    exits_taken = exit_checks = np.zeros((num_groups, len(tape.exit_layers)), np.int64)
    segments = segments_cached = exit_checks[:, :, None]
    if course.gate:
        tokens = _tokens(tape, course, course.gate)
        exits_taken = _exits_taken(tape, course, course.gate, tokens, grouping)
        exit_checks = _exit_checks(course.gate, exits_taken)
        segments, segments_cached = _segment_passes(tape, course, course.gate, tokens, grouping)
    return PassTable(
        num_tokens=_sums(grouping.at(tape.begin), tape.end - tape.begin, num_groups),
        drafted=drafted,
        accepted=accepted,
        verify_cached=verify_cached,
        exit_checks=exit_checks,
        exits_taken=exits_taken,
        segments=segments,
        segments_cached=segments_cached,
    )


def _tokens(tape: Tape, course: Course, gate: Gate) -> _Tokens:
    """The drafted tokens, and for a self draft each round's pushed one; none where every token does the same."""
    per_round = course.drafted + 1 if tape.is_self_draft else course.drafted
    if not tape.is_self_draft and len(gate.looked) == 1:
        per_round = np.zeros_like(per_round)
    past = np.cumsum(per_round)
    column = np.arange(past[-1]) + np.repeat(course.start - past + per_round, per_round)
    depth = gate.left_at[column]
    if tape.is_self_draft:
        depth[past - 1] = len(tape.exit_layers) - 1
    return _Tokens(round=np.repeat(np.arange(len(past)), per_round), column=column, depth=depth)


def _exits_taken(tape: Tape, course: Course, gate: Gate, tokens: _Tokens, grouping: Grouping) -> Counts:
    """Drafted tokens by the exit they left at. [G, E]."""
    num_groups, group = grouping.num_groups, grouping.at(course.start)
    if len(gate.looked) == 1:
        taken = np.zeros((num_groups, len(tape.exit_layers)), np.int64)
        taken[:, gate.looked[0]] = _sums(group, course.drafted, num_groups)
        return taken
    taken = _frequencies(grouping.at(tokens.column), tokens.depth, num_groups, width=len(tape.exit_layers))
    if tape.is_self_draft:
        taken[:, -1] -= _sums(group, np.ones_like(course.start), num_groups)
    return taken


def _exit_checks(gate: Gate, exits_taken: Counts) -> Counts:
    """A token checks every looked-at exit up to the one it leaves at. [G, E]."""
    checks = np.zeros_like(exits_taken)
    for exit_id in gate.looked:
        checks[:, exit_id] = exits_taken[:, exit_id:].sum(axis=1)
    return checks


def _segment_passes(tape: Tape, course: Course, gate: Gate, tokens: _Tokens, grouping: Grouping) -> tuple[Counts, Counts]:
    """Passes by segment and rows, and the cached tokens before them. [G, E, R]."""
    num_groups, num_exits = grouping.num_groups, len(tape.exit_layers)
    always = _passes_of_every_token(tape, course, grouping)
    tables = [always] * (gate.looked[0] + 1)
    deepest = num_exits - 1 if tape.is_self_draft else gate.looked[-1]
    tables += [_passes_at_depth(tape, course, tokens, stage, grouping) for stage in range(gate.looked[0] + 1, deepest + 1)]
    width = max(passes.shape[1] for passes, _ in tables)
    segments, cached = np.zeros((2, num_groups, num_exits, width), np.int64)
    for stage, (passes, seen) in enumerate(tables):
        segments[:, stage, : passes.shape[1]] = passes
        cached[:, stage, : passes.shape[1]] = seen
    return segments, cached


def _passes_of_every_token(tape: Tape, course: Course, grouping: Grouping) -> tuple[Counts, Counts]:
    """Passes of a segment that every token runs through. [G, R].

    A round begins with one row, or with two when the round before it was accepted in full and so left its last drafted
    token unprocessed (a self draft has pushed it in the verification). Every further token is one row.
    """
    num_groups, per_round = grouping.num_groups, course.drafted + 1 if tape.is_self_draft else course.drafted
    first_rows = np.ones_like(per_round)
    if not tape.is_self_draft:
        is_full = (course.drafted == course.accepted)[:-1] & (np.diff(tape.prompt[course.start]) == 0)
        first_rows[1:] += is_full
    ran = per_round > 0
    group, further = grouping.at(course.start[ran]), per_round[ran] - 1
    lead = tape.known[course.start[ran]] - 1
    passes, cached = _histogram(group, first_rows[ran], lead + 1 - first_rows[ran], num_groups, least_width=2)
    passes[:, 1] += _sums(group, further, num_groups)
    cached[:, 1] += _sums(group, further * lead + further * (further + 1) // 2, num_groups)
    return passes, cached


def _passes_at_depth(tape: Tape, course: Course, tokens: _Tokens, stage: int, grouping: Grouping) -> tuple[Counts, Counts]:
    """Passes of a segment that only the tokens that did not leave before it run through. [G, R]."""
    here = np.flatnonzero(tokens.depth >= stage)
    column, of_round = tokens.column[here], tokens.round[here]
    kept = np.append(course.start[1:], 0)[of_round] - 1  # what a rollback after the round leaves, at most
    same_round = of_round[1:] == of_round[:-1]
    processed = np.empty_like(column)
    processed[1:] = np.where(same_round, column[:-1], np.minimum(column[:-1], kept[:-1]))
    first_round = np.searchsorted(course.start, tape.begin)
    first_token = np.searchsorted(of_round, first_round)
    is_found = first_token < len(column)
    # A prompt that never came here points at the next one's first token, whose own entry is written after it.
    processed[first_token[is_found]] = tape.begin[is_found] - 1
    rows = column - processed
    return _histogram(grouping.at(column), rows, tape.known[column] - rows, grouping.num_groups)


def _histogram(
    group: Counts | None, value: Counts, weight: Counts, num_groups: int, *, least_width: int = 1
) -> tuple[Counts, Counts]:
    """How often each value occurs in each group, and the sum of its weights. [G, values]."""
    width = max(int(value.max(initial=0)) + 1, least_width)
    place, size = value if group is None else group * width + value, num_groups * width
    number = np.bincount(place, minlength=size).reshape(num_groups, width)
    return number, np.bincount(place, weight, minlength=size).astype(np.int64).reshape(num_groups, width)


def _frequencies(group: Counts | None, value: Counts | NDArray[np.uint8], num_groups: int, *, width: int) -> Counts:
    """How often each value below `width` occurs in each group. [G, values]."""
    place = value if group is None else group * width + value
    return np.bincount(place, minlength=num_groups * width).reshape(num_groups, width)


def _sums(group: Counts | None, value: Counts, num_groups: int) -> Counts:
    """The sum of the values in each group. [G]."""
    if group is None:
        return np.array([value.sum()])
    return np.bincount(group, value, minlength=num_groups).astype(np.int64)
