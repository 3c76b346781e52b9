"""What a pass takes on top because another model left its weights out of the caches.

The extra is the same whatever the rows (it is the fetching of the weights), so seconds are told apart into one number per
width and one per place (`perfmodel.passes.passes`), by least squares over all passes through the same weights. The extra is relative
to warm passes of a segment or of the exits' shared head, and to verifications after the first segment alone.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from perfmodel.core.stats import winsorized
from perfmodel.core.units import Seconds
from perfmodel.passes.passes import PASS_MODEL, PREFILL_KINDS, PassKind, PassSamples, is_cold, weights_of

ColdExtras = dict[tuple[PassKind, int], dict[int, Seconds]]
"""By kind and stage of the weights, then by place: extra seconds."""

_NOT_COLD = 0
_NUM_SWEEPS = 200
_Cell = defaultdict[int, list[Seconds]]
"""Seconds of one stage and width by place, all that are not cold together."""


def cold_extras(samples: PassSamples) -> ColdExtras:
    """The extras of all weights that were measured; none is negative.

    Where no pass is known not to be cold, those at the place nearest to it are taken to be so.
    """
    cells: defaultdict[tuple[PassKind, int], dict[tuple[int, int], _Cell]] = defaultdict(dict)
    for kind, stage, rows, _, place, seconds in samples:
        if kind == "verify" or (PASS_MODEL[kind] == "draft" and kind not in PREFILL_KINDS):
            cell = cells[weights_of(kind, stage)].setdefault((stage, rows), defaultdict(list))
            cell[place if is_cold(kind, place) else _NOT_COLD].append(seconds)
    return {
        (kind, stage): _extras(by_width.values(), nearest=min if kind == "verify" else max)
        for (kind, stage), by_width in cells.items()
    }


def _extras(cells: Collection[Mapping[int, list[Seconds]]], *, nearest: Callable[[Collection[int]], int]) -> dict[int, Seconds]:
    """Place effects beside cell effects by least squares: the cells eliminated, projected Gauss-Seidel on what is left."""
    met = sorted({place for cell in cells for place in cell})
    reference = _NOT_COLD if _NOT_COLD in met else nearest(met)
    over = dict.fromkeys(met, 0.0)
    matrix = {(p, q): 0.0 for p in met for q in met}
    for cell in cells:
        numbers = {place: len(seconds) for place, seconds in cell.items()}
        sums = {place: math.fsum(winsorized(seconds)) for place, seconds in cell.items()}
        number = sum(numbers.values())
        mean = math.fsum(sums.values()) / number
        for p in cell:
            over[p] += sums[p] - numbers[p] * mean
            matrix[p, p] += numbers[p]
            for q in cell:
                matrix[p, q] -= numbers[p] * numbers[q] / number
    extras = dict.fromkeys(met, 0.0)
    told = [
        p for p in met if p != reference and matrix[p, p] > 0.5
    ]  # others were met in cells of their own, which tell nothing
    for _ in range(_NUM_SWEEPS):
        for p in told:
            others = math.fsum(matrix[p, q] * extras[q] for q in met if q != p)
            extras[p] = max(0.0, (over[p] - others) / matrix[p, p])
    return {place: extra for place, extra in extras.items() if place != _NOT_COLD}
