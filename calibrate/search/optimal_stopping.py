"""Policies from calibrated confidences and pass times alone, by value iteration.

They have no free thresholds. The state is the survival S: the probability that the target accepts the whole block so far. One
more token that agrees with probability a adds S a tokens and leaves the survival S a. Every segment, exit check and verified
row takes seconds; a second is worth `rate` tokens, the policy's own tokens per second. The value of continuing a block is

    V(S) = max(0, E[max over exits of (S a + V(S a) - rate x seconds)])

A token leaves an exit when the expected gain from the deeper exits is not worth their seconds. The expectation is over bins
of every exit's confidence. Drafting stops where V is 0. That is a floor on survival, the optimal form of a stop rule
(SpecDec++, arXiv 2405.19715, Theorem 1). The best threshold of an exit falls with S. A policy has one threshold for all S, so
thresholds are computed at several values of S.

Letters: S survivals on a grid, B bins of an exit's confidence, L active exits, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from calibrate.search.scenario import Scenario
from perfmodel.core.units import Floats, Seconds, Tokens, TokensPerS
from perfmodel.policies.policy import CalibrationCurve, Policy, SurvivalFloor

NUM_BINS = 16
MIN_SURVIVAL = 0.02
SURVIVALS: Floats = np.geomspace(MIN_SURVIVAL, 1, 60)
"""The grid of survivals, with a constant ratio between neighbours."""
THRESHOLDS_AT = (1.0, 0.8, 0.6)
"""Survivals at which thresholds are computed: those of a block's first tokens, where most decisions are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCosts:
    """Seconds that one drafted token costs, at the mean context of a scenario."""

    segment_s: tuple[Seconds, ...]
    exit_s: tuple[Seconds, ...]
    row_s: Seconds
    """One more verified row, and its share of the host's bookkeeping."""
    max_tokens: Tokens
    """Longest draft whose round has evidence for all its passes."""

    def down_to(self, exit_id: int, above: int = -1) -> Seconds:
        """Seconds from below an exit (zero-based; -1 for the embedding) to the answer of a deeper exit."""
        return sum(self.segment_s[above + 1 : exit_id + 1]) + self.exit_s[exit_id]


def token_costs(scenario: Scenario) -> TokenCosts:
    """Costs of warm passes; infinity where there is no evidence."""

    def round_s(drafted: Tokens) -> Seconds:
        return scenario.pass_s("verify", 0, drafted + 1) + scenario.pass_s("round", 0, drafted)

    stages = range(len(scenario.trace.header.exit_layers))
    priced = [length for length in range(2, MAX_DRAFT_TOKENS + 1) if math.isfinite(round_s(length))]
    return TokenCosts(
        segment_s=tuple(scenario.pass_s("segment", stage, 1) for stage in stages),
        exit_s=tuple(scenario.pass_s("exit", stage, 1) for stage in stages),
        row_s=(round_s(priced[-1]) - round_s(1)) / (priced[-1] - 1) if priced else math.inf,
        max_tokens=priced[-1] if priced else 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ExitBins:
    """One active exit, by bins of its confidence."""

    edges: Floats  # [B - 1]
    share: Floats  # [B]; of all positions
    agreement: Floats  # [B]
    transition: Floats | None  # [B, B]; share of each bin that falls into each bin of the next exit; None for the last exit
    to_next_s: Seconds
    """Seconds to the next exit's answer; 0 for the last exit."""


def optimal_policies(
    scenario: Scenario, costs: TokenCosts, exits: Sequence[int], curves: Sequence[CalibrationCurve], rate: TokensPerS
) -> Iterator[Policy]:
    """Policies over some exits that are optimal at a rate.

    There is none where a pass has no evidence, where no token is worth drafting, or where a threshold would let every token
    leave, or none: fewer active exits then give the same policy.

    Args:
        scenario: where the policies run.
        costs: `token_costs` of the scenario.
        exits: layer counts of the active exits.
        curves: agreement by confidence, for each active exit.
        rate: tokens per second that decoding reaches.
    """
    header = scenario.trace.header
    exit_ids = [header.exit_layers.index(layer) for layer in exits]
    token_s = costs.down_to(exit_ids[0]) + costs.row_s
    if not np.isfinite(costs.down_to(exit_ids[-1]) + token_s):
        return
    bins = _exit_bins(scenario, costs, exit_ids)
    value = _continuation_value(bins, rate, token_s)
    if not value.any():
        return
    stop = SurvivalFloor(floor=float(SURVIVALS[np.argmax(value > 0)]), calibration=tuple(curves))
    survival_ids = [int(np.abs(SURVIVALS - survival).argmin()) for survival in THRESHOLDS_AT]
    for thresholds in dict.fromkeys(tuple(_thresholds(bins, value, rate, survival_id)) for survival_id in survival_ids):
        if all(0 < threshold < 1 for threshold in thresholds):
            yield Policy(
                exits=tuple(exits), thresholds=thresholds, tokens=costs.max_tokens, stop=stop, confidence=header.confidence
            )


def _exit_bins(scenario: Scenario, costs: TokenCosts, exit_ids: Sequence[int]) -> list[_ExitBins]:
    confidence, agreement = scenario.trace.confidence[:, exit_ids], scenario.trace.accept_prob[:, exit_ids]
    edges = _even_edges(confidence)
    bins = [np.searchsorted(edge, column, side="right") for edge, column in zip(edges, confidence.T, strict=True)]
    exits = []
    for number, bin_ids in enumerate(bins):
        count = np.bincount(bin_ids, minlength=NUM_BINS)
        divisor = np.maximum(count, 1)
        is_last = number == len(exit_ids) - 1
        pairs = None if is_last else np.bincount(bin_ids * NUM_BINS + bins[number + 1], minlength=NUM_BINS**2)
        exits.append(
            _ExitBins(
                edges=edges[number],
                share=count / len(bin_ids),
                agreement=np.bincount(bin_ids, agreement[:, number], minlength=NUM_BINS) / divisor,
                transition=None if pairs is None else pairs.reshape(NUM_BINS, NUM_BINS) / divisor[:, None],
                to_next_s=0.0 if is_last else costs.down_to(exit_ids[number + 1], exit_ids[number]),
            )
        )
    return exits


def _even_edges(confidence: NDArray[np.floating]) -> Floats:
    """Edges of bins of equal mass, midway between neighbouring confidences: [P, L] -> [L, B - 1]."""
    ordered = np.sort(confidence.astype(np.float64), axis=0)
    ranks = np.arange(1, NUM_BINS) * len(ordered) // NUM_BINS
    edges: Floats = (ordered[np.maximum(ranks - 1, 0)] + ordered[ranks]).T / 2
    return edges


def _continuation_value(exits: Sequence[_ExitBins], rate: TokensPerS, token_s: Seconds) -> Floats:
    """V(S): expected tokens gained by continuing a block. [S]."""
    value = np.zeros(len(SURVIVALS))
    for _ in range(MAX_DRAFT_TOKENS):
        first = _gains(exits, value, rate)[0]
        value = np.maximum(first @ exits[0].share - rate * token_s, 0)
    return value


def _gains(exits: Sequence[_ExitBins], value: Floats, rate: TokensPerS) -> list[Floats]:
    """Expected tokens gained by the best choice from each exit on, by survival and bin. [S, B] each."""
    gains: list[Floats] = []
    for bins in reversed(exits):
        leaving = _leaving_gain(bins, value)
        gains.append(leaving if bins.transition is None else np.maximum(leaving, _continuing_gain(bins, gains[-1], rate)))
    return gains[::-1]


def _leaving_gain(bins: _ExitBins, value: Floats) -> Floats:
    survival = np.outer(SURVIVALS, bins.agreement)
    on_grid = np.log(np.maximum(survival, MIN_SURVIVAL))
    return survival + np.interp(on_grid, np.log(SURVIVALS), value) * (survival >= MIN_SURVIVAL)


def _continuing_gain(bins: _ExitBins, deeper: Floats, rate: TokensPerS) -> Floats:
    assert bins.transition is not None
    gain: Floats = deeper @ bins.transition.T - rate * bins.to_next_s
    return gain


def _thresholds(exits: Sequence[_ExitBins], value: Floats, rate: TokensPerS, survival_id: int) -> Iterator[float]:
    """The best threshold of each exit but the last, at one survival: tokens leave in the bins above it."""
    gains = _gains(exits, value, rate)
    for bins, deeper in zip(exits[:-1], gains[1:], strict=True):
        leaving = _leaving_gain(bins, value)[survival_id] * bins.share
        continuing = _continuing_gain(bins, deeper, rate)[survival_id] * bins.share
        total = np.append(0.0, np.cumsum(continuing)) + np.append(np.cumsum(leaving[::-1])[::-1], 0.0)  # [B + 1]
        yield float([0.0, *bins.edges, 1.0][int(total.argmax())])
