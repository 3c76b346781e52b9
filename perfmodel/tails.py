"""How blocks go on after their first mistake: off the text's path, where the trace tells what is said there.

Until a mistake a block depends on its first column alone. Behind it, how far the block still goes is what its stop rule says
of the columns off the path, except that the chance of survival is what the tokens before left of it. Acceptance, and so where
rounds begin, depends on none of this.

Letters: N rounds.
"""

from __future__ import annotations

import numpy as np

from perfmodel.blocks import Blocks, Survival
from perfmodel.tape import Counts, Floats, Integers, Lengths, Tape, places_of, spread


def with_tails(tape: Tape, blocks: Blocks, start: Counts, drafted: Lengths, right: Lengths, cap: Integers) -> Lengths:
    """Tokens that blocks draft, their tails as they are said off the path. [N].

    Args:
        tape: the trace.
        blocks: of the policies.
        start: places at which rounds begin. [N].
        drafted: tokens of their blocks, if all tokens were said on the path. [N].
        right: tokens of them before their first mistakes. [N].
        cap: the most they may draft. [N].
    """
    round_ = np.flatnonzero(drafted > right + 1)
    start, to_mistake = start.take(round_), right.take(round_) + 1
    at, places = start + to_mistake, places_of(tape, len(blocks.right))
    room = tape.room.take(start - spread(start, places.policies, places.policies[:-1]))
    most = np.minimum(cap.take(round_), room) - to_mistake
    length = np.minimum(blocks.off_path.drafted.ravel().take(at), most)
    for policy, survival in blocks.on_path.survival.items():
        begin, end = places.policies[policy : policy + 2]
        some = slice(*np.searchsorted(start, (begin, end)))
        before = _survived(survival, start[some] - begin, to_mistake[some])
        behind = _surviving(blocks.off_path.survival[policy], before, at[some] - begin, int(most.max(initial=0)))
        length[some] = np.minimum(length[some], behind)
    drafted = drafted.copy()
    drafted[round_] = to_mistake + length
    return drafted


def _survived(survival: Survival, start: Counts, to_mistake: Lengths) -> Floats:
    """The chance that blocks survive up to their mistakes. Columns, not places. [any]."""
    product = np.ones(len(start))
    for step in range(int(to_mistake.max(initial=0))):
        np.multiply(product, survival.agreement.take(start + step, mode="clip"), out=product, where=to_mistake > step)
    return product


def _surviving(survival: Survival, before: Floats, at: Counts, longest: int) -> Counts:
    """Tokens behind the mistakes until blocks' chance of survival, as it was before, is below the floor. [any]."""
    product, length = before, np.ones(len(at), np.int64)
    for step in range(longest - 1):
        product = product * survival.agreement.take(at + step, mode="clip")
        length += product >= survival.floor
    return length
