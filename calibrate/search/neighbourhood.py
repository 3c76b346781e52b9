"""Where lengths, thresholds and floors may lie, and a policy's neighbours: one setting of it moved along its grid.

Thresholds and floors lie in the middle of a wide gap between neighbouring confidences near a quantile, so that rounding
between a pass of one row and one of many cannot flip a decision.
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
NUM_CUTS = 32
"""Places a threshold can take, by quantile of its exit's confidence."""
SURVIVAL_FLOORS = tuple(number / 20 + 0.003 for number in range(1, 19))
STRIDES = (1, 4)

Setting: TypeAlias = int | Literal["tokens", "floor"]
"""A threshold, by its place among the policy's, or what its length rule is made of."""
Cuts: TypeAlias = Mapping[int, Sequence[float]]
"""By layer count of an exit, the places of its thresholds and floors."""


def place_cuts(confidence: NDArray[np.floating], *, num_cuts: int = NUM_CUTS) -> tuple[float, ...]:
    """Rising values that split confidences evenly, each in the widest gap between two neighbours near its quantile."""
    ordered = np.sort(confidence.astype(np.float64))
    edges = np.linspace(0, len(ordered) - 1, num_cuts + 1).astype(int)
    cuts = set()
    for low, high in pairwise(edges.tolist()):
        gaps = np.diff(ordered[low : high + 1])
        if len(gaps) and gaps.max() > 0:
            place = low + int(gaps.argmax())
            cuts.add(float((ordered[place] + ordered[place + 1]) / 2))
    return tuple(sorted(cuts))


def neighbours(policy: Policy, cuts: Cuts) -> list[Policy]:
    """The policies that differ from this one in one setting, by a step or by a stride."""
    return [
        _with(policy, setting, value)
        for setting, grid in _grids(policy, cuts).items()
        for value in _moves(grid, _value(policy, setting))
    ]


def _grids(policy: Policy, cuts: Cuts) -> dict[Setting, Sequence[float]]:
    grids: dict[Setting, Sequence[float]] = {"tokens": range(1, MAX_DRAFT_TOKENS + 1)}
    if isinstance(policy.stop, ConfidenceFloor):
        grids["floor"] = cuts[policy.exits[-1]]
    if isinstance(policy.stop, SurvivalFloor):
        grids["floor"] = SURVIVAL_FLOORS
    grids.update(enumerate(cuts[layer] for layer in policy.exits[:-1]))
    return grids


def _moves(grid: Sequence[float], value: float) -> list[float]:
    """Values on a rising grid a step or a stride away."""
    place = sum(one < value for one in grid)
    places = [place + way * stride for stride in STRIDES for way in (-1, 1)]
    return [grid[i] for i in places if 0 <= i < len(grid)]


def _value(policy: Policy, setting: Setting) -> float:
    if isinstance(setting, int):
        return policy.thresholds[setting]
    value: float = getattr(policy if setting == "tokens" else policy.stop, setting)
    return value


def _with(policy: Policy, setting: Setting, value: float) -> Policy:
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
