"""Mean seconds of every pass that was measured, as straight lines in the cached tokens.

Totals are what is predicted, so a cell keeps its mean and not its median; only the most extreme 2 % on each side are
pulled in to the edge, so that one preempted pass does not speak for a thousand. Passes during which the process stood still
are left out (`perfmodel.passes.pauses`).

Captured passes are padded to a few widths (`perfmodel.passes.passes.graph_width`), so that their seconds are steps in the rows. Each
step is a table of its own: rows of one are neither merged nor interpolated with rows of another.
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
from perfmodel.passes.passes import LAYER_KINDS, PREFILL_KINDS, Line, PassKind, PassSamples, graph_width, kind_label, weights_of
from perfmodel.passes.pauses import without_pauses

MIN_SAMPLES = 12
"""A knot of fewer samples (and fewer than the commonest width has) is merged with the next wider pass."""
EXTRAPOLATED_RATIO = 1.25
MIN_SLOPE_SAMPLES = 48
MIN_CACHED_SPREAD = 32.0
"""Tokens of standard deviation times two: below it a cell takes the slope of its kind and stage."""
NUM_BLOCKS = 12
"""Consecutive stretches of the profile whose totals tell how steady the device was."""
MAX_BLOCK_RATIO = 10
"""A pass counts in its stretch at no more than so many times its price: one preempted pass does not make a device unsteady."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knot:
    """Measured passes of one width, or of a few neighbouring ones that are rare."""

    rows: float
    """Their mean number of rows."""
    num_passes: int
    mean_s: Seconds
    mean_cached_tokens: float
    per_token_s: Seconds

    @property
    def base_s(self) -> Seconds:
        """Seconds with nothing cached, never below 0."""
        return max(0.0, self.mean_s - self.per_token_s * self.mean_cached_tokens)


@dataclass(frozen=True, slots=True)
class _Cell:
    """The passes of one kind, stage and width."""

    cached: list[float]
    seconds: list[Seconds]


_AS_ASKED = 0
"""The width of passes that are not padded."""
_Steps: TypeAlias = dict[int, tuple[Knot, ...]]
"""Knots in order of rows, by the width that they were padded to."""


class MeasuredTimes:
    """Every measured pass, priced by kind, stage and rows.

    Widths between two measured ones are interpolated; beyond the widest at most one row, or a quarter of it, is
    extrapolated: a backlog of 40 rows tells one of 50.

    Args:
        name: the model's, for messages.
        pads_rows: whether passes through layers were padded.
    """

    __slots__ = ("_cold", "_lines", "_max_rows", "_name", "_pads_rows", "_steps", "error_frac")

    def __init__(self, samples: PassSamples, *, name: str, pads_rows: bool) -> None:
        samples = without_pauses(samples)
        self._cold = cold_extras(samples)
        cells = _cells_of(samples, self._cold)
        self._name = name
        self._pads_rows = pads_rows
        self._max_rows = {key: max(by_rows) for key, by_rows in cells.items()}
        self._steps = {(kind, stage): self._steps_of(kind, by_rows) for (kind, stage), by_rows in cells.items()}
        self._lines: dict[tuple[PassKind, int, int], Line] = {}
        self.error_frac: Frac = self._block_error_frac(samples)

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one warm pass, for any number of cached tokens.

        Raises:
            OutOfDomain: such a pass was not measured.
        """
        key = (kind, stage, rows)
        if key not in self._lines:
            self._check(kind, stage, rows)
            self._lines[key] = _line_on(self._steps[kind, stage], rows, self._width(kind, rows))
        return self._lines[key]

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Extra seconds of a pass at a place; 0 where none was measured."""
        return _extra_s(self._cold, kind, stage, place)

    def _width(self, kind: PassKind, rows: int) -> int:
        """The width that a pass was padded to; `_AS_ASKED` where it was not."""
        is_padded = self._pads_rows and kind in LAYER_KINDS
        return (graph_width(rows) if is_padded else None) or _AS_ASKED

    def _steps_of(self, kind: PassKind, by_rows: dict[int, _Cell]) -> _Steps:
        pooled_s = _slope_s(by_rows.values())
        steps: dict[int, dict[int, _Cell]] = defaultdict(dict)
        for rows, cell in by_rows.items():
            steps[self._width(kind, rows)][rows] = cell
        return {width: _knots_of(cells, pooled_s) for width, cells in steps.items()}

    def _check(self, kind: PassKind, stage: int, rows: int) -> None:
        measured = self._max_rows.get((kind, stage), 0)
        is_known = measured > 0 or (kind == "round" and (kind, stage) in self._max_rows)
        if is_known and (kind in PREFILL_KINDS or rows <= max(measured + 1, EXTRAPOLATED_RATIO * measured)):
            return
        raise OutOfDomain(
            f"rows of a {kind_label(kind)} pass (stage {stage}) of {self._name!r}",
            rows,
            low=0,
            high=measured,
            fix="Profile again with longer drafts and all the exits you want priced: s2d-profile latency",
        )

    def _block_error_frac(self, samples: PassSamples) -> Frac:
        """Standard error of the profile's total, from how its consecutive stretches differ from the table."""
        measured, predicted = [0.0] * NUM_BLOCKS, [0.0] * NUM_BLOCKS
        rounds = [sample for sample in samples if sample.kind not in PREFILL_KINDS]
        for number, (kind, stage, rows, cached, place, seconds) in enumerate(rounds):
            block = number * NUM_BLOCKS // len(rounds)
            price_s = self.line(kind, stage, rows).at(cached) + self.cold_s(kind, stage, place)
            measured[block] += min(seconds, MAX_BLOCK_RATIO * price_s)
            predicted[block] += price_s
        ratios = [m / p for m, p in zip(measured, predicted, strict=True) if p > 0]
        return _standard_error(ratios)


def _extra_s(cold: ColdExtras, kind: PassKind, stage: int, place: int) -> Seconds:
    return cold.get(weights_of(kind, stage), {}).get(place, 0.0)


def _cells_of(samples: PassSamples, cold: ColdExtras) -> dict[tuple[PassKind, int], dict[int, _Cell]]:
    """Clamped samples by (kind, stage), then by rows, as they would have been had all passes been warm."""
    cells: dict[tuple[PassKind, int], dict[int, _Cell]] = defaultdict(dict)
    for kind, stage, rows, cached, place, seconds in samples:
        cell = cells[kind, stage].setdefault(rows, _Cell([], []))
        cell.cached.append(cached)
        cell.seconds.append(seconds - _extra_s(cold, kind, stage, place))
    return {
        key: {rows: _Cell(cell.cached, winsorized(cell.seconds)) for rows, cell in sorted(by_rows.items())}
        for key, by_rows in cells.items()
    }


def _knots_of(by_rows: dict[int, _Cell], pooled_s: Seconds) -> tuple[Knot, ...]:
    most = max(len(cell.seconds) for cell in by_rows.values())
    knots = [_knot(rows, cell, pooled_s) for rows, cell in by_rows.items()]
    return tuple(_merged(knots, min_samples=min(MIN_SAMPLES, most)))


def _knot(rows: int, cell: _Cell, pooled_s: Seconds) -> Knot:
    number = len(cell.seconds)
    mean_cached = math.fsum(cell.cached) / number
    spread = 2 * math.sqrt(math.fsum((x - mean_cached) ** 2 for x in cell.cached) / number)
    own_slope = number >= MIN_SLOPE_SAMPLES and spread >= MIN_CACHED_SPREAD
    return Knot(
        rows=rows,
        num_passes=number,
        mean_s=math.fsum(cell.seconds) / number,
        mean_cached_tokens=mean_cached,
        per_token_s=_slope_s([cell]) if own_slope else pooled_s,
    )


def _slope_s(cells: Iterable[_Cell]) -> Seconds:
    """Seconds per cached token by least squares inside each cell, pooled over the cells; never negative."""
    num_samples, over, under = 0, 0.0, 0.0
    for cell in cells:
        number = len(cell.seconds)
        mean_x, mean_y = math.fsum(cell.cached) / number, math.fsum(cell.seconds) / number
        over += math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(cell.cached, cell.seconds, strict=True))
        under += math.fsum((x - mean_x) ** 2 for x in cell.cached)
        num_samples += number
    is_wide = num_samples and 2 * math.sqrt(under / num_samples) >= MIN_CACHED_SPREAD
    return max(0.0, over / under) if is_wide else 0.0


def _merged(knots: Sequence[Knot], *, min_samples: int) -> Iterable[Knot]:
    """Knots in order of rows, rare ones joined with their wider neighbours; the last joins the one before it."""
    done: list[Knot] = []
    pending: Knot | None = None
    for knot in knots:
        pending = knot if pending is None else _join(pending, knot)
        if pending.num_passes >= min_samples:
            done.append(pending)
            pending = None
    if pending is not None:
        done.append(_join(done.pop(), pending) if done and pending.num_passes * 2 < min_samples else pending)
    return done


def _join(one: Knot, other: Knot) -> Knot:
    number = one.num_passes + other.num_passes

    def mean(a: float, b: float) -> float:
        return (a * one.num_passes + b * other.num_passes) / number

    return replace(
        one,
        rows=mean(one.rows, other.rows),
        num_passes=number,
        mean_s=mean(one.mean_s, other.mean_s),
        mean_cached_tokens=mean(one.mean_cached_tokens, other.mean_cached_tokens),
        per_token_s=mean(one.per_token_s, other.per_token_s),
    )


def _line_on(steps: _Steps, rows: int, width: int) -> Line:
    """Base and slope of a pass of some rows: from its step, or where that was not met as of a pass as wide as its step."""
    if width == _AS_ASKED and width in steps:
        return _line_at(steps[width], rows)
    if width in steps:
        return _line_at(steps[width], min(rows, steps[width][-1].rows))
    widths = sorted(set(steps) - {_AS_ASKED})
    knots = [replace(reduce(_join, steps[one]), rows=one) for one in widths]
    return _line_at([*knots, *steps.get(_AS_ASKED, ())], width or rows)


def _line_at(knots: Sequence[Knot], rows: float) -> Line:
    """Base and slope at a width: between two knots, or along the last two beyond them; never falling below the last knot."""
    if rows <= knots[0].rows or len(knots) == 1:
        return Line(knots[0].base_s, knots[0].per_token_s)
    right = next((i for i, knot in enumerate(knots) if knot.rows >= rows), len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    share = (rows - low.rows) / (high.rows - low.rows)
    if share > 1 and high.base_s < low.base_s:
        return Line(high.base_s, high.per_token_s)
    slope_s = low.per_token_s + share * (high.per_token_s - low.per_token_s)
    return Line(low.base_s + share * (high.base_s - low.base_s), max(0.0, slope_s))


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 where fewer than two values tell nothing."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
