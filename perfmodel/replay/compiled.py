"""Compiled replay: arrays of a trace and its policies, counted in C (`native/`).

One policy along ten thousand positions takes about a tenth of a millisecond. The C code is tested against
`perfmodel.replay.reference`. Constants are defined once: the C module exports the fields of its structs and the names of its
entry kinds, and this module builds its dtypes from them. Importing it fails where s2d was installed without a C compiler.

The exit where a token leaves, the position where a block stops and the tokens that are accepted depend on the position alone,
as no policy changes what an exit predicts there. After a block's first rejected token, they depend on the confidences off the
path.

Columns: the recorded positions of all prompts, one prompt after another, each followed by padding. Padding repeats the last
position and accepts nothing; only a block that missed an end-of-text token reaches it. There is enough padding that no block
with its bonus reaches the last column.

Letters: Q policies, E exits, C columns, M prompts, A calibration curves, S sides (on the text's path, and off it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.confidence_curves import agreement_at
from perfmodel.acceptance.off_path_trace import off_path_confidence
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Floats
from perfmodel.passes.passes import COLD_PLACES
from perfmodel.policies.policy import CalibrationCurve, ConfidenceFloor, HeuristicLength, Policy, SurvivalFloor
from perfmodel.replay._native import ENTRY_FIELDS, RULE_FIELDS, RULE_FORMATS, run
from perfmodel.replay._native import ENTRY_KINDS as NATIVE_ENTRY_KINDS
from perfmodel.replay.reference import ENTRY_KINDS

Bools: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int64]

_ENTRY = np.dtype([(name, np.int64) for name in ENTRY_FIELDS])
_RULE = np.dtype(list(zip(RULE_FIELDS, RULE_FORMATS, strict=True)))
"""A policy, as the C code reads it."""
_KIND_NUMBERS = np.array(list(map(ENTRY_KINDS.index, NATIVE_ENTRY_KINDS)))
"""For every kind of entry in C, its index in `ENTRY_KINDS`."""
_LENGTH_STEP = 16
"""The padding of a layout is a multiple of this: the steps of a search then share one layout."""


def count_entries(trace: Trace, policies: Sequence[Policy | None], *, by_prompt: bool, keep_blocks: bool) -> NDArray[Any]:
    """The entries of `perfmodel.replay.reference.count_entries` as an array; kinds are indices in `ENTRY_KINDS`."""
    layout = lay_out(trace, _padded_length(policies))
    order = sorted(range(len(policies)), key=lambda number: _exit_settings(policies[number]))  # equal settings share work
    ordered = [policies[number] for number in order]
    groups_per_policy = len(trace.header.prompts) if by_prompt else 1
    rules = [_rule(number * groups_per_policy, policy) for number, policy in zip(order, ordered, strict=True)]
    active, thresholds = _active_exits(layout, ordered)
    curve_numbers, agreement = _curves(layout, ordered)
    counted = run(
        layout.is_self_draft,
        by_prompt,
        keep_blocks,
        COLD_PLACES,
        np.array([tuple(rule[name] for name in RULE_FIELDS) for rule in rules], _RULE),
        active,
        thresholds,
        curve_numbers,
        agreement,
        layout.confidence,
        layout.off_path,
        layout.accepted,
        layout.ends_text,
        layout.room,
        layout.begin,
        layout.end,
        layout.known,
    )
    entries = np.frombuffer(counted, _ENTRY)
    entries = entries[np.argsort(entries["group"], kind="stable")]
    entries["kind"] = _KIND_NUMBERS[entries["kind"]]
    return entries


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TraceLayout:
    """A trace in columns."""

    is_self_draft: bool
    exit_layers: tuple[int, ...]
    confidence: NDArray[np.float32]  # [E, C]
    off_path: NDArray[np.float32] | None  # [E, C]; confidences off the path; None: those on the path are used
    accepted: Bools  # [E, C]
    ends_text: Bools  # [E, C]; whether the exit drafts an end-of-text token
    room: NDArray[np.int32]  # [C]; most tokens of a block that begins here: one fewer than may still be emitted
    begin: Counts  # [M]; first column of each prompt
    end: Counts  # [M]; first column past each prompt's text
    known: Counts  # [M]; tokens known before each prompt's first column

    @property
    def num_columns(self) -> int:
        """C."""
        return len(self.room)


@lru_cache(maxsize=4)
def lay_out(trace: Trace, longest: int) -> TraceLayout:
    """The trace in columns, with padding for blocks of up to `longest` tokens."""
    header = trace.header
    positions = np.array([prompt.num_positions for prompt in header.prompts])
    longest = min(longest, header.max_new_tokens)
    width = positions + np.clip(header.max_new_tokens - positions + 1, 2, longest + 2)
    begin = np.cumsum(width) - width
    prompt = np.repeat(np.arange(len(positions)), width)
    step = np.arange(len(prompt)) - begin[prompt]  # [C]; tokens emitted before the column's own
    is_text = step < positions[prompt]
    row = (np.cumsum(positions) - positions)[prompt] + np.minimum(step, positions[prompt] - 1)
    accepted = np.ascontiguousarray(trace.accepted.T)  # [E, P]
    off_path = off_path_confidence(trace.confidence, trace.off_path)
    return TraceLayout(
        is_self_draft=header.draft_kind == "self",
        exit_layers=header.exit_layers,
        confidence=np.ascontiguousarray(trace.confidence[row].T),
        off_path=None if off_path is None else np.ascontiguousarray(off_path[row].T),
        accepted=accepted.take(row, axis=1) & is_text,
        ends_text=_ends_text(trace, accepted).take(row, axis=1) & is_text,
        room=np.where(is_text, header.max_new_tokens - 1 - step, 0).clip(0, longest).astype(np.int32),
        begin=begin,
        end=begin + positions,
        known=np.array([prompt.prompt_tokens for prompt in header.prompts]),
    )


def _ends_text(trace: Trace, accepted: Bools) -> Bools:
    """Whether each exit drafts an end-of-text token. An accepted token is the target's; a rejected one never is. [E, P]."""
    eos = trace.header.eos_token_id
    if eos is None:
        return np.zeros_like(accepted)
    is_truth = trace.target_token == eos
    is_drafted = np.ascontiguousarray((trace.draft_token == eos).T)
    ends: Bools = (accepted & is_truth) | (~accepted & is_drafted & ~is_truth)
    return ends


def _padded_length(policies: Sequence[Policy | None]) -> int:
    longest = max((policy.tokens for policy in policies if policy), default=1)
    return -(-longest // _LENGTH_STEP) * _LENGTH_STEP


def _exit_settings(policy: Policy | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return (policy.exits, policy.thresholds) if policy else ((), ())


def _rule(first_group: int, policy: Policy | None) -> dict[str, float]:
    """The fields of a row of `_RULE`; plain decoding has no active exit. A floor of 0 never stops a block."""
    stop = policy.stop if policy else None
    return {
        "first_group": first_group,
        "num_active": len(policy.exits) if policy else 0,
        "first_cap": policy.first_cap if policy else 0,
        "cap": policy.tokens if policy else 0,
        "adapts": isinstance(stop, HeuristicLength),
        "runs_ahead": policy.runs_ahead if policy else False,
        "catches_up_at_once": policy.catches_up_at_once if policy else False,
        "drops_token": isinstance(stop, ConfidenceFloor) and not stop.keeps_token,
        "confidence_floor": stop.floor if isinstance(stop, ConfidenceFloor) else 0.0,
        "survival_floor": stop.floor if isinstance(stop, SurvivalFloor) else 0.0,
    }


def _active_exits(layout: TraceLayout, policies: Sequence[Policy | None]) -> tuple[Counts, Floats]:
    """Zero-based active exits of each policy, and their thresholds; the first of each row are in use. [Q, E] each."""
    active = np.zeros((len(policies), len(layout.exit_layers)), np.int64)
    thresholds = np.zeros(active.shape)
    for row, policy in enumerate(policies):
        if policy is not None:
            active[row, : len(policy.exits)] = [layout.exit_layers.index(layer) for layer in policy.exits]
            thresholds[row, : len(policy.thresholds)] = policy.thresholds
    return active, thresholds


def _curves(layout: TraceLayout, policies: Sequence[Policy | None]) -> tuple[Counts, Floats]:
    """Calibration curves of survival floors: their number by policy and active exit, [Q, E]; agreement by curve, [A, S, C]."""
    numbers: dict[tuple[int, CalibrationCurve], int] = {}
    by_policy = np.zeros((len(policies), len(layout.exit_layers)), np.int64)
    for row, policy in enumerate(policies):
        if policy and isinstance(policy.stop, SurvivalFloor):
            exit_ids = map(layout.exit_layers.index, policy.exits)
            for active_index, exit_and_curve in enumerate(zip(exit_ids, policy.stop.calibration, strict=True)):
                by_policy[row, active_index] = numbers.setdefault(exit_and_curve, len(numbers))
    num_sides = 1 if layout.off_path is None else 2
    agreement = np.empty((len(numbers), num_sides, layout.num_columns))
    for number, (exit_id, curve) in enumerate(numbers):
        agreement[number] = _agreement(layout, exit_id, curve)
    return by_policy, agreement


@lru_cache(maxsize=64)
def _agreement(layout: TraceLayout, exit_id: int, curve: CalibrationCurve) -> Floats:
    """The curve at every confidence of an exit. [S, C]."""
    sides = [layout.confidence] if layout.off_path is None else [layout.confidence, layout.off_path]
    return np.stack([agreement_at(curve, side[exit_id].astype(np.float64)) for side in sides])
