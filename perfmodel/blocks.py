"""The block that would start at each column: policies that look at as many exits, many at a time.

Letters: Q policies, U different ladders of theirs, L exits that each looks at, E exits, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.calibration import agreement_at
from perfmodel.errors import BadPolicy
from perfmodel.passes import COLD_PLACES
from perfmodel.policy import CalibrationCurve, ExitPolicy, FloorStop, LengthRule, SurvivalStop
from perfmodel.tape import Bools, Counts, Floats, Lengths, Tape, run_lengths, small_integer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survival:
    """How a survival-product rule sees the columns."""

    agreement: Floats  # [C]; calibrated confidence with which the token leaves
    floor: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coming:
    """The tokens that come to a looked-at exit but the first: those that left at none before it."""

    flags: Bools  # [Q, C]
    until: tuple[Lengths, ...]  # columns from each one on before the next token that comes, the second, ...; P of [Q, C]
    since: Lengths  # [Q, C]; columns up to each one behind the last token that came


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Said:
    """What policies make of the columns, as the exits say them on the text's path or off it."""

    coming: tuple[Coming, ...]
    """By looked-at exit but the first."""
    drafted: Lengths  # [Q, C]; tokens of a block that starts here, under the rule's largest cap
    survival: dict[int, Survival]
    """Of the policies with such a rule, by their place."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """What policies that look at as many exits, and run their segments alike, do at every column."""

    looked: Counts  # [Q, L]; zero-based exits that are looked at; L is 0 in plain decoding
    runs_ahead: bool
    catches_up_at_once: bool
    right: Lengths  # [Q, C]; tokens from here on before the first that would be refused
    on_path: Said
    off_path: Said
    """The same where it is not told what is said there."""


def no_blocks(tape: Tape, num_policies: int) -> Blocks:
    """Plain decoding: rounds that draft nothing."""
    nothing = np.zeros((num_policies, tape.num_columns), tape.room.dtype)
    said = Said(coming=(), drafted=nothing, survival={})
    return Blocks(
        looked=np.zeros((num_policies, 0), np.int64),
        runs_ahead=False,
        catches_up_at_once=False,
        right=nothing,
        on_path=said,
        off_path=said,
    )


def draft_blocks(tape: Tape, policies: Sequence[ExitPolicy]) -> Blocks:
    """The blocks of policies that look at as many exits, and run their segments alike. [Q].

    Raises:
        BadPolicy: a policy looks at an exit that the traced draft does not have, or at another confidence.
    """
    ladders = _Ladders(tape, tape.confidence, policies)
    rules = [policy.length for policy in policies]
    on_path = _said(ladders, rules, tape.room)
    off_path = on_path
    if tape.off_path is not None:
        off_path = _said(_Ladders(tape, tape.off_path, policies), rules, np.full_like(tape.room, tape.longest))
    right = run_lengths(ladders.said(tape.accepted).ravel(), _longest(tape, rules)).reshape(ladders.shape)
    return Blocks(
        looked=ladders.looked.take(ladders.row, axis=0),
        runs_ahead=policies[0].runs_ahead,
        catches_up_at_once=policies[0].catches_up_at_once,
        right=right.take(ladders.row, axis=0),
        on_path=on_path,
        off_path=off_path,
    )


def _said(ladders: _Ladders, rules: Sequence[LengthRule], room: Lengths) -> Said:
    return Said(
        coming=tuple(_coming(flags, ladders, _longest(ladders.tape, rules)) for flags in ladders.comes()),
        drafted=_drafted(ladders, rules, room),
        survival={
            place: Survival(agreement=ladders.agreement(ladders.row[place], rule.calibration), floor=rule.floor)
            for place, rule in enumerate(rules)
            if isinstance(rule, SurvivalStop)
        },
    )


def _longest(tape: Tape, rules: Sequence[LengthRule]) -> int:
    """The most tokens of a block."""
    return min(max(rule.draft_cap for rule in rules), tape.longest)


def _coming(flags: Bools, ladders: _Ladders, longest: int) -> Coming:
    comes = flags.ravel()
    by_ladder: list[NDArray[Any]] = [comes, run_lengths(~comes, longest, back=True), *_until(comes, longest)]
    comes, since, *until = (of.reshape(flags.shape).take(ladders.row, axis=0) for of in by_ladder)
    return Coming(flags=comes, until=tuple(until), since=since)


def _until(comes: Bools, longest: int) -> list[Lengths]:
    """See `Coming`, told up to one more than `longest`, so that sums of two do not overflow. P of [Q * C]."""
    past = np.full(len(comes), longest + 1, small_integer(2 * longest))  # a number in its place takes several times as long
    until = [np.minimum(run_lengths(~comes, longest), past)]
    while len(until) < COLD_PLACES:
        further = np.zeros_like(until[0])  # columns from the next token that comes to the one wanted
        np.add(until[-1][1:], 1, out=further[:-1])
        further *= comes
        reach = 1
        while reach <= longest:
            further[:-reach] += further[reach:] * (further[:-reach] == 0)
            reach *= 2
        until.append(np.minimum(until[0] + further, past))
    return until


class _Ladders:
    """At which exit each column's token leaves, for every different choice of exits and thresholds among policies."""

    def __init__(self, tape: Tape, confidence: Floats, policies: Sequence[ExitPolicy]) -> None:
        choices = [(_looked_exits(tape, policy), policy.thresholds) for policy in policies]
        different = list(dict.fromkeys(choices))
        self.tape, self.confidence = tape, confidence  # the second on the text's path or off it
        self.row = np.array([different.index(choice) for choice in choices])  # [Q]; of U
        self.looked = np.array([looked for looked, _ in different])  # [U, L]
        self.shape = len(different), tape.num_columns
        self.leaves = [  # by looked-at exit but the last: tokens that are confident enough; [U, C] each
            _each(self.shape, [confidence[looked[place]] >= cuts[place] for looked, cuts in different])
            for place in range(self.looked.shape[1] - 1)
        ]
        self.agreement = cache(self._agreement)

    def said(self, of_exit: Bools) -> Bools:
        """What the exit says at which each column's token leaves, from what every exit says: [E, C] -> [U, C]."""
        return _pick(self.leaves, [of_exit.take(exits, axis=0) for exits in self.looked.T])

    def comes(self) -> Iterator[Bools]:
        """The tokens that left at none of the exits so far, exit by exit. [U, C] each."""
        stays: Bools | None = None
        for here in self.leaves:
            stays = ~here if stays is None else stays & ~here
            yield stays

    def unsure(self, row: int, floor: float) -> Bools:
        """Tokens of one ladder that leave with a confidence below a floor. [C]."""
        return _pick([here[row] for here in self.leaves], [self.confidence[exit_id] < floor for exit_id in self.looked[row]])

    def _agreement(self, row: int, curves: tuple[CalibrationCurve, ...]) -> Floats:
        """Calibrated confidence with which the tokens of one ladder leave. [C]."""
        is_off_path = self.confidence is self.tape.off_path
        exits = zip(self.looked[row].tolist(), curves, strict=True)
        calibrated = [_calibrated(self.tape, is_off_path, exit_id, curve) for exit_id, curve in exits]
        agreement = calibrated[-1]
        for here, said in zip(self.leaves[::-1], calibrated[-2::-1], strict=True):
            agreement = here[row] * said + ~here[row] * agreement
        return agreement


def _looked_exits(tape: Tape, policy: ExitPolicy) -> tuple[int, ...]:
    unknown = [layer for layer in policy.exit_layers if layer not in tape.exit_layers]
    if unknown:
        raise BadPolicy(f"exit {unknown[0]} is none of the traced draft's", f"exits among {tape.exit_layers!r}")
    if policy.confidence != tape.confidence_kind:
        raise BadPolicy(f"confidence {policy.confidence!r}", f"{tape.confidence_kind!r}, which the trace holds")
    return tuple(map(tape.exit_layers.index, policy.exit_layers))


def _each(shape: tuple[int, int], rows: Sequence[Bools]) -> Bools:
    return np.concatenate(rows).reshape(shape)


def _pick(leaves: Sequence[Bools], of_exit: Sequence[Bools]) -> Bools:
    """From one array per looked-at exit, what is said by the exit at which each column's token leaves.

    In logic, and for floats in `_Ladders.agreement` in arithmetic: `np.where` takes a branch per column, ten times slower.
    """
    picked = of_exit[-1]
    for here, said in zip(leaves[::-1], of_exit[-2::-1], strict=True):
        picked = (here & said) | (~here & picked)
    return picked


@lru_cache(maxsize=64)
def _calibrated(tape: Tape, is_off_path: bool, exit_id: int, curve: CalibrationCurve) -> Floats:
    """The curve at every confidence of an exit. [C]."""
    confidence = tape.off_path if is_off_path else tape.confidence
    assert confidence is not None
    return agreement_at(curve, confidence[exit_id])


def _drafted(ladders: _Ladders, rules: Sequence[LengthRule], room: Lengths) -> Lengths:
    """Tokens of a block that starts at each column, where no more than some have room. [Q, C]."""
    tape, row = ladders.tape, ladders.row
    caps = np.array([[min(rule.draft_cap, tape.longest)] for rule in rules], tape.room.dtype)
    longest = int(caps.max())
    drafted: Lengths = np.empty((len(rules), tape.num_columns), tape.room.dtype)
    drafted[:] = caps  # the smaller of whole rows: a number beside a row takes seven times as long
    np.minimum(drafted, room, out=drafted)
    if tape.may_end:
        until = _up_to(ladders.said(tape.ends_text), longest)
        np.minimum(drafted, until.take(row, axis=0), out=drafted)
    floors = {place: rule.floor for place, rule in enumerate(rules) if isinstance(rule, FloorStop)}
    if floors:
        unsure = [ladders.unsure(row[place], floor) for place, floor in floors.items()]
        drafted[list(floors)] = np.minimum(
            drafted[list(floors)], _up_to(_each((len(floors), tape.num_columns), unsure), longest)
        )
    alike: dict[tuple[int, tuple[CalibrationCurve, ...]], dict[int, SurvivalStop]] = defaultdict(dict)
    for place, rule in enumerate(rules):
        if isinstance(rule, SurvivalStop):
            alike[row[place], rule.calibration][place] = rule
    for (ladder, curves), stops in alike.items():
        surviving = _surviving(ladders.agreement(ladder, curves), list(stops.values()), tape.longest)
        drafted[list(stops)] = np.minimum(drafted[list(stops)], surviving)
    return drafted


def _up_to(stops: Bools, longest: int) -> Lengths:
    """Tokens from each column on up to one that stops a block, which is its last. [any, C]."""
    until = run_lengths(~stops.ravel(), longest).reshape(stops.shape)
    until += 1
    return until


def _surviving(agreement: Floats, rules: Sequence[SurvivalStop], longest: int) -> Lengths:
    """Tokens until the product of their agreements is below each rule's floor: none exceeds 1, so it stays below. [any, C]."""
    floors = np.array([[rule.floor] for rule in rules])
    product, length = agreement.copy(), np.ones((len(rules), len(agreement)), small_integer(longest))
    for step in range(1, min(max(rule.draft_cap for rule in rules), longest, len(agreement))):
        going = product >= floors
        if not going.any():
            break
        length += going.view(np.uint8)
        product[:-step] *= agreement[step:]
    return length
