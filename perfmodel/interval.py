"""Intervals: how sure a number is."""

from dataclasses import dataclass

from perfmodel.units import Frac

INTERVAL_FRAC: Frac = 0.9
"""Every interval in plans and reports is a central 90 % one."""
NORMAL_QUANTILE = 1.6449
"""Standard deviations on each side of it under a normal law."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and the central 90 % interval around it."""

    value: float
    low: float
    high: float
