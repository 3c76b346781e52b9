"""A trace laid out for replay: all prompts in a row, and what holds at a column whatever the policy.

No policy changes what an exit says at a position, so the exit at which a token leaves, where a block stops, and how many of its
tokens are accepted are functions of the position alone; behind a block's first mistake, of what is said off the path.

Columns: C, the recorded positions of all prompts, each prompt followed by closing columns past its text. In these the last
recorded position is repeated and nothing is accepted: only a block that already missed an end-of-text token gets there.
There are enough that no block, its bonus included, reaches the last of them. Behind a block's first mistake its tokens are said
off the path: at the same columns, by confidences of their own where the trace tells them.

Letters: E exits, M prompts.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.off_path_trace import stand_in
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Floats

Bools: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TraceLayout:
    """The columns of a trace."""

    is_self_draft: bool
    exit_layers: tuple[int, ...]
    confidence: NDArray[np.float32]  # [E, C]
    off_path: NDArray[np.float32] | None  # [E, C]; confidences off the path; None where the text's own stand in
    accepted: Bools  # [E, C]
    ends_text: Bools  # [E, C]; whether the exit drafts an end-of-text token
    room: NDArray[np.int32]  # [C]; tokens that a block starting here may draft: one fewer than may still be emitted
    begin: Counts  # [M]; first column of each prompt
    end: Counts  # [M]; first column past each prompt's text
    known: Counts  # [M]; tokens known before each prompt's first column

    @property
    def num_columns(self) -> int:
        """C."""
        return len(self.room)


@lru_cache(maxsize=4)
def lay_out(trace: Trace, longest: int) -> TraceLayout:
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
    accepted = np.ascontiguousarray((trace.accept_prob > draws(trace)[:, None]).T)  # [E, P]
    off_path = stand_in(trace.confidence, trace.off_path)
    return TraceLayout(
        is_self_draft=header.draft.kind == "self",
        exit_layers=header.draft.exit_layers,
        confidence=_along(trace.confidence, row),
        off_path=None if off_path is None else _along(off_path, row),
        accepted=accepted.take(row, axis=1) & is_text,
        ends_text=_draws_end(trace, accepted).take(row, axis=1) & is_text,
        room=np.where(is_text, header.max_new_tokens - 1 - step, 0).clip(0, longest).astype(np.int32),
        begin=begin,
        end=begin + positions,
        known=np.array([one.prompt_tokens for one in header.prompts]),
    )


def _along(by_position: NDArray[np.float32], row: Counts) -> NDArray[np.float32]:
    """Confidences by position, [P, E], along columns of given rows, [C]: [E, C]."""
    return np.ascontiguousarray(by_position[row].T)


def draws(trace: Trace) -> Floats:
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


def _draws_end(trace: Trace, accepted: Bools) -> Bools:
    """Whether the drafted token is an end-of-text token: an accepted one is the target's, a refused one never. [E, P]."""
    eos = trace.header.eos_token_id
    if eos is None:
        return np.zeros_like(accepted)
    is_truth = trace.target_token == eos
    is_drafted = np.ascontiguousarray((trace.draft_token == eos).T)
    ends: Bools = (accepted & is_truth) | (~accepted & is_drafted & ~is_truth)
    return ends
