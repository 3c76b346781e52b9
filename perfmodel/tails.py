"""How blocks go on after their first mistake: off the text's path, where the trace tells what is said there.

Until a mistake a block depends on its first column alone. Behind it, how far the block still goes is what its stop rule says
of the columns off the path, except that the chance of survival is what the tokens before left of it. Acceptance, and so where
rounds begin, depends on none of this.

Letters: Q policies, C columns, M prompts, N rounds, S of which go on after a mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.blocks import Blocks, Survival
from perfmodel.tape import Counts, Integers, Lengths, Tape, places_of, spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tails:
    """What blocks draft after their first mistakes."""

    round_: Counts  # [S]
    to_mistake: Lengths  # [S]; tokens up to the mistake, which is the last of them
    at: Counts  # [S]; places, off the path, of the tokens behind the mistakes
    drafted: Lengths  # [S]; tokens from there on, one or more


def tails_of(tape: Tape, blocks: Blocks, to_off_path: Counts, start: Counts, drafted: Lengths, cap: Integers) -> Tails:
    """What comes after the mistakes of some rounds.

    Args:
        tape: the trace.
        blocks: of the policies.
        to_off_path: see `Tape`. [M].
        start: places at which rounds begin. [N].
        drafted: tokens of their blocks, if all tokens were said on the path. [N].
        cap: the most they may draft. [N].
    """
    to_mistake = blocks.right.ravel().take(start) + 1
    round_ = np.flatnonzero(drafted > to_mistake)
    start, to_mistake = start.take(round_), to_mistake.take(round_)
    num_policies = len(blocks.drafted)
    places = places_of(tape, num_policies)
    at = start + to_mistake
    at += spread(start, places.prompts, np.tile(to_off_path, num_policies))
    room = tape.room.take(start - spread(start, places.policies, places.policies[:-1]))
    most = np.minimum(cap.take(round_), room) - to_mistake
    length = np.minimum(blocks.drafted.ravel().take(at), most)
    for policy, survival in blocks.survival.items():
        begin, end = places.policies[policy : policy + 2]
        some = slice(*np.searchsorted(start, (begin, end)))
        first, behind = start[some] - begin, at[some] - begin
        length[some] = np.minimum(length[some], _surviving(survival, first, to_mistake[some], behind, int(most.max(initial=0))))
    return Tails(round_=round_, to_mistake=to_mistake, at=at, drafted=length.astype(drafted.dtype))


def _surviving(survival: Survival, start: Counts, to_mistake: Lengths, at: Counts, longest: int) -> Counts:
    """Tokens behind the mistakes until blocks' chance of survival is below the floor. Columns, not places. [any]."""
    agreement, product = survival.agreement, np.ones(len(start))
    for step in range(int(to_mistake.max(initial=0))):
        np.multiply(product, agreement.take(start + step, mode="clip"), out=product, where=to_mistake > step)
    length = np.ones(len(start), np.int64)
    for step in range(longest - 1):
        product *= agreement.take(at + step, mode="clip")
        length += product >= survival.floor
    return length
