"""Residuals as text: predicted, measured, and the error from each source."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Facts, Table, sentence_blocks
from perfmodel.core.units import Frac, format_frac, format_seconds, format_signed_frac, format_speedup
from perfmodel.results.plan_text import PASS_NAMES, interval_text

if TYPE_CHECKING:
    from perfmodel.results.residuals import PassResidual, Pricing, Residuals

_PRICING_TEXTS: dict[Pricing, str] = {
    "evidence": "measured rounds, pass by pass, with the plan's latency evidence",
    "plan": "measured rounds, with the plan's mean seconds per pass (give its --profile files to price each shape)",
    "counters": "the engine's rounds and drafted tokens, with the plan's mean seconds",
}
_UNKNOWN = "not reported"


def residuals_blocks(residuals: Residuals, *, explain: bool) -> list[Block]:
    """The answer of `s2d-compare`.

    Args:
        residuals: the result.
        explain: whether to add the acceptance by position, if an engine reports it, and the error of each kind of pass.
    """
    details: list[Block] = []
    if explain and residuals.measured_by_position:
        details.append(_positions_table(residuals))
    if explain and residuals.passes:
        details.append(_passes_table(residuals))
    next_step = sentence_blocks(residuals.next_step, label="next: ")
    return [Facts(_compared(residuals)), _errors_table(residuals), *details, *next_step]


def _compared(residuals: Residuals) -> list[tuple[str, str]]:
    prompts = _UNKNOWN if residuals.measured_prompts is None else str(residuals.measured_prompts)
    is_engine = residuals.pricing == "counters"
    return [
        *([("engine", residuals.engine or _UNKNOWN)] if is_engine else []),
        ("planned" if is_engine else "device", residuals.device.label),
        ("prompts", f"predicted from {residuals.predicted_prompts}, measured on {prompts}"),
        ("priced", _PRICING_TEXTS[residuals.pricing]),
        *(("note", note) for note in residuals.notes),
    ]


def _errors_table(residuals: Residuals) -> Table:
    tokens = f"{residuals.predicted_tokens_per_round:.3f}", f"{residuals.measured_tokens_per_round:.3f}"
    round_s = residuals.measured_round_s
    seconds = format_seconds(residuals.repriced_round_s), _UNKNOWN if round_s is None else format_seconds(round_s)
    speedups = format_speedup(residuals.predicted_speedup), _measured_text(residuals)
    rows = [
        ["acceptance", _signed(residuals.acceptance_error_frac), "tokens per round", *tokens],
        ["latency", _signed(residuals.latency_error_frac), "seconds per measured round", *seconds],
        ["total", _signed(residuals.total_error_frac), "speedup", *speedups],
    ]
    return Table(rows, ["source", "error of the speedup", "quantity", "predicted", "measured"], "lrlrr")


def _measured_text(residuals: Residuals) -> str:
    """The measured speedup with its interval, as far as they are known."""
    if residuals.measured_speedup is None:
        return _UNKNOWN
    value = format_speedup(residuals.measured_speedup)
    interval = residuals.measured_interval
    return value if interval is None else f"{value} ({interval_text(interval)})"


def _signed(frac: Frac | None) -> str:
    """A signed percentage. A rounding error is `+0.0 %`, not `-0.0 %`."""
    return "unknown" if frac is None else format_signed_frac(round(frac, 6) + 0.0)


def _positions_table(residuals: Residuals) -> Table:
    """Whether low acceptance is of the first drafted token, or of later ones alone."""
    pairs = zip_longest(residuals.predicted_by_position, residuals.measured_by_position, fillvalue=0.0)
    rows = [[str(n), format_frac(predicted), format_frac(measured)] for n, (predicted, measured) in enumerate(pairs, 1)]
    return Table(rows, ["rounds that accept at least", "predicted", "measured"], "rrr")


def _passes_table(residuals: Residuals) -> Table:
    return Table([*map(_pass_row, residuals.passes)], ["passes", "number", "predicted", "measured", "error"])


def _pass_row(part: PassResidual) -> list[str]:
    arm = "" if part.arm == "plan" else "plain decoding: "
    predicted, measured = format_seconds(part.predicted_s), format_seconds(part.measured_s)
    return [arm + PASS_NAMES[part.kind], str(part.num_passes), predicted, measured, _signed(part.error_frac)]
