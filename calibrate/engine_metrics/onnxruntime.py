"""Metrics of ONNX Runtime GenAI: `Generator.get_speculative_stats()` of each prompt, as JSON.

Rounds emit every token, the first one included. Accepted tokens beyond the length limit are counted. `acceptance_rate` is not
read: it divides by evaluated, not by proposed tokens. Measured with 0.18.0; source: docs/SpeculativeDecoding.md.
"""

from __future__ import annotations

from calibrate.engine_metrics.fields import Fields
from calibrate.engine_metrics.metrics import Metrics, RoundCounts, checked_rounds
from calibrate.engine_metrics.metrics_file import MetricsFile
from perfmodel.core.units import Seconds
from perfmodel.results.engine_report import EngineCounts

ENGINE = "onnxruntime"
_BASELINE = "plain decoding is ONNX Runtime's own estimate, the mean of its single-token target passes"


def is_statistics(file: MetricsFile) -> bool:
    """Whether the objects are speculative statistics of ONNX Runtime GenAI."""
    return file.first.has("draft_tokens_proposed", "draft_tokens_accepted", "rounds")


def read_statistics(file: MetricsFile) -> Metrics:
    """One run for every generator."""
    runs = tuple(_statistics(fields) for fields in file.objects)
    lengths = {fields.count("effective_k") for fields in file.objects}
    is_adaptive = any(fields.count("adaptive_k_observations") for fields in file.objects)
    plain_token_s = _plain_token_s(file)
    notes = ["no seconds: add decode_s, measured around the loop, to each line"] if runs[0].decode_s is None else []
    excess = sum((run.num_rounds or 0) + (run.num_accepted or 0) - (run.num_tokens or 0) for run in runs)
    if excess > 0:
        notes.append(f"ONNX Runtime counts {excess} tokens beyond the length limit: tokens per round are of delivered tokens")
    return Metrics(
        engine=ENGINE,
        draft_tokens=lengths.pop() if len(lengths) == 1 and not is_adaptive else None,
        runs=runs,
        plain_token_s=plain_token_s,
        notes=(*notes, *((_BASELINE,) if plain_token_s else ())),
    )


def _statistics(fields: Fields) -> EngineCounts:
    fallback_steps = fields.count("standard_fallback_steps") or 0
    counts = RoundCounts(
        num_rounds=fields.required_count("rounds"),
        num_drafted=fields.required_count("draft_tokens_proposed"),
        num_accepted=fields.required_count("draft_tokens_accepted"),
    )
    checked_rounds(fields.path, fields.where, counts)
    num_tokens = fields.count("num_tokens")
    if num_tokens is None:
        num_tokens = fields.required_count("tokens_emitted") + fallback_steps
    return EngineCounts(
        prompt=fields.text("prompt"),
        num_tokens=num_tokens,
        num_rounds=counts.num_rounds + fallback_steps,
        num_drafted=counts.num_drafted,
        num_accepted=counts.num_accepted,
        decode_s=fields.number("decode_s"),
        draft_s=fields.milliseconds("total_draft_ms"),
        verify_s=fields.milliseconds("total_target_ms"),
    )


def _plain_token_s(file: MetricsFile) -> Seconds | None:
    """Seconds of a plain token by the engine's estimate; None if it ran no single-token pass of the target, and reports 0."""
    baselines = [fields.milliseconds("target_baseline_ms_per_token") or 0.0 for fields in file.objects]
    known = [baseline_s for baseline_s in baselines if baseline_s > 0]
    return sum(known) / len(known) if known and len(known) == len(baselines) else None
