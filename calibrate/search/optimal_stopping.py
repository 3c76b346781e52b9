"""Policies without a free threshold: what calibrated confidence and known costs imply.

A block that survives with chance S gains S a tokens by a further token that agrees with chance a, and goes on at S a. Every
segment, exit check and verified row takes seconds, and a second is worth as many tokens as the policy emits in one. So the
value of a block that goes on is V(S) = max(0, E[max over exits of S a + V(S a) - rate x seconds]), where a token leaves an exit
as soon as what deeper ones say, in the mean, is not worth their seconds. It is solved by iteration, on bins of every exit's
confidence. Drafting stops where V is 0: a threshold on survival, which is the optimal form (SpecDec++, arXiv 2405.19715,
Theorem 1). What an exit's threshold should be falls with S; as a policy has one for all S, it is taken at several.

Letters: S survivals on a grid, B bins of an exit's confidence, L exits that are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from calibrate.search.scenario import Scenario
from perfmodel.core.units import Floats
from perfmodel.core.units import Seconds, Tokens, TokensPerS
from perfmodel.policies.policy import CalibrationCurve, Policy, SurvivalFloor

NUM_BINS = 16
MIN_SURVIVAL = 0.02
SURVIVALS: Floats = np.geomspace(MIN_SURVIVAL, 1, 60)
"""Evenly spaced in their logarithm."""
THRESHOLDS_AT = (1.0, 0.8, 0.6)
"""Survivals at which thresholds are taken: of a block's first tokens, where most decisions fall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of a drafted token, at the mean context of a scenario."""

    segment_s: tuple[Seconds, ...]
    exit_s: tuple[Seconds, ...]
    row_s: Seconds
    """One more row of a verification, and what it brings for the host."""
    longest: Tokens
    """The most tokens of a round that has a price."""

    def down_to(self, exit_id: int, above: int = -1) -> Seconds:
        """From below one exit, zero-based, to the answer of a deeper one."""
        return sum(self.segment_s[above + 1 : exit_id + 1]) + self.exit_s[exit_id]


def costs_of(scenario: Scenario) -> Costs:
    """Of warm passes; infinite where a pass has no price."""

    def round_s(drafted: Tokens) -> Seconds:
        return scenario.pass_s("verify", 0, drafted + 1) + scenario.pass_s("round", 0, drafted)

    stages = range(len(scenario.trace.header.draft.exit_layers))
    priced = [length for length in range(2, MAX_DRAFT_TOKENS + 1) if math.isfinite(round_s(length))]
    return Costs(
        segment_s=tuple(scenario.pass_s("segment", stage, 1) for stage in stages),
        exit_s=tuple(scenario.pass_s("exit", stage, 1) for stage in stages),
        row_s=(round_s(priced[-1]) - round_s(1)) / (priced[-1] - 1) if priced else math.inf,
        longest=priced[-1] if priced else 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Exit:
    """One looked-at exit by bins of its confidence."""

    edges: Floats  # [B - 1]
    share: Floats  # [B]; of all positions
    agreement: Floats  # [B]
    leads_to: Floats | None  # [B, B]; share of each bin that falls into each bin of the next exit; None of the last one
    further_s: Seconds
    """To the next exit's answer; for the last one 0."""


def derive(
    scenario: Scenario, costs: Costs, exit_layers: Sequence[int], curves: Sequence[CalibrationCurve], rate: TokensPerS
) -> Iterator[Policy]:
    """The policies over some exits that a rate implies.

    None where a pass they need has no price, where no token is worth drafting, or where a threshold would let every token
    leave, or none: fewer exits say the same.

    Args:
        scenario: where they are to run.
        costs: of its passes.
        exit_layers: the exits to look at.
        curves: agreement by confidence of each.
        rate: tokens per second that can be had.
    """
    header = scenario.trace.header
    exits = [header.draft.exit_layers.index(layer) for layer in exit_layers]
    token_s = costs.down_to(exits[0]) + costs.row_s
    if not np.isfinite(costs.down_to(exits[-1]) + token_s):
        return
    bins = _exits(scenario, costs, exits)
    value = _value(bins, rate, token_s)
    if not value.any():
        return
    floor = float(SURVIVALS[np.argmax(value > 0)])
    rule = SurvivalFloor(floor=floor, calibration=tuple(curves))
    places = [int(np.abs(SURVIVALS - survival).argmin()) for survival in THRESHOLDS_AT]
    for thresholds in dict.fromkeys(tuple(_thresholds(bins, value, rate, place)) for place in places):
        if all(0 < threshold < 1 for threshold in thresholds):
            yield Policy(
                exits=tuple(exit_layers), thresholds=thresholds, tokens=costs.longest, stop=rule, confidence=header.confidence
            )


def _exits(scenario: Scenario, costs: Costs, exits: Sequence[int]) -> list[_Exit]:
    confidence, agreement = scenario.trace.confidence[:, exits], scenario.trace.accept_prob[:, exits]
    edges = _even_edges(confidence)
    bins = [np.searchsorted(edge, column, side="right") for edge, column in zip(edges, confidence.T, strict=True)]
    found = []
    for number, here in enumerate(bins):
        size = np.bincount(here, minlength=NUM_BINS)
        some = np.maximum(size, 1)
        is_last = number == len(exits) - 1
        pairs = None if is_last else np.bincount(here * NUM_BINS + bins[number + 1], minlength=NUM_BINS**2)
        found.append(
            _Exit(
                edges=edges[number],
                share=size / len(here),
                agreement=np.bincount(here, agreement[:, number], minlength=NUM_BINS) / some,
                leads_to=None if pairs is None else pairs.reshape(NUM_BINS, NUM_BINS) / some[:, None],
                further_s=0.0 if is_last else costs.down_to(exits[number + 1], exits[number]),
            )
        )
    return found


def _even_edges(confidence: NDArray[np.floating]) -> Floats:
    """Between neighbours, so that rounding cannot flip a decision: [P, L] -> [L, B - 1]."""
    ordered = np.sort(confidence.astype(np.float64), axis=0)
    places = np.arange(1, NUM_BINS) * len(ordered) // NUM_BINS
    edges: Floats = (ordered[np.maximum(places - 1, 0)] + ordered[places]).T / 2
    return edges


def _value(exits: Sequence[_Exit], rate: TokensPerS, token_s: Seconds) -> Floats:
    """What a block that goes on is worth, in tokens. [S]."""
    value = np.zeros(len(SURVIVALS))
    for _ in range(MAX_DRAFT_TOKENS):
        first = _gains(exits, value, rate)[0]
        value = np.maximum(first @ exits[0].share - rate * token_s, 0)
    return value


def _gains(exits: Sequence[_Exit], value: Floats, rate: TokensPerS) -> list[Floats]:
    """Tokens that the best choice from each exit on gains, by survival and bin. [S, B] each."""
    gains: list[Floats] = []
    for one in reversed(exits):
        leaving = _leaving(one, value)
        gains.append(leaving if one.leads_to is None else np.maximum(leaving, _going_on(one, gains[-1], rate)))
    return gains[::-1]


def _leaving(one: _Exit, value: Floats) -> Floats:
    survival = np.outer(SURVIVALS, one.agreement)
    on_grid = np.log(np.maximum(survival, MIN_SURVIVAL))
    return survival + np.interp(on_grid, np.log(SURVIVALS), value) * (survival >= MIN_SURVIVAL)


def _going_on(one: _Exit, deeper: Floats, rate: TokensPerS) -> Floats:
    assert one.leads_to is not None
    gain: Floats = deeper @ one.leads_to.T - rate * one.further_s
    return gain


def _thresholds(exits: Sequence[_Exit], value: Floats, rate: TokensPerS, place: int) -> Iterator[float]:
    """By exit but the last, the edge above which leaving, and below which going on, gains most in all at one survival."""
    gains = _gains(exits, value, rate)
    for one, deeper in zip(exits[:-1], gains[1:], strict=True):
        leaving, going_on = _leaving(one, value)[place] * one.share, _going_on(one, deeper, rate)[place] * one.share
        kept = np.append(0.0, np.cumsum(going_on)) + np.append(np.cumsum(leaving[::-1])[::-1], 0.0)  # [B + 1]
        yield float([0.0, *one.edges, 1.0][int(kept.argmax())])
