"""Every figure: a noun and an axis in, the axis out. Measured are points with whiskers, predicted a line.

matplotlib is asked for by whoever makes the axis: `pip install 's2d[notebooks]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perfmodel.units import Frac

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedPoint:
    """One configuration, predicted and measured."""

    pair: str
    predicted: float
    measured: float
    measured_noise_frac: Frac
    """Relative error of the measurement, seen between its own repeats."""


def predicted_against_measured(points: Sequence[PredictedPoint], axis: Axes, *, median_error_frac: Frac) -> Axes:
    """Measured over predicted speedup, a colour per pair; the line is perfect prediction, the dashes are no speedup."""
    ends = [min(min(p.predicted, p.measured) for p in points) * 0.95, max(max(p.predicted, p.measured) for p in points) * 1.05]
    axis.plot(ends, ends, color="0.3", linewidth=1, label="predicted = measured")
    for pair in dict.fromkeys(point.pair for point in points):
        group = [point for point in points if point.pair == pair]
        axis.errorbar(
            [point.predicted for point in group],
            [point.measured for point in group],
            yerr=[point.measured * point.measured_noise_frac for point in group],
            fmt="o",
            markersize=4,
            linewidth=1,
            label=pair,
        )
    axis.axhline(1.0, color="0.6", linewidth=1, linestyle="--")
    axis.axvline(1.0, color="0.6", linewidth=1, linestyle="--")
    axis.set(xlim=ends, ylim=ends, xlabel="predicted speedup (ratio)", ylabel="measured speedup (ratio)")
    axis.set_title(f"{len(points)} configurations, median error {100 * median_error_frac:.1f} %")
    axis.legend(frameon=False, fontsize=8)
    return axis
