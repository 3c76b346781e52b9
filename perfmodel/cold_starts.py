"""What the first passes of a round take on top: the verification before them left the draft's weights out of the caches.

The extra is the same whatever the rows (it is the fetching of the weights), so seconds are told apart into one number per
width and one per place, by least squares over all passes of a segment, or of the exits' shared head.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

from perfmodel.passes import COLD_PLACES, DRAFT_KINDS, PassKind, PassSamples, weights_of
from perfmodel.robust import clamped
from perfmodel.units import Seconds

ColdExtras = dict[tuple[PassKind, int], tuple[Seconds, ...]]
"""By kind and stage of the weights: the extra seconds at places 1, 2, ..., `COLD_PLACES`."""

_NUM_SWEEPS = 200
_Cells = dict[tuple[int, int], list[list[Seconds]]]
"""By stage and rows: the seconds at each place, all warm ones last."""


def cold_extras(samples: PassSamples) -> ColdExtras:
    """The extras of every segment and of the head that were measured; none is negative.

    Where no pass of a round is warm, its last place is taken to be.
    """
    cells: defaultdict[tuple[PassKind, int], _Cells] = defaultdict(dict)
    columns = zip(samples.kind, samples.stage, samples.rows, samples.place, samples.seconds, strict=True)
    for kind, stage, rows, place, seconds in columns:
        if kind in DRAFT_KINDS:
            by_place = cells[weights_of(kind, stage)].setdefault((stage, rows), [[] for _ in range(COLD_PLACES + 1)])
            by_place[min(place, COLD_PLACES + 1) - 1].append(seconds)
    return {weights: _extras(list(by_width.values())) for weights, by_width in cells.items()}


def _extras(cells: Sequence[Sequence[list[Seconds]]]) -> tuple[Seconds, ...]:
    """Place effects beside cell effects by least squares: the cells eliminated, projected Gauss-Seidel on what is left.

    Args:
        cells: the seconds of each width at each place.
    """
    warm = max(place for cell in cells for place, seconds in enumerate(cell) if seconds)
    over = [0.0] * warm
    matrix = [[0.0] * warm for _ in range(warm)]
    for cell in cells:
        numbers = [len(seconds) for seconds in cell]
        sums = [math.fsum(clamped(seconds)) for seconds in cell]
        number, mean = sum(numbers), math.fsum(sums) / sum(numbers)
        for p in range(warm):
            over[p] += sums[p] - numbers[p] * mean
            matrix[p][p] += numbers[p]
            for q in range(warm):
                matrix[p][q] -= numbers[p] * numbers[q] / number
    extras = [0.0] * COLD_PLACES
    for _ in range(_NUM_SWEEPS):
        for p, row in enumerate(matrix):
            if row[p] > 0.5:  # else some place was met in cells of its own only, which tell nothing
                others = math.fsum(row[q] * extras[q] for q in range(warm) if q != p)
                extras[p] = max(0.0, (over[p] - others) / row[p])
    return tuple(extras)
