"""The rounds a policy would have run: jumps from one column of a tape to a later one, followed for many policies in step.

Letters: Q policies, C columns, N rounds of one policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

import numpy as np

from perfmodel.policy import ExitPolicy, HeuristicLength
from perfmodel.tape import Agreement, Bools, Counts, Gate, Tape, agreement_on, block_ends, make_gate

_POLICIES_IN_STEP = 16
"""Many, so that a jump costs more than the call that makes it; few, so that their columns stay in a core's cache."""
_JUMPS_BETWEEN_CHECKS = 8

_GateKey: TypeAlias = tuple[tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """The rounds of one policy, prompt after prompt."""

    gate: Gate | None
    start: Counts  # [N]; column at which the round begins
    past: Counts  # [N]; first column past its block
    drafted: Counts  # [N]
    accepted: Counts  # [N]


def run_courses(tape: Tape, policies: Sequence[ExitPolicy | None]) -> Iterator[tuple[int, Course]]:
    """Each policy's place in the sequence and its rounds; policies with the same exits and thresholds come together."""
    agreement = cache(partial(agreement_on, tape))
    by_gate = sorted(range(len(policies)), key=lambda place: _gate_key(policies[place]))
    adapting = [place for place in by_gate if _adapting(policies[place])]
    others = [place for place in by_gate if not _adapting(policies[place])]
    for places in (others, adapting):
        for first in range(0, len(places), _POLICIES_IN_STEP):
            together = places[first : first + _POLICIES_IN_STEP]
            yield from zip(together, _run_in_step(tape, [policies[place] for place in together], agreement), strict=True)


def _run_in_step(tape: Tape, policies: Sequence[ExitPolicy | None], agreement: Agreement) -> Iterator[Course]:
    """The rounds of policies whose length adapts, or of policies none of whose does."""
    gates = {_gate_key(policy): make_gate(tape, policy) for policy in policies if policy}
    chosen = [gates[_gate_key(policy)] if policy else None for policy in policies]
    past = [
        block_ends(tape, gate, policy, agreement) if policy and gate else tape.column
        for policy, gate in zip(policies, chosen, strict=True)
    ]
    refusal = [gate.refusal if gate else tape.column for gate in chosen]
    rules = [rule for rule in map(_adapting, policies) if rule]
    if rules:
        visited, past = _visit_adapting(tape, rules, past, refusal)
    else:
        visited = _visit(tape, past, refusal)
    yield from map(_course, chosen, visited, past, refusal)


def _course(gate: Gate | None, visited: Bools, past: Counts, refusal: Counts) -> Course:
    start = np.flatnonzero(visited)
    ends = past.take(start)
    accepted = np.minimum(ends, refusal.take(start)) - start
    return Course(gate=gate, start=start, past=ends, drafted=ends - start, accepted=accepted)


def _visit(tape: Tape, past: Sequence[Counts], refusal: Sequence[Counts]) -> Bools:
    """Columns at which a round begins, where a block depends on its column alone. [Q, C]. A text's end leads to itself."""
    offset = _offsets(tape, len(past))
    jump = np.empty((len(past), len(tape.column)), np.int64)
    for row, ends, refused, first_place in zip(jump, past, refusal, offset, strict=True):
        np.minimum(ends, refused, out=row)
        np.minimum(row, tape.last, out=row)
        row += first_place + 1
    visited = np.zeros(jump.shape, np.bool_)
    to, is_start = jump.ravel(), visited.ravel()
    at, end = (offset + tape.begin).ravel(), (offset + tape.end).ravel()
    while len(at):
        for _ in range(_JUMPS_BETWEEN_CHECKS):
            is_start[at] = True
            at = to.take(at)
        going = at != end
        at, end = at[going], end[going]
    visited[:, tape.end] = False
    return visited


def _visit_adapting(
    tape: Tape, rules: Sequence[HeuristicLength], past: Sequence[Counts], refusal: Sequence[Counts]
) -> tuple[Bools, list[Counts]]:
    """The same where the cap moves, +2 after a fully accepted round, otherwise -1; and where the blocks then end. [Q, C]."""
    block_end, refused_at = np.concatenate(past), np.concatenate(refusal)
    is_start = np.zeros(len(block_end), np.bool_)
    offset = np.repeat(_offsets(tape, len(rules)), len(tape.begin))
    cap = np.repeat([rule.start for rule in rules], len(tape.begin))
    most = np.repeat([rule.draft_cap for rule in rules], len(tape.begin))
    at, last = np.tile(tape.begin, len(rules)), np.tile(tape.end - 1, len(rules))
    while len(at):
        for _ in range(_JUMPS_BETWEEN_CHECKS):
            place = offset + at
            ends = np.minimum(block_end.take(place), at + cap)
            refused = refused_at.take(place)
            block_end[place], is_start[place] = ends, True
            cap = np.where(refused >= ends, np.minimum(cap + 2, most), np.maximum(cap - 1, 1))
            at = np.minimum(np.minimum(ends, refused), last) + 1
        going = at <= last
        offset, cap, most, at, last = (lane[going] for lane in (offset, cap, most, at, last))
    visited = is_start.reshape(len(rules), -1)
    visited[:, tape.end] = False
    return visited, list(block_end.reshape(visited.shape))


def _offsets(tape: Tape, num_policies: int) -> Counts:
    """The flat place in [Q, C] at which each policy's columns begin. [Q, 1]."""
    return (np.arange(num_policies) * len(tape.column))[:, None]


def _adapting(policy: ExitPolicy | None) -> HeuristicLength | None:
    return policy.length if policy and isinstance(policy.length, HeuristicLength) else None


def _gate_key(policy: ExitPolicy | None) -> _GateKey:
    return (policy.exit_layers, policy.thresholds) if policy else ((), ())
