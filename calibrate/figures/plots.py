"""Figures of notebooks and benchmarks.

Each function draws one result on a matplotlib axis and returns the axis. Measurements are points with whiskers, predictions
are lines. The caller creates the axis, which needs the `notebooks` extra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibrate.pricing.layer_overhead import ExitCost
from perfmodel.core.units import MEGA, MILLI, Bytes, Frac, Seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calibrate.search.cross_validation import LearningPoint
    from perfmodel.core.units import Floats
    from perfmodel.policies.policy import CalibrationCurve


COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedPoint:
    """The speedup of one configuration, predicted and measured."""

    pair: str
    predicted: float
    measured: float
    measured_noise_frac: Frac
    """Relative error of the measurement, from its own repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeError:
    """The error of one pass of a model that was left out of a fit."""

    device: str
    layer_weight_bytes: Bytes
    """Weights of one layer on each device."""
    error_frac: Frac
    """Predicted over measured seconds, minus one."""


def held_out_errors(points: Sequence[ShapeError], axis: Axes, *, interval_frac: Mapping[str, Frac]) -> Axes:
    """Held-out errors by the size of a layer, one colour per device. A band is the 90 % interval that a fit states."""
    for color, device in zip(COLORS, dict.fromkeys(point.device for point in points), strict=False):
        group = [point for point in points if point.device == device]
        sizes = [point.layer_weight_bytes / MEGA for point in group]
        axis.scatter(sizes, [100 * point.error_frac for point in group], s=12, color=color, label=device)
        if device in interval_frac:
            half = 100 * interval_frac[device]
            axis.fill_between([min(sizes), max(sizes)], -half, half, color=color, alpha=0.12, linewidth=0)
    axis.axhline(0.0, color="0.3", linewidth=1)
    axis.set(xscale="log", xlabel="weights of a layer on one device (MB)", ylabel="predicted over measured time (%)")
    mean = sum(abs(point.error_frac) for point in points) / len(points)
    axis.set_title(f"{len(points)} passes of models left out of the fit: mean error {100 * mean:.1f} %")
    axis.legend(frameon=False, fontsize=8)
    return axis


def depth_effect(token_s: Mapping[str, Mapping[int, Seconds]], axis: Axes) -> Axes:
    """Time of a drafted token by depth, for drafts of one size; one line per launch mode."""
    for color, (mode, by_depth) in zip(COLORS, token_s.items(), strict=False):
        depths = sorted(by_depth)
        axis.plot(depths, [by_depth[depth] / MILLI for depth in depths], marker="o", markersize=4, color=color, label=mode)
    axis.set(xlabel="layers, with the same number of weights", ylabel="time of a drafted token (ms)", ylim=(0, None))
    ratios = {mode: by_depth[max(by_depth)] / by_depth[min(by_depth)] for mode, by_depth in token_s.items()}
    labels = ", ".join(f"{ratio:.1f}x {mode}" for mode, ratio in ratios.items())
    axis.set_title(f"Deepest over shallowest: {labels}")
    axis.legend(frameon=False, fontsize=8)
    return axis


def exit_costs(costs: Sequence[ExitCost], axis: Axes) -> Axes:
    """Parts of the time of a drafted token, by the exit where it leaves."""
    labels = [f"exit {cost.exit_layer}" for cost in costs]
    below = [0.0] * len(costs)
    parts = {"layers": "layers_s", "overhead and launches": "overhead_s", "LM head at each exit": "checks_s"}
    for color, (label, field) in zip(COLORS, parts.items(), strict=False):
        sizes = [getattr(cost, field) / MILLI for cost in costs]
        axis.bar(labels, sizes, bottom=below, color=color, label=label, width=0.6)
        below = [low + size for low, size in zip(below, sizes, strict=True)]
    shares = " / ".join(f"{100 * cost.overhead_frac:.0f} %" for cost in costs)
    axis.set(ylabel="time of a drafted token (ms)")
    axis.set_title(f"Overhead takes {shares}")
    axis.legend(frameon=False, fontsize=8)
    return axis


def reliability(confidence: Floats, agreed: Floats, axis: Axes, *, curve: CalibrationCurve, num_bins: int = 10) -> Axes:
    """Agreement of the target by an exit's confidence: bins of equal size as points, the fitted curve as a line.

    Args:
        confidence: of the exit at each position. [P].
        agreed: agreement at the same positions. [P].
        axis: where to draw.
        curve: the fitted curve.
        num_bins: number of points.
    """
    order = confidence.argsort(kind="stable")
    parts = [order[len(order) * i // num_bins : len(order) * (i + 1) // num_bins] for i in range(num_bins)]
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="agreement = confidence")
    grid = [i / 100 for i in range(101)]
    axis.plot(grid, [curve(value) for value in grid], color="tab:orange", label="fitted")
    axis.scatter(
        [confidence[part].mean() for part in parts], [agreed[part].mean() for part in parts], s=18, label="measured", zorder=3
    )
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="agreement")
    return axis


def accepted_by_position(shares: Mapping[str, Sequence[Frac]], axis: Axes) -> Axes:
    """Share of rounds that accept each drafted position, one line per exit; dashed: if positions were independent."""
    for color, (label, by_position) in zip(COLORS, shares.items(), strict=False):
        positions = range(1, len(by_position) + 1)
        axis.plot(positions, by_position, marker="o", markersize=4, color=color, label=label)
        axis.plot(positions, [by_position[0] ** position for position in positions], color=color, linewidth=1, linestyle="--")
    axis.set(xlabel="position in the block", ylabel="share of rounds that accept it", ylim=(0, 1))
    axis.legend(frameon=False, fontsize=8)
    return axis


def landscape(speedups: Sequence[Sequence[float]], rows: Sequence[float], columns: Sequence[float], axis: Axes) -> Axes:
    """Predicted speedup over two settings, with a cross at the best. `speedups[i][j]` belongs to rows[i] and columns[j]."""
    flat = [(value, i, j) for i, line in enumerate(speedups) for j, value in enumerate(line)]
    best, i, j = max(flat)
    filled = axis.contourf(columns, rows, speedups, levels=14, cmap="viridis")
    axis.figure.colorbar(filled, ax=axis, label="predicted speedup (ratio)")
    axis.plot([columns[j]], [rows[i]], marker="x", color="white", markersize=8)
    axis.set_title(f"best {best:.2f}x")
    return axis


def speedup_by_exits(speedups: Mapping[str, float], axis: Axes) -> Axes:
    """The best predicted speedup with each set of active exits, best on top."""
    ordered = sorted(speedups.items(), key=lambda item: item[1])
    axis.barh([name for name, _ in ordered], [speedup for _, speedup in ordered], color=COLORS[0], height=0.6)
    axis.axvline(1.0, color="0.3", linewidth=1)
    axis.set(xlabel="predicted speedup (ratio)")
    return axis


def learning(curve: Sequence[LearningPoint], axis: Axes) -> Axes:
    """Speedup that a search predicts, and that its policy gives on other prompts, by the number of prompts searched."""
    numbers = [point.num_prompts for point in curve]
    axis.plot(numbers, [point.best_speedup for point in curve], color="0.3", linewidth=1, label="best on the other prompts")
    axis.plot(
        numbers, [point.seen_speedup for point in curve], marker="o", markersize=4, label="predicted on the prompts searched"
    )
    axis.plot(numbers, [point.unseen_speedup for point in curve], marker="o", markersize=4, label="reached on other prompts")
    axis.set(xscale="log", xlabel="prompts searched", ylabel="speedup (ratio)")
    axis.set_xticks(numbers, [str(number) for number in numbers], minor=False)
    axis.legend(frameon=False, fontsize=8)
    return axis


def predicted_against_measured(points: Sequence[PredictedPoint], axis: Axes, *, median_error_frac: Frac) -> Axes:
    """Measured against predicted speedup, one colour per pair. The line is a perfect prediction; dashes mark no speedup."""
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
