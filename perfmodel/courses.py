"""The rounds a policy would have run: jumps from one column of a tape to a later one, followed for many policies in step.

Letters: Q policies, C columns, N rounds of one policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.policy import ExitPolicy, HeuristicLength
from perfmodel.tape import Bools, Counts, Gate, Tape, longest_blocks, make_gate

_JUMPS_BETWEEN_CHECKS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """The rounds of one policy, prompt after prompt."""

    gate: Gate | None
    start: Counts  # [N]; column at which the round begins
    drafted: Counts  # [N]
    accepted: Counts  # [N]


def run_courses(tape: Tape, policies: Sequence[ExitPolicy | None]) -> list[Course]:
    """The rounds of each policy; an exit subset that several policies share is worked out once."""
    gates: dict[tuple[tuple[int, ...], tuple[float, ...]], Gate] = {}
    blocks = np.zeros((len(policies), len(tape.prompt)), np.int64)
    runs = np.zeros_like(blocks)
    for row, policy in enumerate(policies):
        if policy:
            gate = gates.get(_gate_key(policy)) or gates.setdefault(_gate_key(policy), make_gate(tape, policy))
            blocks[row], runs[row] = longest_blocks(tape, gate, policy), gate.run
    visited = _visit(tape, policies, blocks, runs)
    courses = []
    for row, policy in enumerate(policies):
        start = np.flatnonzero(visited[row])
        drafted = blocks[row, start]
        courses.append(
            Course(
                gate=gates[_gate_key(policy)] if policy else None,
                start=start,
                drafted=drafted,
                accepted=np.minimum(drafted, runs[row, start]),
            )
        )
    return courses


def _visit(tape: Tape, policies: Sequence[ExitPolicy | None], blocks: Counts, runs: Counts) -> Bools:
    """Columns at which a round begins. [Q, C] Where the length adapts, `blocks` becomes what was really drafted."""
    visited = np.zeros(blocks.shape, np.bool_)
    adapts = np.array([policy is not None and isinstance(policy.length, HeuristicLength) for policy in policies], np.bool_)
    _visit_fixed(tape, np.flatnonzero(~adapts), blocks, runs, visited)
    rules = [policy.length for policy in policies if policy and isinstance(policy.length, HeuristicLength)]
    _visit_adapting(tape, np.flatnonzero(adapts), rules, blocks, runs, visited)
    visited[:, tape.end] = False
    return visited


def _lanes(tape: Tape, rows: Counts) -> tuple[Counts, Counts]:
    """First column and first column past the text, as flat places in [Q, C], of every prompt under the policies `rows`."""
    offset = rows[:, None] * len(tape.prompt)
    return (offset + tape.begin).ravel(), (offset + tape.end).ravel()


def _visit_fixed(tape: Tape, rows: Counts, blocks: Counts, runs: Counts, visited: Bools) -> None:
    """Follow policies whose blocks depend on the column alone. A prompt's end leads to itself."""
    num_columns = len(tape.prompt)
    jump = np.minimum(np.arange(num_columns) + np.minimum(blocks, runs) + 1, tape.end[tape.prompt])
    jump += (np.arange(len(blocks)) * num_columns)[:, None]
    at, end = _lanes(tape, rows)
    while len(at):
        for _ in range(_JUMPS_BETWEEN_CHECKS):
            visited.ravel()[at] = True
            at = jump.ravel()[at]
        going = at != end
        at, end = at[going], end[going]


def _visit_adapting(
    tape: Tape, rows: Counts, rules: Sequence[HeuristicLength], blocks: Counts, runs: Counts, visited: Bools
) -> None:
    """Follow +2 after a fully accepted round, otherwise -1."""
    at, end = _lanes(tape, rows)
    cap = np.repeat([rule.start for rule in rules], len(tape.begin))
    most = np.repeat([rule.draft_cap for rule in rules], len(tape.begin))
    while len(at):
        drafted = np.minimum(blocks.ravel()[at], cap)
        accepted = np.minimum(drafted, runs.ravel()[at])
        visited.ravel()[at] = True
        blocks.ravel()[at] = drafted
        cap = np.where(accepted == drafted, np.minimum(cap + 2, most), np.maximum(cap - 1, 1))
        at = at + accepted + 1
        going = at < end
        at, end, cap, most = at[going], end[going], cap[going], most[going]


def _gate_key(policy: ExitPolicy) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return policy.exit_layers, policy.thresholds
