"""A fit of the latency law as text: coefficients, errors, and covered shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from perfmodel.core.blocks import Block, Facts, Table, sentence_blocks
from perfmodel.core.units import (
    format_bytes,
    format_bytes_per_s,
    format_flops_per_s,
    format_frac,
    format_number,
    format_seconds,
)

if TYPE_CHECKING:
    from perfmodel.passes.latency_law import LatencyFit

_Format: TypeAlias = Callable[[float], str]

_TIMES: dict[str, str] = {
    "pass_s": "starting a pass",
    "sync_s": "waiting for a result",
    "round_s": "bookkeeping per round",
    "round_row_s": "bookkeeping per drafted token",
    "layer_s": "one layer, fixed part",
    "row_layer_s": "one layer, per row",
    "many_rows_layer_s": "one layer, with several rows",
    "host_layer_s": "launching a layer",
    "all_reduce_s": "an all-reduce",
}
_RATES: dict[str, tuple[str, _Format]] = {
    "weight_byte_s": ("reading weights", format_bytes_per_s),
    "many_rows_byte_s": ("reading weights again, several rows", format_bytes_per_s),
    "far_byte_s": ("reading weights from outside the caches", format_bytes_per_s),
    "flop_s": ("matrix products", format_flops_per_s),
    "kv_byte_s": ("reading the KV cache", format_bytes_per_s),
    "attn_flop_s": ("attention over the KV cache", format_flops_per_s),
    "link_byte_s": ("sending to other devices", format_bytes_per_s),
}
_SUMMARY = ("layer_s", "weight_byte_s", "flop_s")
"""Terms that the default text shows: they make up most of a pass."""
NEGLIGIBLE = 1e-3
"""A coefficient below this share of its standard error is a numerical remainder of 0."""
UNDETERMINED = "not determined"
SHOWN_MODELS = 3


def fit_blocks(fit: LatencyFit, *, explain: bool) -> list[Block]:
    """The answer of `s2d-plan fit`.

    Args:
        fit: the result.
        explain: whether to show all models and coefficients.
    """
    terms = [term for term in (*_TIMES, *_RATES) if explain or term in _SUMMARY]
    rows = [row for term in terms for row in _term_rows(fit, term)]
    if explain and fit.standard_error.cache_bytes:
        sizes = fit.law.cache_bytes, fit.standard_error.cache_bytes
        rows.append(["weights that stay in the caches", *map(format_bytes, sizes)])
    blocks: list[Block] = [Facts(_fit_facts(fit, explain=explain)), Table(rows, ["term", "fitted", "standard error"])]
    if fit.held_out_error_frac is None or fit.held_out_90_frac is None:
        sigma = format_number(100 * fit.error_frac)
        blocks += sentence_blocks(
            f"The error on other models is unknown, because one model was fitted: ± {sigma} % is assumed. To measure it, "
            "profile other shapes: s2d-profile law"
        )
    return blocks


def _fit_facts(fit: LatencyFit, *, explain: bool) -> list[tuple[str, str]]:
    domain = fit.domain
    layer = f"{format_bytes(domain.min_layer_weight_bytes)} to {format_bytes(domain.max_layer_weight_bytes)}"
    size = f"up to {domain.max_layers} layers, {domain.max_rows} rows and {domain.max_cached_tokens} cached tokens"
    shown = fit.models if explain else fit.models[:SHOWN_MODELS]
    more = f" and {len(fit.models) - len(shown)} more" if len(shown) < len(fit.models) else ""
    facts = [
        ("device", fit.device.label),
        ("passes", f"{fit.num_samples} of {len(fit.models)} model{'s' if len(fit.models) > 1 else ''}, {fit.source}"),
        ("models", ", ".join(shown) + more),
        ("covered", f"layers of {layer}, {size}"),
        ("error", f"{format_frac(fit.residual_frac)} on the fitted passes (mean)"),
    ]
    if fit.held_out_error_frac is not None and fit.held_out_90_frac is not None:
        mean, nine_in_ten = format_frac(fit.held_out_error_frac), format_frac(fit.held_out_90_frac)
        facts.append(("held out", f"{mean} on a model left out of the fit (mean); 90 % of its passes within {nine_in_ten}"))
    return facts


def _term_rows(fit: LatencyFit, term: str) -> list[list[str]]:
    """A coefficient and its error; a coefficient per byte or FLOP as a rate. No row for a term that no pass showed."""
    value, error = getattr(fit.law, term), getattr(fit.standard_error, term)
    if not error or (term in _RATES and not value):
        return []
    label, format_value = (_TIMES[term], format_seconds) if term in _TIMES else _RATES[term]
    if value < NEGLIGIBLE * error:
        return [[label, UNDETERMINED, ""]]
    value, error = (value, error) if term in _TIMES else (1 / value, error / value**2)
    return [[label, format_value(value), format_value(error)]]
