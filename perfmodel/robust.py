"""Samples in which a few were preempted: their extremes are pulled in, not thrown away."""

import math
from collections.abc import Sequence

from perfmodel.units import Seconds

CLAMPED_FRAC = 0.02
"""Share of the samples on each side that is pulled in to the edge of the rest."""
MIN_CLAMPED_SAMPLES = 8


def clamped(values: Sequence[Seconds]) -> list[Seconds]:
    """The values with the most extreme `CLAMPED_FRAC` on each side pulled in to the edge of the rest."""
    if len(values) < MIN_CLAMPED_SAMPLES:
        return list(values)
    ordered = sorted(values)
    outside = math.ceil(CLAMPED_FRAC * len(ordered))
    low, high = ordered[outside], ordered[-1 - outside]
    return [min(max(value, low), high) for value in values]
