"""Metrics of TensorRT-LLM: the report of `trtllm-bench throughput --report_json`.

Written from the source, not measured here: tensorrt_llm/bench/dataclasses/reporting.py. The report counts the pass over the
prompt as a round, and the first token as one of that round, so both are taken off. Its means are over requests.
"""

from __future__ import annotations

from calibrate.engine_metrics.fields import Fields
from calibrate.engine_metrics.metrics import Metrics, RoundCounts, checked_rounds
from calibrate.engine_metrics.metrics_file import MetricsFile
from perfmodel.core.units import Tokens
from perfmodel.results.engine_report import EngineCounts

ENGINE = "tensorrt-llm"


def is_report(file: MetricsFile) -> bool:
    """Whether `trtllm-bench --report_json` wrote the file."""
    return file.first.has("engine", "request_info", "performance")


def read_report(file: MetricsFile) -> Metrics:
    """The one run of a report."""
    fields = file.first
    engine, requests = fields.required("engine"), fields.required("request_info")
    num_requests, mean_tokens = requests.required_count("num_requests"), requests.number("avg_output_length")
    if not num_requests or mean_tokens is None or mean_tokens < 1:
        raise requests.error("avg_output_length", "at least 1 token of each request", requests.values.get("avg_output_length"))
    num_tokens = round(num_requests * (mean_tokens - 1))
    counts, draft_tokens = _rounds(fields, num_requests, mean_tokens)
    token_s = (fields.child("streaming_metrics") or fields).milliseconds("avg_tpot_ms")
    notes = ["seconds are the mean per token of the requests times all tokens: exact for outputs of one length"]
    if token_s is None:
        notes = ["no seconds per token: run trtllm-bench with --streaming"]
    concurrency = requests.number("avg_num_concurrent_requests")
    run = EngineCounts(
        num_requests=num_requests,
        num_tokens=num_tokens,
        num_rounds=None if counts is None else counts.num_rounds,
        num_drafted=None if counts is None else counts.num_drafted,
        num_accepted=None if counts is None else counts.num_accepted,
        decode_s=None if token_s is None else token_s * num_tokens,
    )
    return Metrics(
        engine=ENGINE,
        version=engine.text("version"),
        model=engine.text("model"),
        draft_tokens=draft_tokens,
        concurrency=None if concurrency is None else max(1, round(concurrency)),
        runs=(run,),
        notes=tuple(notes),
    )


def _rounds(fields: Fields, num_requests: int, mean_tokens: float) -> tuple[RoundCounts | None, Tokens | None]:
    """Rounds after the pass over the prompt, and the draft length; None without speculation.

    Of a request with i rounds after the prompt's pass, the report has K (i + 1) drafted and tokens - i - 1 accepted tokens.
    """
    stats = fields.child("decoding_stats")
    if stats is None or stats.child("num_accepted_draft_tokens_percentiles") is None:
        return None, None
    accepted = stats.required("num_accepted_draft_tokens_percentiles").number("average") or 0.0
    drafted = stats.required("num_draft_tokens_percentiles").number("average") or 0.0
    mean_passes = mean_tokens - accepted
    if mean_passes <= 1:
        raise stats.error("num_accepted_draft_tokens_percentiles.average", f"less than {mean_tokens - 1:g} tokens", accepted)
    draft_tokens = round(drafted / mean_passes)
    num_rounds = round(num_requests * (mean_passes - 1))
    counts = RoundCounts(
        num_rounds=num_rounds, num_drafted=draft_tokens * num_rounds, num_accepted=round(num_requests * accepted)
    )
    return checked_rounds(fields.path, "decoding_stats", counts), draft_tokens or None
