"""Neighbours of a policy: one threshold, floor or length moved along its grid.

A threshold or floor lies in the middle of a wide gap between neighbouring confidences. Rounding differences between one-row
and many-row passes then cannot change a decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.core.units import Tokens
from perfmodel.policies.policy import ConfidenceFloor, HeuristicLength, Policy, SurvivalFloor

MAX_DRAFT_TOKENS: Tokens = 12
NUM_GRID_THRESHOLDS = 32
"""Maximum number of values on a threshold's grid, spaced by quantiles of its exit's confidence."""
SURVIVAL_FLOORS = tuple(number / 20 + 0.003 for number in range(1, 19))
STRIDES = (1, 4)

Setting: TypeAlias = int | Literal["tokens", "floor"]
"""A setting of a policy: a threshold, by its index among the policy's, the draft length, or the stop rule's floor."""
ThresholdGrids: TypeAlias = Mapping[int, Sequence[float]]
"""By exit layer, the rising values that thresholds and confidence floors may take."""


def threshold_grid(confidence: NDArray[np.floating], *, num_values: int = NUM_GRID_THRESHOLDS) -> tuple[float, ...]:
    """Rising values that split confidences into parts of equal number, each in the widest gap near its quantile."""
    ordered = np.sort(confidence.astype(np.float64))
    edges = np.linspace(0, len(ordered) - 1, num_values + 1).astype(int)
    values = set()
    for low, high in pairwise(edges.tolist()):
        gaps = np.diff(ordered[low : high + 1])
        if len(gaps) and gaps.max() > 0:
            index = low + int(gaps.argmax())
            values.add(float((ordered[index] + ordered[index + 1]) / 2))
    return tuple(sorted(values))


def neighbours(policy: Policy, grids: ThresholdGrids) -> list[Policy]:
    """The policies that differ from this one in one setting, by a short or a long stride along its grid."""
    return [
        _changed(policy, setting, value)
        for setting, grid in _grids(policy, grids).items()
        for value in _nearby(grid, _value(policy, setting))
    ]


def _grids(policy: Policy, grids: ThresholdGrids) -> dict[Setting, Sequence[float]]:
    by_setting: dict[Setting, Sequence[float]] = {"tokens": range(1, MAX_DRAFT_TOKENS + 1)}
    if isinstance(policy.stop, ConfidenceFloor):
        by_setting["floor"] = grids[policy.exits[-1]]
    if isinstance(policy.stop, SurvivalFloor):
        by_setting["floor"] = SURVIVAL_FLOORS
    by_setting.update(enumerate(grids[layer] for layer in policy.exits[:-1]))
    return by_setting


def _nearby(grid: Sequence[float], value: float) -> list[float]:
    """Values of a rising grid that lie one stride above or below a value."""
    index = sum(lower < value for lower in grid)
    indices = [index + direction * stride for stride in STRIDES for direction in (-1, 1)]
    return [grid[i] for i in indices if 0 <= i < len(grid)]


def _value(policy: Policy, setting: Setting) -> float:
    if isinstance(setting, int):
        return policy.thresholds[setting]
    value: float = getattr(policy if setting == "tokens" else policy.stop, setting)
    return value


def _changed(policy: Policy, setting: Setting, value: float) -> Policy:
    if isinstance(setting, int):
        thresholds = (*policy.thresholds[:setting], value, *policy.thresholds[setting + 1 :])
        return replace(policy, thresholds=thresholds)
    if setting == "floor":
        assert isinstance(policy.stop, ConfidenceFloor | SurvivalFloor)
        return replace(policy, stop=replace(policy.stop, floor=value))
    tokens, stop = int(value), policy.stop
    if isinstance(stop, HeuristicLength):
        stop = replace(stop, start=min(stop.start, tokens))
    return replace(policy, tokens=tokens, stop=stop)
