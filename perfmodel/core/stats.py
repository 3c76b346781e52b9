"""Statistics: intervals, resamples of independent evidence, and samples with their extremes pulled in."""

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
"""Every interval in plans and reports is a central 90 % one."""
NORMAL_QUANTILE = 1.6449
"""Standard deviations on each side of it under a normal law."""
WIDEST_FACTOR = 10.0
"""Intervals of ratios are cut at so many times the value, either way: a wider one tells nothing more."""

NUM_RESAMPLES = 200
_SEED = 20260701

WINSORIZED_FRAC = 0.02
"""Share of the samples on each side that is pulled in to the edge of the rest."""
MIN_WINSORIZED_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and the central 90 % interval around it."""

    value: float
    low: float
    high: float

    @property
    def is_clipped(self) -> bool:
        """Whether a side is as far off as intervals go, so that nothing is known of it."""
        nearly = WIDEST_FACTOR * (1 - 1e-9)  # low and high are rounded
        return self.high >= self.value * nearly or self.low <= self.value / nearly


def ratio_interval(value: float, *, below: float, above: float) -> Interval:
    """The interval of a ratio from natural logarithms: so far below its value, and so far above it."""
    widest = math.log(WIDEST_FACTOR)
    return Interval(value=value, low=value * math.exp(-min(below, widest)), high=value * math.exp(min(above, widest)))


@lru_cache(maxsize=16)
def resample_counts(number: int) -> NDArray[np.int64]:
    """How often each of so many pieces of evidence is drawn, by resample: [resamples, number]; not to be written to."""
    import random

    import numpy as np

    drawn = random.Random(_SEED).choices(range(number), k=NUM_RESAMPLES * number)
    offset = np.repeat(np.arange(NUM_RESAMPLES) * number, number)
    return np.bincount(offset + drawn, minlength=NUM_RESAMPLES * number).reshape(NUM_RESAMPLES, number)


def winsorized(values: Sequence[Seconds]) -> list[Seconds]:
    """The values with the most extreme `WINSORIZED_FRAC` on each side pulled in to the edge of the rest."""
    if len(values) < MIN_WINSORIZED_SAMPLES:
        return list(values)
    ordered = sorted(values)
    outside = math.ceil(WINSORIZED_FRAC * len(ordered))
    low, high = ordered[outside], ordered[-1 - outside]
    return [min(max(value, low), high) for value in values]
