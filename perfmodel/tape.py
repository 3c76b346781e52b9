"""A trace laid out for replay: under one policy, what a token or a block that starts at a column would do.

No policy changes what an exit says at a position, so the exit at which a token leaves, how many tokens a block drafts,
and how many of them are accepted are functions of the position alone.

Columns: C, the recorded positions of all prompts, each prompt followed by at least one closing column past its text. In
the closing columns the last recorded position is repeated and nothing is accepted: only a block that already missed an
end-of-text token gets there.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.errors import BadPolicy
from perfmodel.policy import CalibrationCurve, ExitPolicy, FloorStop, SurvivalStop
from perfmodel.trace import AcceptanceTrace

Bools: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tape:
    """The columns of a trace."""

    is_self_draft: bool
    exit_layers: tuple[int, ...]
    confidence_kind: str
    confidence: Floats  # [E, C]
    accepted: Bools  # [E, C]
    ends_text: Bools  # [E, C]; the drafted token is an end-of-text token
    room: Counts  # [C]; most tokens a block starting here may draft: one fewer than may still be emitted
    known: Counts  # [C]; tokens known before the column's own
    prompt: Counts  # [C]
    begin: Counts  # [M]; first column of each prompt
    end: Counts  # [M]; first column past each prompt's text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gate:
    """What an exit subset with its thresholds does at every column."""

    looked: tuple[int, ...]
    """Zero-based exits that are looked at."""
    left_at: NDArray[np.uint8]  # [C]; zero-based exit
    confidence: Floats  # [C]; of the exit it left at
    run: Counts  # [C]; tokens accepted in a row from here on
    until_end: Counts  # [C]; tokens up to and including the next drafted end of text


def make_tape(trace: AcceptanceTrace, policies: Sequence[ExitPolicy | None]) -> Tape:
    """The trace with room after each prompt for the longest block of these policies."""
    header = trace.header
    positions = np.array([prompt.num_positions for prompt in header.prompts])
    longest = max((policy.length.draft_cap for policy in policies if policy), default=1)
    width = positions + np.clip(header.max_new_tokens - positions, 1, longest + 1)
    begin = np.cumsum(width) - width
    prompt = np.repeat(np.arange(len(positions)), width)
    step = np.arange(len(prompt)) - begin[prompt]  # [C]; tokens emitted before the column's own
    is_text = step < positions[prompt]
    row = (np.cumsum(positions) - positions)[prompt] + np.minimum(step, positions[prompt] - 1)
    accepted = (trace.accept_prob > _draws(trace)[:, None])[row].T & is_text
    return Tape(
        is_self_draft=header.draft.kind == "self",
        exit_layers=header.draft.exit_layers,
        confidence_kind=header.confidence,
        confidence=np.ascontiguousarray(trace.confidence[row].T, dtype=np.float64),
        accepted=np.ascontiguousarray(accepted),
        ends_text=np.ascontiguousarray(_draws_end(trace)[row].T & is_text),
        room=np.where(is_text, header.max_new_tokens - step - 1, 0),
        known=np.array([prompt.prompt_tokens for prompt in header.prompts])[prompt] + step,
        prompt=prompt,
        begin=begin,
        end=begin + positions,
    )


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


def _draws_end(trace: AcceptanceTrace) -> Bools:
    """Whether the drafted token is an end-of-text token: an accepted one is the target's, a refused one never. [P, E]."""
    eos = trace.header.eos_token_id
    if eos is None:
        return np.zeros(trace.draft_token.shape, np.bool_)
    accepted = trace.accept_prob > _draws(trace)[:, None]
    is_truth = (trace.target_token == eos)[:, None]
    ends: Bools = np.where(accepted, is_truth, (trace.draft_token == eos) & ~is_truth)
    return ends


def make_gate(tape: Tape, policy: ExitPolicy) -> Gate:
    """Where every token would leave.

    Raises:
        BadPolicy: the policy looks at an exit that the traced draft does not have, or at another confidence.
    """
    looked = _looked_exits(tape, policy)
    num_columns = len(tape.prompt)
    left_at = np.full(num_columns, looked[-1], np.uint8)
    for exit_id, threshold in zip(looked[-2::-1], policy.thresholds[::-1], strict=True):
        left_at = np.where(tape.confidence[exit_id] >= threshold, np.uint8(exit_id), left_at)
    place = left_at.astype(np.int64) * num_columns + np.arange(num_columns)
    return Gate(
        looked=looked,
        left_at=left_at,
        confidence=tape.confidence.ravel()[place],
        run=_steps_to(~tape.accepted.ravel()[place]),
        until_end=_steps_to(tape.ends_text.ravel()[place]) + 1,
    )


def _looked_exits(tape: Tape, policy: ExitPolicy) -> tuple[int, ...]:
    unknown = [layer for layer in policy.exit_layers if layer not in tape.exit_layers]
    if unknown:
        raise BadPolicy(f"exit {unknown[0]} is none of the traced draft's", f"exits among {tape.exit_layers!r}")
    if policy.confidence != tape.confidence_kind:
        raise BadPolicy(f"confidence {policy.confidence!r}", f"{tape.confidence_kind!r}, which the trace holds")
    return tuple(tape.exit_layers.index(layer) for layer in policy.exit_layers)


def longest_blocks(tape: Tape, gate: Gate, policy: ExitPolicy) -> Counts:
    """Tokens that a block starting at each column drafts, under the rule's largest cap. [C]."""
    rule = policy.length
    longest = np.minimum(np.minimum(tape.room, gate.until_end), rule.draft_cap)
    if isinstance(rule, FloorStop):
        return np.minimum(longest, _steps_to(gate.confidence < rule.floor) + 1)
    if isinstance(rule, SurvivalStop):
        return np.minimum(longest, _surviving(gate, rule))
    return longest


def _surviving(gate: Gate, rule: SurvivalStop) -> Counts:
    """Tokens until the product of their agreements is below the floor: as no agreement exceeds 1, it stays below."""
    agreement = np.empty_like(gate.confidence)
    for exit_id, curve in zip(gate.looked, rule.calibration, strict=True):
        here = gate.left_at == exit_id
        agreement[here] = agreement_at(curve, gate.confidence[here])
    product, length = agreement.copy(), np.ones(len(agreement), np.int64)
    for step in range(1, min(rule.draft_cap, len(agreement))):
        going = product >= rule.floor
        if not going.any():
            break
        length += going
        product[:-step] *= agreement[step:]
    return length


def agreement_at(curve: CalibrationCurve, confidence: Floats) -> Floats:
    """The curve at many confidences, equal to the last bit to what it says of each alone."""
    x, y = np.array(curve.confidence), np.array(curve.agreement)
    if len(x) == 1:
        return np.full(len(confidence), y[0])
    right = np.searchsorted(x, confidence, side="right")
    inner = np.clip(right, 1, len(x) - 1)
    x0, y0 = x[inner - 1], y[inner - 1]
    line = y0 + (y[inner] - y0) * (confidence - x0) / (x[inner] - x0)
    found: Floats = np.where(right == 0, y[0], np.where(right == len(x), y[-1], line))
    return found


def _steps_to(flag: Bools) -> Counts:
    """Columns from each to the next one that is flagged, itself included; past the last one, to the end."""
    flagged = np.append(np.flatnonzero(flag), len(flag))
    return np.repeat(flagged, np.diff(flagged, prepend=-1))[: len(flag)] - np.arange(len(flag))
