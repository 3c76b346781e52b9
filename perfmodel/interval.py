"""Intervals: how sure a number is."""

import math
from dataclasses import dataclass

from perfmodel.units import Frac

INTERVAL_FRAC: Frac = 0.9
"""Every interval in plans and reports is a central 90 % one."""
NORMAL_QUANTILE = 1.6449
"""Standard deviations on each side of it under a normal law."""
WIDEST_FACTOR = 10.0
"""Intervals of ratios are cut at so many times the value, either way: a wider one tells nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and the central 90 % interval around it."""

    value: float
    low: float
    high: float

    @property
    def is_cut(self) -> bool:
        """Whether a side is as far off as intervals go, so that nothing is known of it."""
        nearly = WIDEST_FACTOR * (1 - 1e-9)  # low and high are rounded
        return self.high >= self.value * nearly or self.low <= self.value / nearly


def ratio_interval(value: float, *, below: float, above: float) -> Interval:
    """The interval of a ratio from natural logarithms: so far below its value, and so far above it."""
    widest = math.log(WIDEST_FACTOR)
    return Interval(value=value, low=value * math.exp(-min(below, widest)), high=value * math.exp(min(above, widest)))
