"""Metrics of AIPerf: one line for each request (profile_export.jsonl), or the summary (profile_export_aiperf.json).

Written from the documentation and tests of AIPerf 0.14, not measured here: docs/tutorials/spec-decode-metrics.md. Rounds
without a draft are not in its counts, and accepted tokens are the server's. The first token of a request comes from the pass
over the prompt.
"""

from __future__ import annotations

from typing import Any

from calibrate.engine_metrics.fields import FIX, Fields
from calibrate.engine_metrics.metrics import (
    Metrics,
    RoundCounts,
    by_position,
    checked_rounds,
    plain_steps,
    plain_steps_note,
    without_first_token,
)
from calibrate.engine_metrics.metrics_file import MetricsFile
from perfmodel.core.errors import BadFile, quoted
from perfmodel.core.units import Seconds
from perfmodel.results.engine_report import EngineCounts

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}
_ENGINES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt-llm", "tensorrt_llm": "tensorrt-llm"}
"""AIPerf's names of engines, where they are ours or differ from ours."""


def is_records(file: MetricsFile) -> bool:
    """Whether the objects are AIPerf's records of requests."""
    return file.first.has("metadata", "metrics") and isinstance(file.first.values["metrics"], dict)


def read_records(file: MetricsFile) -> Metrics:
    """One run for every request that was profiled and answered; warm-up and failed ones are left out."""
    records = [fields for fields in file.objects if _is_profiled(fields)]
    if not records:
        raise BadFile(file.path, "no request that was profiled and answered, expected at least one", FIX)
    runs = tuple(_record(fields) for fields in records)
    details = next((found for fields in records if (found := fields.child("spec_decode_acceptance"))), None)
    engine = None if details is None else details.text("engine")
    has_seconds = all(run.decode_s is not None for run in runs)
    notes = [] if has_seconds else ["no seconds from first to last token: profile with --streaming"]
    if (num_left_out := len(file.objects) - len(records)) > 0:
        notes.append(f"{num_left_out} warm-up or failed requests are left out")
    return Metrics(
        engine=_ENGINES.get(engine or "", engine),
        draft_tokens=None if details is None else details.count("num_spec_tokens"),
        runs=runs,
        notes=tuple(notes),
    )


def _is_profiled(fields: Fields) -> bool:
    is_warmup = fields.required("metadata").text("benchmark_phase") == "warmup"
    return not is_warmup and fields.values.get("error") is None


def _record(fields: Fields) -> EngineCounts:
    metrics, details = fields.required("metrics"), fields.child("spec_decode_acceptance")
    length = metrics.child("output_sequence_length")
    emitted = (details.count("completion_tokens") if details else None) or (length.count("value") if length else None)
    if emitted is None:
        raise BadFile(fields.path, f"{fields.where}: no output_sequence_length, expected the tokens of the request", FIX)
    num_tokens = without_first_token(fields, "output_sequence_length", emitted)
    total_s, first_s = (_seconds(metrics, name, "value") for name in ("request_latency", "time_to_first_token"))
    if total_s is not None and first_s is not None and first_s > total_s:
        raise metrics.error("time_to_first_token", "at most request_latency", first_s)
    decode_s = None if total_s is None or first_s is None else total_s - first_s
    if details is None:
        return EngineCounts(num_tokens=num_tokens, decode_s=decode_s)
    counts = _rounds(details, num_steps="num_spec_steps", drafted="num_draft_tokens", accepted="num_accepted_draft_tokens")
    return EngineCounts(
        num_tokens=num_tokens,
        num_rounds=counts.num_rounds + plain_steps(num_tokens, counts),
        num_drafted=counts.num_drafted,
        num_accepted=counts.num_accepted,
        accepted_by_position=counts.accepted_by_position,
        decode_s=decode_s,
    )


def _rounds(details: Fields, *, num_steps: str, drafted: str, accepted: str) -> RoundCounts:
    counts = RoundCounts(
        num_rounds=details.required_count(num_steps),
        num_drafted=details.required_count(drafted),
        num_accepted=details.required_count(accepted),
        accepted_by_position=_histogram(details, "acceptance_histogram"),
    )
    return checked_rounds(details.path, details.where, counts)


def is_summary(file: MetricsFile) -> bool:
    """Whether the object is AIPerf's summary of a run."""
    return file.first.has("input_config", "request_count") or file.first.has("total_spec_decode_steps")


def read_summary(file: MetricsFile) -> Metrics:
    """The one run of a summary. Lengths and latencies are means over requests."""
    fields = file.first
    num_requests = round(_average(fields, "request_count") or 0)
    mean_tokens = _average(fields, "output_sequence_length")
    num_tokens = round(num_requests * (mean_tokens - 1)) if num_requests and mean_tokens else None
    token_s = _seconds(fields, "inter_token_latency", "avg")
    decode_s = None if token_s is None or num_tokens is None else token_s * num_tokens
    notes = ["AIPerf's summary names no engine", "seconds are the mean per token of the requests times all tokens"]
    counts = _summary_rounds(fields)
    if counts is None:
        run = EngineCounts(num_requests=num_requests or None, num_tokens=num_tokens, decode_s=decode_s)
        return Metrics(engine=None, model=_served_model(fields), runs=(run,), notes=tuple(notes))
    steps = plain_steps(num_tokens, counts)
    run = EngineCounts(
        num_requests=num_requests or None,
        num_tokens=num_tokens,
        num_rounds=counts.num_rounds + steps,
        num_drafted=counts.num_drafted,
        num_accepted=counts.num_accepted,
        accepted_by_position=counts.accepted_by_position,
        decode_s=decode_s,
    )
    notes += plain_steps_note(steps, "the server")
    return Metrics(engine=None, model=_served_model(fields), runs=(run,), notes=tuple(notes))


def _summary_rounds(fields: Fields) -> RoundCounts | None:
    totals = [
        _average(fields, name) for name in ("total_spec_decode_steps", "total_draft_tokens", "total_accepted_draft_tokens")
    ]
    steps, drafted, accepted = totals
    if steps is None or drafted is None or accepted is None:
        return None
    positions = _histogram(fields, "pooled_spec_decode_acceptance_histogram")
    counts = RoundCounts(
        num_rounds=round(steps), num_drafted=round(drafted), num_accepted=round(accepted), accepted_by_position=positions
    )
    return checked_rounds(fields.path, "", counts)


def _served_model(fields: Fields) -> str | None:
    endpoint = fields.child("input_config", "endpoint")
    names: Any = None if endpoint is None else endpoint.values.get("model_names")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else None


def _average(fields: Fields, name: str) -> float | None:
    metric = fields.child(name)
    return None if metric is None else metric.number("avg")


def _seconds(fields: Fields, name: str, key: str) -> Seconds | None:
    """A metric in seconds; None if it is missing.

    Raises:
        BadFile: its unit is not one of time.
    """
    metric = fields.child(name)
    value = None if metric is None else metric.number(key)
    if metric is None or value is None:
        return None
    unit = metric.text("unit") or "ms"
    if unit not in _UNIT_S:
        raise metric.error("unit", f"one of {', '.join(_UNIT_S)}", unit)
    return value * _UNIT_S[unit]


def _histogram(details: Fields, key: str) -> tuple[int, ...]:
    """Rounds that accepted at least i + 1 tokens, for each i. The file has rounds by the exact number of accepted tokens."""
    histogram = details.child(key)
    if histogram is None:
        return ()
    counts: dict[int, int] = {}
    for name in histogram.values:
        if not name.isdecimal() or len(name) > 4:
            raise BadFile(details.path, f"{histogram.where}: the key {quoted(name)}, expected a number of accepted tokens", FIX)
        counts[int(name)] = histogram.required_count(name)
    return by_position([counts.get(number, 0) for number in range(max(counts, default=0) + 1)])
