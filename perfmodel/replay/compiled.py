"""The rounds that policies run along a trace and every pass in them, counted: Trace + policies -> entries.

`native/` counts them, those of a policy along ten thousand positions in about a tenth of a millisecond; where it was not
compiled, `perfmodel.replay.reference` says the same token by token. Here a trace and its policies become the arrays it reads.

Letters: Q policies, E exits, C columns, M prompts, N entries, A curves at some exit, S sides of a text's path.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from perfmodel.acceptance.confidence_curves import agreement_at
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import BadPolicy
from perfmodel.core.units import Floats
from perfmodel.policies.policy import CalibrationCurve, ConfidenceFloor, HeuristicLength, Policy, SurvivalFloor
from perfmodel.replay.counts import ENTRY, Entries
from perfmodel.replay.layout import Counts, TraceLayout, lay_out
from perfmodel.replay.reference import tell

try:
    from perfmodel.replay import _native
except ImportError:  # no C compiler was there when s2d was installed
    _native = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

RULE = np.dtype(
    [
        *((name, np.int64) for name in ("first_group", "num_looked", "start", "cap", "adapts", "stop")),
        *((name, np.int64) for name in ("runs_ahead", "catches_up_at_once")),
        ("floor", np.float64),
    ]
)
"""A policy, as `native/simulate.h` reads it."""
_STOPS = {ConfidenceFloor: 1, SurvivalFloor: 2}
_LONGEST_STEP = 16


def count_replay(trace: Trace, policies: Sequence[Policy | None], *, by_prompt: bool, keep_blocks: bool = False) -> Entries:
    """What each policy does: a group for each, or one for each of its prompts, policy after policy.

    Args:
        trace: what the exits say.
        policies: None is plain decoding.
        by_prompt: groups are of one prompt each.
        keep_blocks: every round is told by itself too, in its order.

    Raises:
        BadPolicy: a policy looks at an exit that the traced draft does not have, or at another confidence.
    """
    for policy in filter(None, policies):
        _check(trace, policy)
    if _native is None:
        _warn()
        return np.array(list(tell(trace, policies, by_prompt=by_prompt, keep_blocks=keep_blocks)), ENTRY)
    tape = _layout_for(trace, policies)
    order = sorted(range(len(policies)), key=lambda place: _gates(policies[place]))  # whose gates are alike share work
    ordered = [policies[place] for place in order]
    first_group = np.array(order, np.int64) * (len(trace.header.prompts) if by_prompt else 1)
    rules = np.array([_rule(*one) for one in zip(first_group, ordered, strict=True)], RULE)
    counted = _native.run(
        tape.is_self_draft,
        by_prompt,
        keep_blocks,
        rules,
        *_looked_exits(tape, ordered),
        *_curves(tape, ordered),
        tape.confidence,
        tape.off_path,
        tape.accepted,
        tape.ends_text,
        tape.room,
        tape.begin,
        tape.end,
        tape.known,
    )
    entries = np.frombuffer(counted, ENTRY)
    return entries[np.argsort(entries["group"], kind="stable")]


@cache
def _warn() -> None:
    log.warning(
        "replay was not compiled when s2d was installed, and takes hundreds of times as long; "
        "with a C compiler at hand, install s2d again"
    )


def _check(trace: Trace, policy: Policy) -> None:
    header = trace.header
    unknown = [layer for layer in policy.exits if layer not in header.draft.exit_layers]
    if unknown:
        raise BadPolicy(f"exit {unknown[0]} is none of the traced draft's", f"exits among {header.draft.exit_layers!r}")
    if policy.confidence != header.confidence:
        raise BadPolicy(f"confidence {policy.confidence!r}", f"{header.confidence!r}, which the trace holds")


def _layout_for(trace: Trace, policies: Sequence[Policy | None]) -> TraceLayout:
    """Laid out for blocks a little longer than needed, so that one layout serves many searches' steps."""
    longest = max((policy.tokens for policy in policies if policy), default=1)
    return lay_out(trace, -(-longest // _LONGEST_STEP) * _LONGEST_STEP)


def _gates(policy: Policy | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return (policy.exits, policy.thresholds) if policy else ((), ())


def _rule(first_group: int, policy: Policy | None) -> tuple[float, ...]:
    """A policy as a row of `RULE`, but for the exits it looks at."""
    if policy is None:
        return first_group, 0, 0, 0, False, 0, False, False, 0.0
    rule, num_looked = policy.stop, len(policy.exits)
    floor = rule.floor if isinstance(rule, ConfidenceFloor | SurvivalFloor) else 0.0
    length = policy.first_cap, policy.tokens, isinstance(rule, HeuristicLength), _STOPS.get(type(rule), 0)
    return first_group, num_looked, *length, policy.runs_ahead, policy.catches_up_at_once, floor


def _looked_exits(tape: TraceLayout, policies: Sequence[Policy | None]) -> tuple[Counts, Floats]:
    """The exits that policies look at, zero-based, and the thresholds there. [Q, E] each, the first of them in use."""
    looked = np.zeros((len(policies), len(tape.exit_layers)), np.int64)
    thresholds = np.zeros(looked.shape)
    for place, policy in enumerate(policies):
        if policy is not None:
            looked[place, : len(policy.exits)] = [tape.exit_layers.index(layer) for layer in policy.exits]
            thresholds[place, : len(policy.thresholds)] = policy.thresholds
    return looked, thresholds


def _curves(tape: TraceLayout, policies: Sequence[Policy | None]) -> tuple[Counts, Floats]:
    """The number of the curve that survival rules calibrate each looked-at exit by, [Q, E]; the curves, [A, S, C]."""
    numbers: dict[tuple[int, CalibrationCurve], int] = {}
    of_policy = np.zeros((len(policies), len(tape.exit_layers)), np.int64)
    for place, policy in enumerate(policies):
        if policy and isinstance(policy.stop, SurvivalFloor):
            exits = map(tape.exit_layers.index, policy.exits)
            for looked, one in enumerate(zip(exits, policy.stop.calibration, strict=True)):
                of_policy[place, looked] = numbers.setdefault(one, len(numbers))
    sides = 1 if tape.off_path is None else 2
    agreement = np.empty((len(numbers), sides, tape.num_columns))
    for number, (exit_id, curve) in enumerate(numbers):
        agreement[number] = _along(tape, exit_id, curve)
    return of_policy, agreement


@lru_cache(maxsize=64)
def _along(tape: TraceLayout, exit_id: int, curve: CalibrationCurve) -> Floats:
    """The curve at every confidence of an exit. [S, C]."""
    sides = [tape.confidence] if tape.off_path is None else [tape.confidence, tape.off_path]
    return np.stack([agreement_at(curve, side[exit_id].astype(np.float64)) for side in sides])
