"""Metrics of SGLang: its benchmark's JSON lines, its Prometheus text, and the details in its answers.

Written from the sources, not measured here: python/sglang/bench_serving.py and python/sglang/srt/entrypoints/openai/utils.py.
`accept_length` includes the bonus. The pass over the prompt emits the first token of a request.
"""

from __future__ import annotations

import math

from calibrate.engine_metrics.fields import Fields
from calibrate.engine_metrics.metrics import Metrics, RoundCounts, by_position, checked_rounds, without_first_token
from calibrate.engine_metrics.metrics_file import MetricsFile
from calibrate.engine_metrics.prometheus import Growth
from calibrate.engine_metrics.vllm import one_model
from perfmodel.core.units import Seconds, Tokens
from perfmodel.results.engine_report import EngineCounts

ENGINE = "sglang"
_TOKENS = "sglang:generation_tokens_total"
_CUMULATIVE = "SGLang's acceptance length is the server's since its start, other requests and the warm-up included"
_GAUGE = "SGLang's acceptance length is a gauge of the server, not of these requests: prefer return_spec_tokens_details"


def is_bench(file: MetricsFile) -> bool:
    """Whether `sglang.bench_serving --output-file` wrote the file."""
    return file.first.has("accept_length", "total_output_tokens", "completed")


def read_bench(file: MetricsFile) -> Metrics:
    """Every benchmark of a file, one a line."""
    runs = tuple(_bench_run(fields) for fields in file.objects)
    has_length = any(run.acceptance_length for run in runs)
    notes = [_CUMULATIVE] if has_length else []
    if not all(fields.has("itls", "output_lens") for fields in file.objects):
        notes.append("seconds are the mean per token of the requests times all tokens: exact for outputs of one length")
    return Metrics(
        engine=ENGINE,
        model=file.first.text("model") if file.first.has("model") else None,
        concurrency=file.first.count("max_concurrency"),
        runs=runs,
        notes=tuple(notes),
    )


def _bench_run(fields: Fields) -> EngineCounts:
    num_requests, emitted = fields.required_count("completed"), fields.required_count("total_output_tokens")
    if not num_requests or emitted < num_requests:
        raise fields.error("total_output_tokens", f"at least one token of each of the {num_requests} requests", emitted)
    num_tokens = emitted - num_requests
    length = fields.number("accept_length")
    if length is not None and length < 1:
        raise fields.error("accept_length", "at least 1, the bonus included", length)
    decode_s = _bench_seconds(fields, num_tokens)
    return EngineCounts(num_requests=num_requests, num_tokens=num_tokens, acceptance_length=length, decode_s=decode_s)


def _bench_seconds(fields: Fields, num_tokens: Tokens) -> Seconds | None:
    """Seconds from first to last token over all requests: their latencies between tokens, else the mean times the tokens."""
    between = fields.values.get("itls")
    if isinstance(between, list) and between and fields.has("output_lens"):
        parts = [
            Fields(path=fields.path, where=f"{fields.where} itls[{i}]".strip(), values={"s": s}) for i, s in enumerate(between)
        ]
        return math.fsum(second for part in parts for second in part.numbers("s") or ())
    mean_s = fields.milliseconds("mean_tpot_ms")
    return None if mean_s is None else mean_s * num_tokens


def is_metrics_text(file: MetricsFile) -> bool:
    """Whether SGLang's `/metrics` wrote the text."""
    return file.snapshot is not None and bool(file.snapshot.named(_TOKENS) or file.snapshot.named("sglang:spec_accept_length"))


def read_metrics_text(growth: Growth) -> Metrics:
    """What the counters of a server grew by; its gauge of acceptance where it counts no verifications."""
    emitted, num_requests = growth.count(_TOKENS), growth.count("sglang:num_requests_total")
    num_tokens = None if emitted is None or num_requests is None else max(0, emitted - num_requests)
    num_rounds = growth.count("sglang:spec_verify_calls_total")
    gauges = growth.after.named("sglang:spec_accept_length")
    lengths = [gauge.value for gauge in gauges if math.isfinite(gauge.value) and gauge.value >= 1]
    has_counter = bool(num_rounds and num_tokens)
    run = EngineCounts(
        num_requests=num_requests,
        num_tokens=num_tokens,
        num_rounds=num_rounds if has_counter else None,
        acceptance_length=None if has_counter or not lengths else math.fsum(lengths) / len(lengths),
    )
    gauge_notes = () if run.acceptance_length is None else (_GAUGE,)
    notes = (*gauge_notes, "SGLang's /metrics has no seconds of decoding alone")
    return Metrics(engine=ENGINE, model=one_model(growth, "sglang:"), runs=(run,), notes=notes)


def is_answers(file: MetricsFile) -> bool:
    """Whether the objects are answers of SGLang with its speculative details."""
    return _details(file.first) is not None


def read_answers(file: MetricsFile) -> Metrics:
    """One run for every answer (`return_spec_tokens_details`), of the OpenAI or the native interface."""
    runs = tuple(_answer(fields) for fields in file.objects)
    note = "SGLang's answers have no seconds of decoding alone"
    return Metrics(engine=ENGINE, model=file.first.text("model"), runs=runs, notes=(note,))


def _details(fields: Fields) -> Fields | None:
    """Where an answer keeps its counters."""
    details = fields.child("sglext", "spec_tokens_details") or fields.child("meta_info")
    return details if details is not None and details.has("spec_verify_ct") else None


def _answer(fields: Fields) -> EngineCounts:
    details = _details(fields)
    if details is None:
        raise fields.error("sglext", "spec_tokens_details with spec_verify_ct", fields.values.get("sglext"))
    usage = fields.child("usage") or details
    num_tokens = without_first_token(usage, "completion_tokens", usage.required_count("completion_tokens"))
    num_rounds = details.required_count("spec_verify_ct")
    histogram = by_position(details.counts("spec_correct_drafts_histogram") or ())
    num_drafted, num_accepted = details.count("spec_num_proposed_drafts"), details.count("spec_num_correct_drafts")
    if num_drafted is None or num_accepted is None:
        return EngineCounts(num_tokens=num_tokens, num_rounds=num_rounds, accepted_by_position=histogram)
    counts = RoundCounts(
        num_rounds=num_rounds, num_drafted=num_drafted, num_accepted=num_accepted, accepted_by_position=histogram
    )
    checked_rounds(fields.path, details.where, counts)
    return EngineCounts(
        num_tokens=num_tokens,
        num_rounds=num_rounds,
        num_drafted=num_drafted,
        num_accepted=num_accepted,
        accepted_by_position=histogram,
    )
