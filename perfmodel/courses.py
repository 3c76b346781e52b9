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
from perfmodel.tails import with_tails
from perfmodel.tape import Bools, Counts, Lengths, Tape, places_of, small_integer, spread

_PLACES_IN_STEP = 2**19
"""Columns of policies that are run together. Many, so that an array operation costs more than the call that makes it; few, so
that they stay in a core's cache."""
_JUMPS_BETWEEN_CHECKS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Courses:
    """The rounds of Q policies that look at as many exits and run their segments alike: policy after policy, prompt by prompt.

    A place is a column of one of the policies: its columns follow those of the one before.
    """

    blocks: Blocks
    drafted_at: Lengths  # [Q, C]; tokens of a block that begins here, if all tokens were said on the path
    start: Counts  # [N]; rising places at which rounds begin
    drafted: Lengths  # [N]
    accepted: Lengths  # [N]

    @property
    def num_policies(self) -> int:
        """Q."""
        return len(self.blocks.right)


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
    drafting = [policy for policy in policies if policy]
    blocks = draft_blocks(tape, drafting) if drafting else no_blocks(tape, len(policies))
    rules = [policy.length for policy in drafting if isinstance(policy.length, HeuristicLength)]
    if rules:
        visited, caps = _visit_adapting(tape, blocks, rules)
    else:
        visited, caps = _visit(tape, blocks), None
    start = np.flatnonzero(visited)
    drafted_at = blocks.on_path.drafted if caps is None else np.minimum(blocks.on_path.drafted, caps)
    drafted = drafted_at.ravel().take(start)
    right = blocks.right.ravel().take(start)
    if tape.off_path is not None:
        fixed = np.array([policy.length.draft_cap if policy else 0 for policy in policies])
        cap = spread(start, places_of(tape, len(policies)).policies, fixed) if caps is None else caps.ravel().take(start)
        drafted = with_tails(tape, blocks, start, drafted, right, cap)
    return Courses(blocks=blocks, drafted_at=drafted_at, start=start, drafted=drafted, accepted=np.minimum(drafted, right))


def _visit(tape: Tape, blocks: Blocks) -> Bools:
    """Columns at which a round begins, where a block depends on its column alone. [Q, C].

    One does behind every mistake, whatever came before: a block ends there, or just before it so that it is the bonus token.
    From there rounds follow on one another for as long as they are accepted in full.
    """
    drafted, right = blocks.on_path.drafted, blocks.right
    visited = np.zeros(right.shape, np.bool_)
    visited[:, 1:] = right[:, :-1] == 0
    visited[:, 0] = True
    visited &= tape.is_text
    is_full = drafted <= right
    is_full &= tape.is_text
    leads_on, flat = is_full & ~visited, visited.ravel()
    at, jump = np.flatnonzero(is_full & visited), drafted.ravel()
    while len(at):
        at = at + jump.take(at)
        at += 1
        flat[at] = True
        at = at.compress(leads_on.take(at))
    visited &= tape.is_text
    return visited


def _visit_adapting(tape: Tape, blocks: Blocks, rules: Sequence[HeuristicLength]) -> tuple[Bools, Lengths]:
    """The same where the cap moves, +2 after a fully accepted round, otherwise -1; and the caps of the rounds. [Q, C] each.

    A round leads as many columns on as it has tokens: one more than the cap at most, and one more than are right.
    """
    largest = max(rule.draft_cap for rule in rules)
    small = small_integer(largest + 2)
    longest, right = blocks.on_path.drafted, blocks.right
    step = np.minimum(longest, right).astype(small)
    step += 1
    step *= tape.is_text
    full = np.maximum(step, (longest <= right) * small.type(largest + 1)).ravel()  # of so many tokens, all drafted are right
    jump, at = step.ravel(), places_of(tape, len(rules)).prompts[:-1]
    most = np.repeat(np.array([rule.draft_cap for rule in rules], small) + small.type(1), len(tape.begin))
    tokens = np.repeat(np.array([rule.start for rule in rules], small) + small.type(1), len(tape.begin))
    been, had = [], []
    while len(at):
        for _ in range(_JUMPS_BETWEEN_CHECKS):
            been.append(at)
            had.append(tokens)
            is_full = tokens <= full.take(at)
            at = at + np.minimum(jump.take(at), tokens)
            tokens = tokens + is_full * small.type(3)
            tokens -= 1
            np.minimum(np.maximum(tokens, 2, out=tokens), most, out=tokens)
        going = jump.take(at) > 0
        at, tokens, most = (lane[going] for lane in (at, tokens, most))
    places = np.concatenate(been)
    caps, visited = np.zeros_like(right), np.zeros(right.shape, np.bool_)
    caps.ravel()[places] = np.minimum(np.concatenate(had) - small.type(1), min(largest, tape.longest))
    visited.ravel()[places] = True
    visited &= tape.is_text
    return visited, caps
