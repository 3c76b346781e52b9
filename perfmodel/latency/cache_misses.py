"""Extra seconds of passes whose weights another model pushed out of the caches.

The extra is the time to fetch the weights, which does not depend on the rows. Least squares over all passes through the same
weights therefore splits their seconds into a mean for each width and an extra for each cold place (`perfmodel.passes.passes`).
Extras are relative to warm passes of a segment or of the exits' shared head, and to verifications after one segment alone.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from perfmodel.core.stats import winsorized
from perfmodel.core.units import Seconds
from perfmodel.passes.passes import PassSamples, WeightsKey, can_be_cold, is_cold, weights_key

ColdExtras: TypeAlias = dict[WeightsKey, dict[int, Seconds]]
"""Extra seconds by weights, then by place."""

_WARM = 0
"""Stands for all places that are not cold."""
_NUM_SWEEPS = 200
_SecondsByPlace: TypeAlias = defaultdict[int, list[Seconds]]
"""Seconds of the passes of one stage and width."""


def cold_extras(samples: PassSamples) -> ColdExtras:
    """The extras of all measured weights, never negative.

    If no warm pass was measured, the place nearest to warm has no extra.
    """
    groups: defaultdict[WeightsKey, dict[tuple[int, int], _SecondsByPlace]] = defaultdict(dict)
    for sample in samples:
        if can_be_cold(sample.kind):
            by_width = groups[weights_key(sample.kind, sample.stage)]
            by_place = by_width.setdefault((sample.stage, sample.rows), defaultdict(list))
            by_place[sample.place if is_cold(sample.kind, sample.place) else _WARM].append(sample.seconds)
    return {
        (kind, stage): _place_extras(by_width.values(), nearest_to_warm=min if kind == "verify" else max)
        for (kind, stage), by_width in groups.items()
    }


def _place_extras(
    cells: Collection[Mapping[int, list[Seconds]]], *, nearest_to_warm: Callable[[Collection[int]], int]
) -> dict[int, Seconds]:
    """Non-negative least squares of place extras and cell means, with the cell means eliminated.

    Projected Gauss-Seidel on the normal equations. `scipy.optimize.nnls` solves the same problem, but importing it takes longer
    than a whole plan.
    """
    places = sorted({place for cell in cells for place in cell})
    reference = _WARM if _WARM in places else nearest_to_warm(places)
    residuals = dict.fromkeys(places, 0.0)
    matrix = {(p, q): 0.0 for p in places for q in places}
    for cell in cells:
        counts = {place: len(seconds) for place, seconds in cell.items()}
        sums = {place: math.fsum(winsorized(seconds)) for place, seconds in cell.items()}
        num_passes = sum(counts.values())
        mean = math.fsum(sums.values()) / num_passes
        for p in cell:
            residuals[p] += sums[p] - counts[p] * mean
            matrix[p, p] += counts[p]
            for q in cell:
                matrix[p, q] -= counts[p] * counts[q] / num_passes
    # A place that shares no cell with another place has a zero row: its extra cannot be separated from its cell's mean.
    solvable = [p for p in places if p != reference and matrix[p, p] > 0.5]
    extras = dict.fromkeys(places, 0.0)
    for _ in range(_NUM_SWEEPS):
        for p in solvable:
            others = math.fsum(matrix[p, q] * extras[q] for q in places if q != p)
            extras[p] = max(0.0, (residuals[p] - others) / matrix[p, p])
    return {place: extra for place, extra in extras.items() if place != _WARM}
