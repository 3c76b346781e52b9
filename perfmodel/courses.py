"""The rounds that policies would have run: jumps from one column of a tape to a later one, followed for many in step.

Letters: Q policies, C columns, M prompts, N rounds of all Q.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from perfmodel.blocks import Blocks, draft_blocks, no_blocks
from perfmodel.policy import ExitPolicy, HeuristicLength
from perfmodel.tails import Tails, tails_of
from perfmodel.tape import Bools, Counts, Counts32, Lengths, Tape, places_of, small_integer, spread

_PLACES_IN_STEP = 2**18
"""Columns of policies that are run together. Many, so that an array operation costs more than the call that makes it; few, so
that they stay in a core's cache."""
_JUMPS_BETWEEN_CHECKS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Courses:
    """The rounds of Q policies that look at as many exits and run their segments alike: policy after policy, prompt by prompt.

    A place is a column of one of the policies: its columns follow those of the one before.
    """

    blocks: Blocks
    start: Counts  # [N]; rising places at which rounds begin
    known: Counts32  # [N]; tokens known at the start
    drafted: Lengths  # [N]
    accepted: Lengths  # [N]
    tails: Tails | None
    """None where what is said off the path is not told: the text's own confidences stand in."""

    @property
    def runs(self) -> tuple[Counts, Lengths]:
        """The runs of columns that blocks are made of: places where they start, and how many columns they are.

        One a round, as far as its mistake; and behind these, [N + S], the tails.
        """
        if self.tails is None:
            return self.start, self.drafted
        before = self.drafted.copy()
        before[self.tails.round_] = self.tails.to_mistake
        return np.append(self.start, self.tails.at), np.append(before, self.tails.drafted)

    @property
    def num_policies(self) -> int:
        """Q."""
        return len(self.blocks.drafted)


def run_courses(tape: Tape, policies: Sequence[ExitPolicy | None]) -> Iterator[tuple[tuple[int, ...], Courses]]:
    """Some of the policies, by their places in the sequence, and their rounds; until every policy came."""
    order = sorted(range(len(policies)), key=lambda place: _kinship(policies[place]))
    most = max(1, _PLACES_IN_STEP // tape.num_columns)
    for _, kin in groupby(order, key=lambda place: _kinship(policies[place])[:4]):
        places = tuple(kin)
        for some in np.array_split(places, -(-len(places) // most)):
            together = tuple(some.tolist())
            yield together, _run_in_step(tape, [policies[place] for place in together])


def _kinship(policy: ExitPolicy | None) -> tuple[bool, bool, bool, int, tuple[int, ...], tuple[float, ...], int]:
    """Policies run together that look at as many exits, whose length adapts, or does not, and that run their segments alike.

    The more alike neighbours are, the less there is to do: they share thresholds and the length of the longest block.
    """
    if policy is None:
        return False, False, False, 0, (), (), 0
    rule, layers = policy.length, policy.exit_layers
    passes = isinstance(rule, HeuristicLength), policy.runs_ahead, policy.catches_up_at_once
    return *passes, len(layers), layers, policy.thresholds, rule.draft_cap


def _run_in_step(tape: Tape, policies: Sequence[ExitPolicy | None]) -> Courses:
    """The rounds of policies whose length adapts, or of policies none of whose does."""
    places = places_of(tape, len(policies))
    drafting = [policy for policy in policies if policy]
    blocks = draft_blocks(tape, drafting) if drafting else no_blocks(tape, len(policies))
    rules = [policy.length for policy in drafting if isinstance(policy.length, HeuristicLength)]
    if rules:
        visited, caps = _visit_adapting(tape, blocks, rules)
    else:
        visited, caps = _visit(tape, blocks), None
    start = np.flatnonzero(visited)
    drafted = blocks.drafted.ravel().take(start)
    if caps is not None:
        np.minimum(drafted, caps.take(start), out=drafted)
    accepted = np.minimum(drafted, blocks.right.ravel().take(start))
    tails = None
    if tape.to_off_path is not None:
        fixed = np.array([policy.length.draft_cap if policy else 0 for policy in policies])
        cap = spread(start, places.policies, fixed) if caps is None else caps.take(start)
        tails = tails_of(tape, blocks, tape.to_off_path, start, drafted, cap)
        drafted[tails.round_] = tails.to_mistake + tails.drafted
    return Courses(
        blocks=blocks,
        start=start,
        known=places.known.take(start),
        drafted=drafted,
        accepted=accepted,
        tails=tails,
    )


def _visit(tape: Tape, blocks: Blocks) -> Bools:
    """Columns at which a round begins, where a block depends on its column alone. [Q, C]."""
    step = np.minimum(blocks.drafted, blocks.right)
    step += 1
    np.minimum(step, tape.left, out=step)  # no step leads on from a text's end
    jump, at = step.ravel(), places_of(tape, len(step)).prompts[:-1]
    been = []
    while len(at):
        for _ in range(_JUMPS_BETWEEN_CHECKS):
            been.append(at)
            at = at + jump.take(at)
        at = at[jump.take(at) > 0]
    visited = np.zeros(step.shape, np.bool_)
    visited.ravel()[np.concatenate(been)] = True
    visited[:, tape.end] = False
    return visited


def _visit_adapting(tape: Tape, blocks: Blocks, rules: Sequence[HeuristicLength]) -> tuple[Bools, Lengths]:
    """The same where the cap moves, +2 after a fully accepted round, otherwise -1; and the caps of the rounds. [Q * C]."""
    longest, right = blocks.drafted.ravel(), blocks.right.ravel()
    caps, visited = np.zeros_like(longest), np.zeros(blocks.drafted.shape, np.bool_)
    is_start = visited.ravel()
    at = places_of(tape, len(rules)).prompts[:-1]
    end = at + np.tile(tape.end - tape.begin, len(rules))
    largest = max(rule.draft_cap for rule in rules)
    small, told = small_integer(largest), min(largest, tape.longest)
    cap = np.repeat(np.array([rule.start for rule in rules], small), len(tape.begin))
    most = np.repeat(np.array([rule.draft_cap for rule in rules], small), len(tape.begin))
    while len(at):
        for _ in range(_JUMPS_BETWEEN_CHECKS):
            drafted, correct = np.minimum(longest.take(at), cap), right.take(at)
            caps[at], is_start[at] = np.minimum(cap, told), True
            cap += (correct >= drafted) * small.type(3)
            cap -= 1
            np.minimum(np.maximum(cap, 1, out=cap), most, out=cap)
            at = np.minimum(at + (np.minimum(drafted, correct) + 1), end)
        going = at < end
        at, end, cap, most = (lane[going] for lane in (at, end, cap, most))
    visited[:, tape.end] = False
    return visited, caps
