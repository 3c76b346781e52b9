"""Mean seconds of every measured pass, linear in the cached tokens.

Predictions are totals, so a pass is priced by its mean and not by its median. The most extreme 2 % on each side are clamped, so
one preempted pass does not distort a thousand others. Passes during which the process was paused are left out
(`perfmodel.passes.pauses`).

Captured passes are padded to a few widths (`perfmodel.passes.passes.graph_width`), so their seconds are a step function of the
rows. Each width has its own table: rows padded to one width are neither merged nor interpolated with rows of another.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeAlias

from perfmodel.core.errors import OutOfDomain
from perfmodel.core.stats import winsorized
from perfmodel.core.units import Frac, Seconds
from perfmodel.latency.cache_misses import ColdExtras, cold_extras
from perfmodel.passes.passes import (
    LAYER_KINDS,
    PREFILL_KINDS,
    Line,
    PassKind,
    PassName,
    PassSamples,
    graph_width,
    kind_label,
    weights_key,
)
from perfmodel.passes.pauses import without_pauses

MIN_SAMPLES = 12
"""A knot with fewer samples, and fewer than the most frequent width has, is merged with the next wider one."""
EXTRAPOLATED_RATIO = 1.25
"""Passes up to this factor wider than the widest measured one are extrapolated."""
MIN_SLOPE_SAMPLES = 48
MIN_CACHED_SPREAD = 32.0
"""Twice the standard deviation of the cached tokens. Below it, a width takes the slope of its kind and stage."""
NUM_BLOCKS = 12
"""Consecutive blocks of a profile. The scatter of their totals shows how steady the device was."""
MAX_BLOCK_RATIO = 10
"""A pass counts in its block at no more than this multiple of its price: one preempted pass does not make a device unsteady."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knot:
    """Measured passes of one width, or of a few neighbouring widths with few samples each."""

    rows: float
    """Mean number of rows."""
    num_passes: int
    mean_s: Seconds
    mean_cached_tokens: float
    per_token_s: Seconds

    @property
    def line(self) -> Line:
        """Seconds of its passes; never below 0 with nothing cached."""
        return Line(max(0.0, self.mean_s - self.per_token_s * self.mean_cached_tokens), self.per_token_s)


@dataclass(frozen=True, slots=True)
class _Cell:
    """The passes of one kind, stage and number of rows."""

    cached: list[float]
    seconds: list[Seconds]


_NOT_PADDED = 0
"""The width of passes that are not padded."""
_KnotsByWidth: TypeAlias = dict[int, tuple[Knot, ...]]
"""Knots in order of rows, by the width to which their passes were padded."""


class MeasuredTimes:
    """The seconds of every measured pass, by kind, stage and rows.

    Rows between two measured numbers are interpolated. Beyond the largest number, one row or a quarter more is extrapolated: a
    backlog of 40 rows predicts one of 50.

    Args:
        name: name of the model, for messages.
        pads_rows: whether passes through layers were padded.
    """

    __slots__ = ("_cold", "_knots", "_lines", "_max_rows", "_name", "_pads_rows", "error_frac")

    def __init__(self, samples: PassSamples, *, name: str, pads_rows: bool) -> None:
        samples = without_pauses(samples)
        self._cold = cold_extras(samples)
        cells = _warm_cells(samples, self._cold)
        self._name = name
        self._pads_rows = pads_rows
        self._max_rows = {key: max(by_rows) for key, by_rows in cells.items()}
        self._knots = {(kind, stage): self._knots_by_width(kind, by_rows) for (kind, stage), by_rows in cells.items()}
        self._lines: dict[PassName, Line] = {}
        self.error_frac: Frac = self._block_error_frac(samples)

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one warm pass, for any number of cached tokens.

        Raises:
            OutOfDomain: no such pass was measured.
        """
        key = (kind, stage, rows)
        if key not in self._lines:
            self._check_rows(kind, stage, rows)
            self._lines[key] = _interpolated_line(self._knots[kind, stage], rows, self._width(kind, rows))
        return self._lines[key]

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Extra seconds of a pass at a place; 0 if none were measured."""
        return self._cold.get(weights_key(kind, stage), {}).get(place, 0.0)

    def _width(self, kind: PassKind, rows: int) -> int:
        """The width to which a pass was padded, or `_NOT_PADDED`."""
        is_padded = self._pads_rows and kind in LAYER_KINDS
        return (graph_width(rows) if is_padded else None) or _NOT_PADDED

    def _knots_by_width(self, kind: PassKind, by_rows: dict[int, _Cell]) -> _KnotsByWidth:
        pooled_per_token_s = _per_token_s(by_rows.values())
        by_width: dict[int, dict[int, _Cell]] = defaultdict(dict)
        for rows, cell in by_rows.items():
            by_width[self._width(kind, rows)][rows] = cell
        return {width: _knots(cells, pooled_per_token_s) for width, cells in by_width.items()}

    def _check_rows(self, kind: PassKind, stage: int, rows: int) -> None:
        max_rows = self._max_rows.get((kind, stage), 0)
        is_measured = max_rows > 0 or (kind == "round" and (kind, stage) in self._max_rows)
        if is_measured and (kind in PREFILL_KINDS or rows <= max(max_rows + 1, EXTRAPOLATED_RATIO * max_rows)):
            return
        raise OutOfDomain(
            f"rows of a {kind_label(kind)} pass (stage {stage}) of {self._name!r}",
            rows,
            low=0,
            high=max_rows,
            fix="Profile again with longer drafts and all the exits you want priced: s2d-profile latency",
        )

    def _block_error_frac(self, samples: PassSamples) -> Frac:
        """Standard error of the profile's total, from the ratios of measured to predicted seconds of its blocks."""
        measured, predicted = [0.0] * NUM_BLOCKS, [0.0] * NUM_BLOCKS
        in_rounds = [sample for sample in samples if sample.kind not in PREFILL_KINDS]
        for index, (kind, stage, rows, cached, place, seconds) in enumerate(in_rounds):
            block = index * NUM_BLOCKS // len(in_rounds)
            price_s = self.line(kind, stage, rows).at(cached) + self.cold_s(kind, stage, place)
            measured[block] += min(seconds, MAX_BLOCK_RATIO * price_s)
            predicted[block] += price_s
        return _standard_error([m / p for m, p in zip(measured, predicted, strict=True) if p > 0])


def _warm_cells(samples: PassSamples, cold: ColdExtras) -> dict[tuple[PassKind, int], dict[int, _Cell]]:
    """Clamped samples by (kind, stage), then by rows, with the extras of cold places subtracted."""
    cells: dict[tuple[PassKind, int], dict[int, _Cell]] = defaultdict(dict)
    for kind, stage, rows, cached, place, seconds in samples:
        cell = cells[kind, stage].setdefault(rows, _Cell([], []))
        cell.cached.append(cached)
        cell.seconds.append(seconds - cold.get(weights_key(kind, stage), {}).get(place, 0.0))
    return {
        key: {rows: _Cell(cell.cached, winsorized(cell.seconds)) for rows, cell in sorted(by_rows.items())}
        for key, by_rows in cells.items()
    }


def _knots(by_rows: dict[int, _Cell], pooled_per_token_s: Seconds) -> tuple[Knot, ...]:
    knots = [_knot(rows, cell, pooled_per_token_s) for rows, cell in by_rows.items()]
    return tuple(_merged(knots, min_samples=min(MIN_SAMPLES, max(knot.num_passes for knot in knots))))


def _knot(rows: int, cell: _Cell, pooled_per_token_s: Seconds) -> Knot:
    num_passes = len(cell.seconds)
    mean_cached = math.fsum(cell.cached) / num_passes
    spread = 2 * math.sqrt(math.fsum((x - mean_cached) ** 2 for x in cell.cached) / num_passes)
    has_slope = num_passes >= MIN_SLOPE_SAMPLES and spread >= MIN_CACHED_SPREAD
    return Knot(
        rows=rows,
        num_passes=num_passes,
        mean_s=math.fsum(cell.seconds) / num_passes,
        mean_cached_tokens=mean_cached,
        per_token_s=_per_token_s([cell]) if has_slope else pooled_per_token_s,
    )


def _per_token_s(cells: Iterable[_Cell]) -> Seconds:
    """Seconds per cached token: the least-squares slope within each cell, pooled over the cells; never negative."""
    num_samples, covariance, variance = 0, 0.0, 0.0
    for cell in cells:
        number = len(cell.seconds)
        mean_x, mean_y = math.fsum(cell.cached) / number, math.fsum(cell.seconds) / number
        covariance += math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(cell.cached, cell.seconds, strict=True))
        variance += math.fsum((x - mean_x) ** 2 for x in cell.cached)
        num_samples += number
    is_spread = num_samples and 2 * math.sqrt(variance / num_samples) >= MIN_CACHED_SPREAD
    return max(0.0, covariance / variance) if is_spread else 0.0


def _merged(knots: Sequence[Knot], *, min_samples: int) -> Iterable[Knot]:
    """Knots in order of rows. One with few samples is merged with its wider neighbour; the last with the one before it."""
    merged: list[Knot] = []
    pending: Knot | None = None
    for knot in knots:
        pending = knot if pending is None else _merge(pending, knot)
        if pending.num_passes >= min_samples:
            merged.append(pending)
            pending = None
    if pending is not None:
        merged.append(_merge(merged.pop(), pending) if merged and pending.num_passes * 2 < min_samples else pending)
    return merged


def _merge(first: Knot, second: Knot) -> Knot:
    num_passes = first.num_passes + second.num_passes

    def mean(a: float, b: float) -> float:
        return (a * first.num_passes + b * second.num_passes) / num_passes

    return replace(
        first,
        rows=mean(first.rows, second.rows),
        num_passes=num_passes,
        mean_s=mean(first.mean_s, second.mean_s),
        mean_cached_tokens=mean(first.mean_cached_tokens, second.mean_cached_tokens),
        per_token_s=mean(first.per_token_s, second.per_token_s),
    )


def _interpolated_line(by_width: _KnotsByWidth, rows: int, width: int) -> Line:
    """Seconds of a pass: from the knots of its width, or between the knots of other widths if its own was not measured."""
    if width == _NOT_PADDED and width in by_width:
        return _interpolated(by_width[width], rows)
    if width in by_width:
        return _interpolated(by_width[width], min(rows, by_width[width][-1].rows))
    widths = sorted(set(by_width) - {_NOT_PADDED})
    knots = [replace(reduce(_merge, by_width[padded]), rows=padded) for padded in widths]
    return _interpolated([*knots, *by_width.get(_NOT_PADDED, ())], width or rows)


def _interpolated(knots: Sequence[Knot], rows: float) -> Line:
    """The line between two knots. Beyond the last knot it continues the last two, and never falls below the last."""
    if rows <= knots[0].rows or len(knots) == 1:
        return knots[0].line
    right = next((i for i, knot in enumerate(knots) if knot.rows >= rows), len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    share = (rows - low.rows) / (high.rows - low.rows)
    if share > 1 and high.line.base_s < low.line.base_s:
        return high.line
    base_s = low.line.base_s + share * (high.line.base_s - low.line.base_s)
    return Line(base_s, max(0.0, low.per_token_s + share * (high.per_token_s - low.per_token_s)))


def _standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
