"""Configurations to measure predictions on, spread over exits, lengths, thresholds and stop rules."""

from collections.abc import Iterator
from itertools import cycle

import numpy as np

from calibrate.fit.fit_acceptance import calibrate_exits
from perfmodel.acceptance.trace import Trace
from perfmodel.policies.policy import ConfidenceFloor, HeuristicLength, Policy, StopRule, SurvivalFloor
from profiler.latency.pass_grid import exit_subsets, threshold_leaving

CAPS = (2, 3, 4, 5, 6, 8, 10, 12)
LEAVE_FRACS = (0.2, 0.35, 0.5, 0.65, 0.8)
STOP_FRACS = (0.1, 0.2, 0.35)
SURVIVAL_FLOORS = (0.3, 0.5, 0.7)


def configurations(trace: Trace, seed: int) -> Iterator[Policy]:
    """An endless sequence of policies, spread over exit subsets, lengths, thresholds and stop rules.

    Thresholds are quantiles of the confidences in a trace.

    Args:
        trace: a trace of the calibration prompts.
        seed: the seed of the spread.
    """
    rng = np.random.default_rng(seed)
    curves = {exit.exit_layer: exit.curve for exit in calibrate_exits(trace)}
    columns = dict(zip(trace.header.exit_layers, trace.confidence.T, strict=True))
    subsets = exit_subsets(trace.header.exit_layers)
    for kind, subset_number in zip(cycle(range(4)), _shuffled_cycles(rng, len(subsets)), strict=False):
        subset, cap = subsets[subset_number], int(rng.choice(CAPS))
        last = columns[subset[-1]]
        rules: tuple[StopRule | None, ...] = (
            None,
            ConfidenceFloor(floor=threshold_leaving(last, 1 - float(rng.choice(STOP_FRACS)))),
            SurvivalFloor(
                floor=float(rng.choice(SURVIVAL_FLOORS)),
                calibration=tuple(curves[layer] for layer in subset),
            ),
            HeuristicLength(start=min(5, cap)),
        )
        gates = tuple(threshold_leaving(columns[layer], float(rng.choice(LEAVE_FRACS))) for layer in subset[:-1])
        yield Policy(exits=subset, thresholds=gates, tokens=cap, stop=rules[kind], confidence=trace.header.confidence)


def _shuffled_cycles(rng: np.random.Generator, number: int) -> Iterator[int]:
    """All numbers below `number`, again and again, each time in a new random order."""
    while True:
        yield from map(int, rng.permutation(number))
