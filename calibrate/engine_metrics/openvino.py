"""Metrics of OpenVINO GenAI: `extended_perf_metrics` of a result, as JSON.

The first pass of both models is over the prompt. OpenVINO's own counts of drafted and accepted tokens leave the last round
out, so rounds and drafted tokens are counted from the durations of passes. Measured with 2026.4.1.
"""

from __future__ import annotations

import math

from calibrate.engine_metrics.fields import Fields
from calibrate.engine_metrics.metrics import Metrics, RoundCounts, checked_rounds, without_first_token
from calibrate.engine_metrics.metrics_file import MetricsFile
from perfmodel.core.units import Seconds
from perfmodel.results.engine_report import EngineCounts

ENGINE = "openvino"


def is_results(file: MetricsFile) -> bool:
    """Whether the objects are metrics of OpenVINO's results."""
    return file.first.has("num_generated_tokens", "generate_duration_ms")


def read_results(file: MetricsFile) -> Metrics:
    """One run for every result."""
    runs, num_reported, num_accepted = [], 0, 0
    for fields in file.objects:
        run = _result(fields)
        runs.append(run)
        extended = fields.child("extended_perf_metrics")
        num_reported += (extended.count("num_accepted_tokens") if extended else None) or 0
        num_accepted += run.num_accepted or 0
    note = f"OpenVINO's {num_reported} accepted tokens leave the last round of each request out; all rounds have {num_accepted}"
    return Metrics(engine=ENGINE, runs=tuple(runs), notes=(note,) if num_reported else ())


def _result(fields: Fields) -> EngineCounts:
    num_tokens = without_first_token(fields, "num_generated_tokens", fields.required_count("num_generated_tokens"))
    decode_s = _decode_s(fields)
    extended = fields.child("extended_perf_metrics")
    if extended is None:
        return EngineCounts(prompt=fields.text("prompt"), num_tokens=num_tokens, num_rounds=num_tokens, decode_s=decode_s)
    verify, draft = (_durations_s(extended.required(name)) for name in ("main_model_metrics", "draft_model_metrics"))
    num_rounds = len(verify)
    if num_rounds > num_tokens:
        raise extended.error("m_durations", f"at most {num_tokens} rounds for as many tokens", num_rounds)
    counts = RoundCounts(num_rounds=num_rounds, num_drafted=len(draft), num_accepted=num_tokens - num_rounds)
    checked_rounds(fields.path, fields.where, counts)
    return EngineCounts(
        prompt=fields.text("prompt"),
        num_tokens=num_tokens,
        num_rounds=counts.num_rounds,
        num_drafted=counts.num_drafted,
        num_accepted=counts.num_accepted,
        decode_s=decode_s,
        draft_s=math.fsum(draft),
        verify_s=math.fsum(verify),
    )


def _decode_s(fields: Fields) -> Seconds | None:
    total_s, first_token_s = fields.milliseconds("generate_duration_ms"), fields.milliseconds("ttft_ms")
    if total_s is None or first_token_s is None:
        return None
    if first_token_s > total_s:
        raise fields.error("ttft_ms", "at most generate_duration_ms", fields.values["ttft_ms"])
    return total_s - first_token_s


def _durations_s(model: Fields) -> tuple[Seconds, ...]:
    """Seconds of every pass of a model after the one over the prompt."""
    durations = model.numbers("m_durations")
    if not durations:
        raise model.error("m_durations", "the microseconds of every pass", model.values.get("m_durations"))
    return tuple(duration / 1e6 for duration in durations[1:])
