"""Residuals as text: predicted, measured, and the error from each source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Facts, Table, sentence_blocks
from perfmodel.core.units import Frac, format_seconds, format_signed_frac, format_speedup
from perfmodel.results.plan_text import PASS_NAMES, interval_text

if TYPE_CHECKING:
    from perfmodel.results.residuals import PassResidual, Pricing, Residuals

_PRICING_TEXTS: dict[Pricing, str] = {
    "evidence": "measured rounds, pass by pass, with the plan's latency evidence",
    "plan": "measured rounds, with the plan's mean seconds per pass (give its --profile files to price each shape)",
}


def residuals_blocks(residuals: Residuals, *, explain: bool) -> list[Block]:
    """The answer of `s2d-compare`.

    Args:
        residuals: the result.
        explain: whether to add the error of each kind of pass.
    """
    passes: list[Block] = [_passes_table(residuals)] if explain else []
    next_step = sentence_blocks(residuals.next_step, label="next: ")
    return [Facts(_compared(residuals)), _errors_table(residuals), *passes, *next_step]


def _compared(residuals: Residuals) -> list[tuple[str, str]]:
    return [
        ("device", residuals.device.label),
        ("prompts", f"predicted from {residuals.predicted_prompts}, measured on {residuals.measured_prompts}"),
        ("priced", _PRICING_TEXTS[residuals.pricing]),
    ]


def _errors_table(residuals: Residuals) -> Table:
    measured = residuals.measured_speedup
    measured_text = f"{format_speedup(measured.value)} ({interval_text(measured)})"
    tokens = f"{residuals.predicted_tokens_per_round:.3f}", f"{residuals.measured_tokens_per_round:.3f}"
    seconds = format_seconds(residuals.repriced_round_s), format_seconds(residuals.measured_round_s)
    rows = [
        ["acceptance", _signed(residuals.acceptance_error_frac), "tokens per round", *tokens],
        ["latency", _signed(residuals.latency_error_frac), "seconds per measured round", *seconds],
        ["total", _signed(residuals.total_error_frac), "speedup", format_speedup(residuals.predicted_speedup), measured_text],
    ]
    return Table(rows, ["source", "error of the speedup", "quantity", "predicted", "measured"], "lrlrr")


def _signed(frac: Frac) -> str:
    """A signed percentage. A rounding error is `+0.0 %`, not `-0.0 %`."""
    return format_signed_frac(round(frac, 6) + 0.0)


def _passes_table(residuals: Residuals) -> Table:
    return Table([*map(_pass_row, residuals.passes)], ["passes", "number", "predicted", "measured", "error"])


def _pass_row(part: PassResidual) -> list[str]:
    arm = "" if part.arm == "plan" else "plain decoding: "
    predicted, measured = format_seconds(part.predicted_s), format_seconds(part.measured_s)
    return [arm + PASS_NAMES[part.kind], str(part.num_passes), predicted, measured, _signed(part.error_frac)]
