"""The block that would start at each column: policies that look at the same exits, many at a time.

Letters: Q policies, F of which have a floor, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from perfmodel.calibration import agreement_at
from perfmodel.errors import BadPolicy
from perfmodel.policy import CalibrationCurve, ExitPolicy, FloorStop, LengthRule, SurvivalStop
from perfmodel.tape import Bools, Floats, Lengths, Tape, run_lengths

Agreement: TypeAlias = Callable[[int, CalibrationCurve], Floats]
"""(zero-based exit, its curve) -> calibrated confidence at every column. [C]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """What policies that look at the same exits do at every column."""

    looked: tuple[int, ...]
    """Zero-based exits that are looked at; none in plain decoding."""
    comes: tuple[Bools, ...]
    """By looked-at exit but the first: the tokens that left at none before it. Each [Q, C]."""
    drafted: Lengths  # [Q, C]; tokens of a block that starts here, under the rule's largest cap
    right: Lengths  # [Q, C]; tokens from here on before the first that would be refused


def no_blocks(tape: Tape, num_policies: int) -> Blocks:
    """Plain decoding: rounds that draft nothing."""
    nothing = np.zeros((num_policies, tape.num_columns), tape.room.dtype)
    return Blocks(looked=(), comes=(), drafted=nothing, right=nothing)


def draft_blocks(tape: Tape, policies: Sequence[ExitPolicy], agreement: Agreement) -> Blocks:
    """The blocks of policies.

    Args:
        tape: the trace.
        policies: what to draft, all looking at the same exits. [Q].
        agreement: see `agreement_on`.

    Raises:
        BadPolicy: a policy looks at an exit that the traced draft does not have, or at another confidence.
    """
    looked = _looked_exits(tape, policies)
    thresholds = [policy.thresholds for policy in policies]
    different = list(dict.fromkeys(thresholds))
    row = np.array([different.index(cuts) for cuts in thresholds])
    cuts_by_exit = zip(*different, strict=True)
    leaves = [tape.confidence[exit_id] >= _upright(cuts) for exit_id, cuts in zip(looked, cuts_by_exit, strict=False)]
    accepted = _pick(leaves, [tape.accepted[exit_id] for exit_id in looked])
    longest = min(max(policy.length.draft_cap for policy in policies), tape.longest)
    right = run_lengths(accepted.ravel(), longest).reshape(len(different), -1)
    by_policy = [here[row] for here in leaves]
    return Blocks(
        looked=looked,
        comes=tuple(_comes(by_policy)),
        drafted=_drafted(tape, policies, looked, by_policy, agreement),
        right=right[row],
    )


def _looked_exits(tape: Tape, policies: Sequence[ExitPolicy]) -> tuple[int, ...]:
    unknown = [layer for layer in policies[0].exit_layers if layer not in tape.exit_layers]
    if unknown:
        raise BadPolicy(f"exit {unknown[0]} is none of the traced draft's", f"exits among {tape.exit_layers!r}")
    for policy in policies:
        if policy.confidence != tape.confidence_kind:
            raise BadPolicy(f"confidence {policy.confidence!r}", f"{tape.confidence_kind!r}, which the trace holds")
    return tuple(tape.exit_layers.index(layer) for layer in policies[0].exit_layers)


def _upright(numbers: Sequence[float]) -> Floats:
    return np.array(numbers)[:, None]


def _pick(leaves: Sequence[Bools], of_exit: Sequence[Bools]) -> Bools:
    """From one array per looked-at exit, what is said by the exit at which each column's token leaves.

    In logic, and for floats in `_surviving` in arithmetic: `np.where` takes a branch per column, ten times slower.
    """
    picked = of_exit[-1]
    for here, said in zip(leaves[::-1], of_exit[-2::-1], strict=True):
        picked = (here & said) | (~here & picked)
    return picked


def _comes(leaves: Sequence[Bools]) -> Iterator[Bools]:
    """The tokens that left at none of the exits so far, exit by exit."""
    stays: Bools | None = None
    for here in leaves:
        stays = ~here if stays is None else stays & ~here
        yield stays


def _drafted(
    tape: Tape, policies: Sequence[ExitPolicy], looked: Sequence[int], leaves: Sequence[Bools], agreement: Agreement
) -> Lengths:
    """Tokens of a block that starts at each column. [Q, C]."""
    rules = [policy.length for policy in policies]
    caps = np.array([[min(rule.draft_cap, tape.longest)] for rule in rules], tape.room.dtype)
    drafted: Lengths = np.minimum(tape.room, caps)
    places, stops = _stops(tape, rules, looked, leaves)
    if places:
        until = run_lengths(~stops.ravel(), int(caps.max())).reshape(stops.shape)
        until += 1  # the token that stops a block is its last
        drafted[places] = np.minimum(drafted[places], until)
    for place, rule in enumerate(rules):
        if isinstance(rule, SurvivalStop):
            calibrated = [agreement(exit_id, curve) for exit_id, curve in zip(looked, rule.calibration, strict=True)]
            surviving = _surviving([here[place] for here in leaves], calibrated, rule, tape.longest)
            np.minimum(drafted[place], surviving, out=drafted[place])
    return drafted


def _stops(tape: Tape, rules: Sequence[LengthRule], looked: Sequence[int], leaves: Sequence[Bools]) -> tuple[list[int], Bools]:
    """The policies whose blocks a token may stop, by what it is or by its confidence, and the tokens that do. [F, C]."""
    floors = {place: rule.floor for place, rule in enumerate(rules) if isinstance(rule, FloorStop)}
    is_low = [tape.confidence[exit_id] < _upright(list(floors.values())) for exit_id in looked]
    low = _pick([here[list(floors)] for here in leaves], is_low)
    if not tape.may_end:
        return list(floors), low
    ends = np.array(
        np.broadcast_to(_pick(leaves, [tape.ends_text[exit_id] for exit_id in looked]), (len(rules), tape.num_columns))
    )
    ends[list(floors)] |= low
    return list(range(len(rules))), ends


def _surviving(leaves: Sequence[Bools], calibrated: Sequence[Floats], rule: SurvivalStop, longest: int) -> Lengths:
    """Tokens until the product of their agreements is below the floor: as no agreement exceeds 1, it stays below. [C]."""
    agreement = calibrated[-1]
    for here, said in zip(leaves[::-1], calibrated[-2::-1], strict=True):
        agreement = here * said + ~here * agreement
    product, length = agreement.copy(), np.ones(len(agreement), np.min_scalar_type(longest + 2))
    for step in range(1, min(rule.draft_cap, longest, len(agreement))):
        going = product >= rule.floor
        if not going.any():
            break
        length += going.view(np.uint8)
        product[:-step] *= agreement[step:]
    return length


def agreement_on(tape: Tape, exit_id: int, curve: CalibrationCurve) -> Floats:
    """The curve at every confidence of an exit. [C]."""
    return agreement_at(curve, tape.confidence[exit_id])
