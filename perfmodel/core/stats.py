"""Statistics: intervals, bootstrap resamples, and samples with their extremes limited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from perfmodel.core.units import Frac, Seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INTERVAL_FRAC: Frac = 0.9
"""Every interval in plans and reports is a central 90 % interval."""
NORMAL_QUANTILE = 1.6449
"""Half the width of that interval in standard deviations of a normal distribution."""
WIDEST_FACTOR = 10.0
"""Intervals of ratios end at this factor above and below the value: a wider interval carries no information."""

NUM_RESAMPLES = 200
_SEED = 20260701

WINSORIZED_FRAC = 0.02
"""Share of the samples on each side that is replaced by the nearest remaining sample."""
MIN_WINSORIZED_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and the central 90 % interval around it."""

    value: float
    low: float
    high: float

    @property
    def is_clipped(self) -> bool:
        """Whether an end is at `WIDEST_FACTOR`, which means that this end is unknown."""
        nearly = WIDEST_FACTOR * (1 - 1e-9)  # low and high are rounded
        return self.high >= self.value * nearly or self.low <= self.value / nearly


def ratio_interval(value: float, *, below: float, above: float) -> Interval:
    """The interval of a ratio.

    Args:
        value: the ratio.
        below: natural logarithm of the value over the low end.
        above: natural logarithm of the high end over the value.
    """
    widest = math.log(WIDEST_FACTOR)
    return Interval(value=value, low=value * math.exp(-min(below, widest)), high=value * math.exp(min(above, widest)))


@lru_cache(maxsize=16)
def resample_counts(num_items: int) -> NDArray[np.int64]:
    """How often each bootstrap resample contains each item: [resamples, items]. The array is shared: do not write to it."""
    import random

    import numpy as np

    drawn = random.Random(_SEED).choices(range(num_items), k=NUM_RESAMPLES * num_items)
    offset = np.repeat(np.arange(NUM_RESAMPLES) * num_items, num_items)
    return np.bincount(offset + drawn, minlength=NUM_RESAMPLES * num_items).reshape(NUM_RESAMPLES, num_items)


def winsorized(values: Sequence[Seconds]) -> list[Seconds]:
    """The values with the most extreme `WINSORIZED_FRAC` on each side replaced by the nearest remaining value."""
    if len(values) < MIN_WINSORIZED_SAMPLES:
        return list(values)
    ordered = sorted(values)
    num_outside = math.ceil(WINSORIZED_FRAC * len(ordered))
    low, high = ordered[num_outside], ordered[-1 - num_outside]
    return [min(max(value, low), high) for value in values]
