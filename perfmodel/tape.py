"""A trace laid out for replay: all prompts in a row, and what holds at a column whatever the policy.

No policy changes what an exit says at a position, so the exit at which a token leaves, how many tokens a block drafts,
and how many of them are accepted are functions of the position alone; behind a block's first mistake, `perfmodel.tails`.

Columns: C, the recorded positions of all prompts, each prompt followed by closing columns past its text. In these the last
recorded position is repeated and nothing is accepted: only a block that already missed an end-of-text token gets there.
There are enough that no block, its bonus included, reaches the last of them. Behind a block's first mistake its tokens are said
off the path: at the same columns, by confidences of their own where the trace tells them.

Numbers of tokens are kept in as small an integer as holds the longest block, one byte as a rule: arithmetic on whole columns
of bytes costs a tenth of any look-up.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.off_path import stand_in
from perfmodel.trace import AcceptanceTrace

Bools: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.integer[Any]]
Lengths: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Small numbers of tokens; see `Tape.longest`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tape:
    """The columns of a trace."""

    is_self_draft: bool
    exit_layers: tuple[int, ...]
    confidence_kind: str
    longest: int
    """Of no block are more tokens drafted."""
    confidence: Floats  # [E, C]
    off_path: Floats | None  # [E, C]; confidences off the path; None where the text's own stand in
    accepted: Bools  # [E, C]
    ends_text: Bools  # [E, C]; whether the exit drafts an end-of-text token
    may_end: bool
    """Whether any exit does anywhere."""
    room: Lengths  # [C]; tokens that a block starting here may draft: one fewer than may still be emitted
    known: Floats  # [C]; tokens known before each
    is_text: Bools  # [C]
    begin: Counts  # [M]; first column of each prompt
    end: Counts  # [M]; first column past each prompt's text

    @property
    def num_columns(self) -> int:
        """C."""
        return len(self.room)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """The columns of Q policies, those of each behind those of the one before."""

    policies: Counts  # [Q + 1]; the place at which the columns of each policy begin, and the end
    prompts: Counts  # [Q * M + 1]; the place at which each prompt of each policy begins, and the end


@lru_cache(maxsize=16)
def places_of(tape: Tape, num_policies: int) -> Places:
    """So many policies' columns."""
    policies = np.arange(num_policies + 1) * tape.num_columns
    return Places(
        policies=policies,
        prompts=np.append(np.add.outer(policies[:-1], tape.begin).ravel(), policies[-1]),
    )


@lru_cache(maxsize=4)
def make_tape(trace: AcceptanceTrace, longest: int) -> Tape:
    """The trace with room after each prompt for blocks of so many tokens."""
    header = trace.header
    positions = np.array([prompt.num_positions for prompt in header.prompts])
    longest = min(longest, header.max_new_tokens)
    width = positions + np.clip(header.max_new_tokens - positions + 1, 2, longest + 2)
    begin = np.cumsum(width) - width
    prompt = np.repeat(np.arange(len(positions)), width)
    step = np.arange(len(prompt)) - begin[prompt]  # [C]; tokens emitted before the column's own
    is_text = step < positions[prompt]
    row = (np.cumsum(positions) - positions)[prompt] + np.minimum(step, positions[prompt] - 1)
    accepted = np.ascontiguousarray((trace.accept_prob > _draws(trace)[:, None]).T)  # [E, P]
    ends_text = _draws_end(trace, accepted).take(row, axis=1) & is_text
    off_path = stand_in(trace.confidence, trace.off_path)
    return Tape(
        is_self_draft=header.draft.kind == "self",
        exit_layers=header.draft.exit_layers,
        confidence_kind=header.confidence,
        longest=longest,
        confidence=_along(trace.confidence, row),
        off_path=None if off_path is None else _along(off_path, row),
        accepted=accepted.take(row, axis=1) & is_text,
        ends_text=ends_text,
        may_end=bool(ends_text.any()),
        room=np.where(is_text, header.max_new_tokens - 1 - step, 0).clip(0, longest).astype(small_integer(longest)),
        known=(np.array([one.prompt_tokens for one in header.prompts])[prompt] + step).astype(np.float64),
        is_text=is_text,
        begin=begin,
        end=begin + positions,
    )


def _along(by_position: NDArray[np.float32], row: Counts) -> Floats:
    """Confidences by position, [P, E], along columns of given rows, [C]: [E, C]."""
    return np.ascontiguousarray(by_position[row].T, dtype=np.float64)


def run_lengths(goes_on: Bools, longest: int, *, back: bool = False) -> Lengths:
    """How many columns in a row are flagged, from each one on, or back; of a run longer than `longest`, some length above it.

    Of one row, [C], or of several one after another, [Q * C]. Nothing past the ends is flagged.
    """
    run = goes_on.astype(small_integer(2 * longest))
    reach = 1  # the longest run that is told so far
    while reach <= longest and reach < len(run):
        here, there = (run[reach:], run[:-reach]) if back else (run[:-reach], run[reach:])
        here += np.minimum(here & reach, there)  # a run as long goes on with what is there, a shorter one does not
        reach *= 2
    return run


def spread(places: Counts, bounds: Counts, values: Counts) -> Counts:
    """At some rising places, the value of the range they are in: `values[i]` from `bounds[i]` to below `bounds[i + 1]`."""
    return np.repeat(values, np.diff(np.searchsorted(places, bounds)))


def small_integer(longest: int) -> np.dtype[Any]:
    """An integer that holds the longest block and two more."""
    return np.min_scalar_type(longest + 2)


def _draws(trace: AcceptanceTrace) -> Floats:
    """One number in [0, 1) per position: a token is accepted when its acceptance probability lies above. [P].

    Under the ratio test it is seeded by the run's seed and the prompt's name, so that it is the same for every policy and
    whatever other prompts the trace holds. The exact rules have probabilities 0 and 1, and need none.
    """
    header = trace.header
    if header.sampling.rule != "ratio":
        return np.full(len(trace.target_token), 0.5)
    seeds = [(header.sampling.seed or 0, zlib.crc32(prompt.name.encode())) for prompt in header.prompts]
    lengths = [prompt.num_positions for prompt in header.prompts]
    return np.concatenate([np.random.default_rng(seed).random(n) for seed, n in zip(seeds, lengths, strict=True)])


def _draws_end(trace: AcceptanceTrace, accepted: Bools) -> Bools:
    """Whether the drafted token is an end-of-text token: an accepted one is the target's, a refused one never. [E, P]."""
    eos = trace.header.eos_token_id
    if eos is None:
        return np.zeros_like(accepted)
    is_truth = trace.target_token == eos
    is_drafted = np.ascontiguousarray((trace.draft_token == eos).T)
    ends: Bools = (accepted & is_truth) | (~accepted & is_drafted & ~is_truth)
    return ends
