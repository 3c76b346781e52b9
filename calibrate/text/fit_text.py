"""A fit of the latency law as text for people: its coefficients, how sure they are, and what it covers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TypeAlias

from calibrate.pricing.pricing import key_text
from calibrate.text.plan_text import PAGE_CHARS
from perfmodel.core.console import table
from perfmodel.core.units import (
    format_bytes,
    format_bytes_per_s,
    format_flops_per_s,
    format_frac,
    format_number,
    format_seconds,
)
from perfmodel.passes.latency_law import LatencyFit

LABEL_CHARS = 10

_Format: TypeAlias = Callable[[float], str]

_TIMES: dict[str, str] = {
    "pass_s": "starting a pass",
    "sync_s": "waiting for a result",
    "round_s": "bookkeeping of a round",
    "round_row_s": "the same, per drafted token",
    "layer_s": "floor of a layer",
    "row_layer_s": "the same, per row",
    "many_rows_layer_s": "the same, with several rows",
    "host_layer_s": "launching a layer",
    "all_reduce_s": "an all-reduce",
}
_RATES: dict[str, tuple[str, _Format]] = {
    "weight_byte_s": ("reading weights", format_bytes_per_s),
    "many_rows_byte_s": ("reading them again, with several rows", format_bytes_per_s),
    "far_byte_s": ("fetching them from beyond the caches", format_bytes_per_s),
    "flop_s": ("matrix products", format_flops_per_s),
    "kv_byte_s": ("reading the KV cache", format_bytes_per_s),
    "attn_flop_s": ("attention over it", format_flops_per_s),
    "link_byte_s": ("sending to other devices", format_bytes_per_s),
}
NEGLIGIBLE = 1e-3
"""A coefficient that is smaller than this part of its standard error is what the solver leaves of 0."""
UNDETERMINED = "not determined"


def fit_text(fit: LatencyFit) -> str:
    """The whole answer of `s2d-plan fit`."""
    return "\n\n".join([_understood(fit), _coefficients(fit), _quality(fit)])


def _understood(fit: LatencyFit) -> str:
    domain = fit.domain
    layer = f"{format_bytes(domain.min_layer_weight_bytes)} to {format_bytes(domain.max_layer_weight_bytes)}"
    widest = f"up to {domain.max_layers} of them, {domain.max_rows} rows and {domain.max_cached_tokens} cached tokens"
    return "\n".join(
        [
            f"device    {key_text(fit.device)}",
            f"passes    {_wrapped(f'{fit.num_samples} of {len(fit.models)} models, {fit.source}')}",
            f"models    {_wrapped(', '.join(fit.models))}",
            f"covered   layers of {layer}, {widest}",
        ]
    )


def _wrapped(text: str) -> str:
    """Text beside a label, its further lines below its first."""
    return textwrap.fill(text, PAGE_CHARS - LABEL_CHARS).replace("\n", "\n" + " " * LABEL_CHARS)


def _coefficients(fit: LatencyFit) -> str:
    """Every term that shows; a rate is one over its coefficient."""
    rows = []
    for term, label in _TIMES.items():
        value_s, error_s = getattr(fit.law, term), getattr(fit.standard_error, term)
        if error_s:
            is_known = value_s >= NEGLIGIBLE * error_s
            rows.append([label, format_seconds(value_s), format_seconds(error_s)] if is_known else [label, UNDETERMINED, ""])
    for term, (label, text) in _RATES.items():
        value, error = getattr(fit.law, term), getattr(fit.standard_error, term)
        if error and value:
            is_known = value >= NEGLIGIBLE * error
            rows.append([label, text(1 / value), text(error / value**2)] if is_known else [label, UNDETERMINED, ""])
    if fit.standard_error.cache_bytes:
        sizes = (fit.law.cache_bytes, fit.standard_error.cache_bytes)
        rows.append(["weights that the caches keep", *map(format_bytes, sizes)])
    return table(rows, headers=["term", "fitted", "standard error"])


def _quality(fit: LatencyFit) -> str:
    lines = [f"mean error on the passes it was fitted to: {format_frac(fit.residual_frac)}"]
    if fit.held_out_error_frac is None or fit.held_out_90_frac is None:
        sigmas = format_number(100 * fit.error_frac)
        lines.append(f"one model alone tells nothing of others: ± {sigmas} % assumed. Profile other shapes: s2d-profile law")
    else:
        lines.append(f"mean error on a model left out of the fit:  {format_frac(fit.held_out_error_frac)}")
        lines.append(f"nine in ten of those passes were off by less than {format_frac(fit.held_out_90_frac)}")
    return "\n".join(lines)
