"""Residuals as text for people: predicted beside measured, and which part of the difference is whose."""

from __future__ import annotations

from calibrate.pricing.pricing import key_text
from calibrate.text.plan_text import PASS_NAMES, facts_text, interval_text
from perfmodel.core.console import table
from perfmodel.core.units import Frac, format_seconds, format_signed_frac, format_speedup
from perfmodel.results.residuals import PassResidual, Residuals


def residuals_text(residuals: Residuals) -> str:
    """The whole answer of `s2d-compare`."""
    return "\n\n".join([_compared(residuals), _errors(residuals), _pass_errors(residuals), f"next: {residuals.next_step}"])


def _compared(residuals: Residuals) -> str:
    pricing = {
        "evidence": "measured rounds, pass by pass, by the latency evidence of the plan",
        "plan": "measured rounds, by the plan's mean seconds per pass (give its --profile files to price each shape)",
    }
    return facts_text(
        [
            ("device", key_text(residuals.device)),
            ("prompts", f"{residuals.predicted_prompts} behind the prediction, {residuals.measured_prompts} measured"),
            ("priced", pricing[residuals.pricing]),
        ]
    )


def _errors(residuals: Residuals) -> str:
    measured = residuals.measured_speedup
    measured_text = f"{format_speedup(measured.value)} ({interval_text(measured)})"
    because = [
        ("tokens per round", f"{residuals.predicted_tokens_per_round:.3f}", f"{residuals.measured_tokens_per_round:.3f}"),
        ("measured rounds", format_seconds(residuals.repriced_round_s), format_seconds(residuals.measured_round_s)),
        ("speedup", format_speedup(residuals.predicted_speedup), measured_text),
    ]
    errors = (residuals.acceptance_error_frac, residuals.latency_error_frac, residuals.total_error_frac)
    names = ("acceptance", "latency", "in all")
    rows = [[name, _signed(error), *texts] for name, error, texts in zip(names, errors, because, strict=True)]
    return table(rows, headers=["error by", "of speedup", "seen in", "predicted", "measured"], align="lrlrr")


def _signed(frac: Frac) -> str:
    """A difference as a percentage; one that is nothing but rounding is `+0.0 %`, not `-0.0 %`."""
    return format_signed_frac(round(frac, 6) + 0.0)


def _pass_errors(residuals: Residuals) -> str:
    return table([_pass_row(part) for part in residuals.passes], headers=["passes", "number", "predicted", "measured", "error"])


def _pass_row(part: PassResidual) -> list[str]:
    arm = "" if part.arm == "plan" else "plain decoding: "
    predicted, measured = format_seconds(part.predicted_s), format_seconds(part.measured_s)
    return [arm + PASS_NAMES[part.kind], str(part.num_passes), predicted, measured, _signed(part.error_frac)]
