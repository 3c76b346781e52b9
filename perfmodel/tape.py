"""A trace laid out for replay: under one policy, what a token or a block that starts at a column would do.

No policy changes what an exit says at a position, so the exit at which a token leaves, how many tokens a block drafts,
and how many of them are accepted are functions of the position alone.

Columns: C, the recorded positions of all prompts, each prompt followed by closing columns past its text. In these the last
recorded position is repeated and nothing is accepted: only a block that already missed an end-of-text token gets there.
There are enough that no block, its bonus included, reaches the next prompt. Z, the columns at which some exit ends the text.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.errors import BadPolicy
from perfmodel.policy import CalibrationCurve, ExitPolicy, FloorStop, SurvivalStop
from perfmodel.trace import AcceptanceTrace

Bools: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.integer[Any]]
Agreement: TypeAlias = Callable[[int, CalibrationCurve], Floats]
"""(zero-based exit, its curve) -> calibrated confidence at every column."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tape:
    """The columns of a trace."""

    is_self_draft: bool
    exit_layers: tuple[int, ...]
    confidence_kind: str
    confidence: Floats  # [E, C]
    refused: Bools  # [E, C]
    may_end: Counts  # [Z]; columns at which some exit drafts an end-of-text token
    ends_text: Bools  # [E, Z]; the exits that do
    column: Counts  # [C]; 0, 1, 2, ...
    limit: Counts  # [C]; past the last column that a block starting here may draft: one fewer than may still be emitted
    known: Counts  # [C]; tokens known before the column's own
    prompt: Counts  # [C]
    first: Counts  # [C]; first column of the prompt
    last: Counts  # [C]; last column of the prompt's text
    begin: Counts  # [M]; first column of each prompt
    end: Counts  # [M]; first column past each prompt's text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Depth:
    """The tokens that did not leave before some exit, and so run through the segments up to it."""

    column: Counts  # [D]
    before: Counts  # [C + 1]; how many of them lie before a column


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gate:
    """What an exit subset with its thresholds does at every column."""

    looked: tuple[int, ...]
    """Zero-based exits that are looked at."""
    leaves: tuple[Bools, ...]
    """By looked-at exit but the last: whether its confidence reaches its threshold. Each [C]."""
    depths: tuple[Depth, ...]
    """By looked-at exit but the first."""
    refusal: Counts  # [C]; the next column, from here on, whose token is refused
    limit: Counts  # [C]; the tape's, and past the next drafted end of text


def make_tape(trace: AcceptanceTrace, policies: Sequence[ExitPolicy | None]) -> Tape:
    """The trace with room after each prompt for the longest block of these policies."""
    header = trace.header
    positions = np.array([prompt.num_positions for prompt in header.prompts])
    longest = max((policy.length.draft_cap for policy in policies if policy), default=1)
    width = positions + np.clip(header.max_new_tokens - positions + 1, 2, longest + 2)
    begin = np.cumsum(width) - width
    prompt = np.repeat(np.arange(len(positions)), width)
    column = np.arange(len(prompt))
    step = column - begin[prompt]  # [C]; tokens emitted before the column's own
    is_text = step < positions[prompt]
    row = (np.cumsum(positions) - positions)[prompt] + np.minimum(step, positions[prompt] - 1)
    accepted = np.ascontiguousarray((trace.accept_prob > _draws(trace)[:, None]).T)  # [E, P]
    ends_text = _draws_end(trace, accepted).take(row, axis=1) & is_text
    may_end = np.flatnonzero(np.logical_or.reduce(ends_text))
    return Tape(
        is_self_draft=header.draft.kind == "self",
        exit_layers=header.draft.exit_layers,
        confidence_kind=header.confidence,
        confidence=np.ascontiguousarray(trace.confidence[row].T, dtype=np.float64),
        refused=~(accepted.take(row, axis=1) & is_text),
        may_end=may_end,
        ends_text=ends_text[:, may_end],
        column=column,
        limit=np.where(is_text, begin[prompt] + header.max_new_tokens - 1, column),
        known=np.array([prompt.prompt_tokens for prompt in header.prompts])[prompt] + step,
        prompt=prompt,
        first=begin[prompt],
        last=(begin + positions - 1)[prompt],
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


def _draws_end(trace: AcceptanceTrace, accepted: Bools) -> Bools:
    """Whether the drafted token is an end-of-text token: an accepted one is the target's, a refused one never. [E, P]."""
    eos = trace.header.eos_token_id
    if eos is None:
        return np.zeros_like(accepted)
    is_truth = trace.target_token == eos
    is_drafted = np.ascontiguousarray((trace.draft_token == eos).T)
    ends: Bools = (accepted & is_truth) | (~accepted & is_drafted & ~is_truth)
    return ends


def make_gate(tape: Tape, policy: ExitPolicy) -> Gate:
    """Where every token would leave.

    Raises:
        BadPolicy: the policy looks at an exit that the traced draft does not have, or at another confidence.
    """
    looked = _looked_exits(tape, policy)
    leaves = tuple(tape.confidence[exit_id] >= at for exit_id, at in zip(looked, policy.thresholds, strict=False))
    leaves_at_end = [here[tape.may_end] for here in leaves]
    ends = _pick(leaves_at_end, [tape.ends_text[exit_id] for exit_id in looked])
    return Gate(
        looked=looked,
        leaves=leaves,
        depths=tuple(_depths(leaves)),
        refusal=_next(np.flatnonzero(_pick(leaves, [tape.refused[exit_id] for exit_id in looked])), len(tape.column)),
        limit=np.minimum(tape.limit, _next(tape.may_end[ends], len(tape.column)) + 1),
    )


def _pick(leaves: Sequence[Bools], of_exit: Sequence[Bools]) -> Bools:
    """From one array per looked-at exit, what is said by the exit at which each column's token leaves. [C].

    In logic, and for floats in `_surviving` in arithmetic: `np.where` takes a branch per column, ten times slower.
    """
    picked = of_exit[-1]
    for here, said in zip(leaves[::-1], of_exit[-2::-1], strict=True):
        picked = (here & said) | (~here & picked)
    return picked


def _depths(leaves: Sequence[Bools]) -> Iterator[Depth]:
    """The tokens that left at none of the exits so far, exit by exit."""
    stays: Bools | None = None
    for here in leaves:
        stays = ~here if stays is None else stays & ~here
        before = np.zeros(len(stays) + 1, np.int64)
        np.cumsum(stays, out=before[1:])
        yield Depth(column=np.flatnonzero(stays), before=before)


def _looked_exits(tape: Tape, policy: ExitPolicy) -> tuple[int, ...]:
    unknown = [layer for layer in policy.exit_layers if layer not in tape.exit_layers]
    if unknown:
        raise BadPolicy(f"exit {unknown[0]} is none of the traced draft's", f"exits among {tape.exit_layers!r}")
    if policy.confidence != tape.confidence_kind:
        raise BadPolicy(f"confidence {policy.confidence!r}", f"{tape.confidence_kind!r}, which the trace holds")
    return tuple(tape.exit_layers.index(layer) for layer in policy.exit_layers)


def block_ends(tape: Tape, gate: Gate, policy: ExitPolicy, agreement: Agreement) -> Counts:
    """First column past the block that starts at each column, under the rule's largest cap. [C].

    Args:
        tape: the trace.
        gate: the policy's.
        policy: what stops a block.
        agreement: calibrated confidence of an exit at every column, see `agreement_on`.
    """
    rule = policy.length
    past = np.minimum(tape.column + rule.draft_cap, gate.limit)
    if isinstance(rule, FloorStop):
        is_low = _pick(gate.leaves, [tape.confidence[exit_id] < rule.floor for exit_id in gate.looked])
        np.minimum(past, _next(np.flatnonzero(is_low), len(past)) + 1, out=past)
    if isinstance(rule, SurvivalStop):
        calibrated = [agreement(exit_id, curve) for exit_id, curve in zip(gate.looked, rule.calibration, strict=True)]
        np.minimum(past, tape.column + _surviving(gate, calibrated, rule), out=past)
    return past


def _surviving(gate: Gate, calibrated: Sequence[Floats], rule: SurvivalStop) -> Integers:
    """Tokens until the product of their agreements is below the floor: as no agreement exceeds 1, it stays below. [C]."""
    agreement = calibrated[-1]
    for here, said in zip(gate.leaves[::-1], calibrated[-2::-1], strict=True):
        agreement = here * said + ~here * agreement
    product, length = agreement.copy(), np.ones(len(agreement), np.min_scalar_type(rule.draft_cap))
    for step in range(1, min(rule.draft_cap, len(agreement))):
        going = product >= rule.floor
        if not going.any():
            break
        length += going.view(np.uint8)
        product[:-step] *= agreement[step:]
    return length


def agreement_on(tape: Tape, exit_id: int, curve: CalibrationCurve) -> Floats:
    """The curve at every confidence of an exit. [C]."""
    return agreement_at(curve, tape.confidence[exit_id])


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


def _next(flagged: Counts, num_columns: int) -> Counts:
    """The first flagged column at or after each; past the last one, the number of columns. [C]."""
    passed = np.zeros(num_columns + 1, np.int64)
    passed[flagged + 1] = 1
    return np.append(flagged, num_columns).take(passed[:-1].cumsum())
