"""A validation as text: how well the latency law predicts published speeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Paragraph, Table
from perfmodel.core.units import format_frac, format_interval, format_number, format_signed_frac, format_speedup

if TYPE_CHECKING:
    from perfmodel.results.validation import Explanation, PublishedPoint, Validation

SHOWN_EXPLANATIONS = 3
"""Devices and launch modes beside which S2D's table is printed."""


def validation_blocks(validation: Validation, *, explain: bool) -> list[Block]:
    """The answer of `s2d-plan validate`.

    Args:
        validation: the result.
        explain: whether to add every published point and S2D's table.
    """
    best = validation.explanations[0]
    devices, hypothesis = _devices_table(validation), Paragraph(_hypothesis_text(best, explain=explain))
    if not explain:
        return [devices, hypothesis]
    points = validation.points
    sources = dict.fromkeys(point.source for point in points)
    return [
        _points_table(points, list(sources)),
        Paragraph("Sources: " + "; ".join(f"[{number}] {source}" for number, source in enumerate(sources, start=1)) + "."),
        devices,
        hypothesis,
        *(
            _explanations_table(validation.explanations[first : first + SHOWN_EXPLANATIONS])
            for first in range(0, len(validation.explanations), SHOWN_EXPLANATIONS)
        ),
    ]


def _points_table(points: tuple[PublishedPoint, ...], sources: list[str]) -> Table:
    rows = [
        [
            f"{point.model}, {point.weights}, {point.mode}",
            f"{point.num_devices} x {point.device}",
            format_number(point.published_tokens_per_s),
            format_number(point.predicted_tokens_per_s),
            format_interval(point.interval.low, point.interval.high, format_number),
            format_signed_frac(point.error_frac),
            f"[{sources.index(point.source) + 1}]" + ("" if point.role == "held-out" else f" used: {point.note}"),
        ]
        for point in points
    ]
    headers = ["model", "device", "published", "predicted", "90 % interval", "error", "source"]
    title = (
        "Plain decoding in tokens/s. The error is that of the predicted time. Points marked as used gave a number to the law "
        "and are not counted below."
    )
    return Table(rows, headers, "llrrrrl", title)


def _devices_table(validation: Validation) -> Table:
    rows = [
        [
            f"{error.device}, {error.mode}",
            str(error.num_points),
            format_frac(error.mape_frac),
            format_signed_frac(error.mean_error_frac),
            format_frac(error.covered_frac),
            format_signed_frac(error.bound_mean_error_frac),
        ]
        for error in validation.devices
    ]
    headers = ["device and mode", "points", "mean |error|", "mean error", "in 90 % interval", "lower bound's mean error"]
    used = sum(point.role == "used" for point in validation.points)
    title = (
        f"{len(validation.points) - used} published speeds of plain decoding that the law did not use ({used} more were used): "
        "error of the predicted time. The lower bound counts bytes over bandwidth only."
    )
    return Table(rows, headers, title=title)


def _hypothesis_text(best: Explanation, *, explain: bool) -> str:
    """Which device and mode S2D's own table fits best, and on what assumptions."""
    text = (
        f"S2D's own speedups are explained best by {best.device} with mode {best.mode}: mean absolute error "
        f"{format_frac(best.mean_abs_error_frac)}. The paper gives neither its GPU nor its mode."
    )
    if not explain:
        return text
    return (
        f"{text} Assumed here: fp16, the fewest devices that hold the models, 512 prompt and 256 output tokens, +2/-1 draft "
        "lengths, and accepted tokens that include the target's own."
    )


def _explanations_table(explanations: tuple[Explanation, ...]) -> Table:
    """S2D's table beside its prediction for some devices and modes, the best explanation first."""
    first = explanations[0]
    rows = [
        [
            f"{speedup.target}: {speedup.policy.split(',')[0]}",
            format_speedup(speedup.published),
            *(format_speedup(other.speedups[row].predicted) for other in explanations),
        ]
        for row, speedup in enumerate(first.speedups)
    ]
    rows.append(["mean absolute error", "", *(format_frac(other.mean_abs_error_frac) for other in explanations)])
    return Table(rows, ["S2D's table", "published", *(f"{other.device} {other.mode}" for other in explanations)])
