"""Metrics of vLLM: its benchmark's JSON, its Prometheus text, and the metrics in its answers.

vLLM counts accepted tokens beyond the length limit, and leaves out rounds without a draft. The pass over the prompt emits the
first token of a request. Source: vllm/v1/spec_decode/metrics.py, vllm/benchmarks/serve.py and vllm/v1/metrics/stats.py, 0.32.
"""

from __future__ import annotations

import math

from calibrate.engine_metrics.fields import Fields
from calibrate.engine_metrics.metrics import (
    Metrics,
    RoundCounts,
    beyond_limit_note,
    by_position,
    checked_rounds,
    plain_steps,
    plain_steps_note,
    without_first_token,
)
from calibrate.engine_metrics.metrics_file import MetricsFile
from calibrate.engine_metrics.prometheus import Growth
from perfmodel.core.errors import BadFile
from perfmodel.core.units import Seconds, Tokens
from perfmodel.results.engine_report import EngineCounts

ENGINE = "vllm"
_TITLE = "vLLM"
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_TOKENS = "vllm:generation_tokens_total"
_DECODE = "vllm:request_decode_time_seconds"


def is_bench(file: MetricsFile) -> bool:
    """Whether `vllm bench serve --save-result` wrote the file."""
    return file.first.has("model_id", "total_output_tokens", "completed")


def read_bench(file: MetricsFile) -> Metrics:
    """Every benchmark of a file (`--append-result` writes several)."""
    runs, notes = [], []
    for fields in file.objects:
        run, run_notes = _bench_run(fields)
        runs.append(run)
        notes += run_notes
    positions = file.first.numbers("spec_decode_per_position_acceptance_rates")
    return Metrics(
        engine=ENGINE,
        model=file.first.text("model_id"),
        draft_tokens=len(positions) if positions else None,
        concurrency=file.first.count("max_concurrency"),
        runs=tuple(runs),
        notes=tuple(dict.fromkeys(notes)),
    )


def _bench_run(fields: Fields) -> tuple[EngineCounts, list[str]]:
    num_requests, emitted = fields.required_count("completed"), fields.required_count("total_output_tokens")
    if not num_requests or emitted < num_requests:
        raise fields.error("total_output_tokens", f"at least one token of each of the {num_requests} requests", emitted)
    num_tokens = emitted - num_requests
    decode_s, notes = _bench_seconds(fields, num_tokens)
    if num_failed := fields.count("failed"):
        notes.append(f"{num_failed} requests failed")
    counts = _bench_rounds(fields)
    if counts is None:
        return EngineCounts(num_requests=num_requests, num_tokens=num_tokens, num_rounds=None, decode_s=decode_s), notes
    steps = plain_steps(num_tokens, counts)
    run = EngineCounts(
        num_requests=num_requests,
        num_tokens=num_tokens,
        num_rounds=counts.num_rounds + steps,
        num_drafted=counts.num_drafted,
        num_accepted=counts.num_accepted,
        accepted_by_position=counts.accepted_by_position,
        decode_s=decode_s,
    )
    return run, [*notes, *beyond_limit_note(num_tokens, counts, _TITLE), *plain_steps_note(steps, _TITLE)]


def _bench_rounds(fields: Fields) -> RoundCounts | None:
    """Counters of the benchmark, which are of the whole server while it ran; None without speculation."""
    if not fields.has("spec_decode_num_drafts"):
        return None
    num_rounds = fields.required_count("spec_decode_num_drafts")
    rates = fields.numbers("spec_decode_per_position_acceptance_rates") or ()
    counts = RoundCounts(
        num_rounds=num_rounds,
        num_drafted=fields.required_count("spec_decode_draft_tokens"),
        num_accepted=fields.required_count("spec_decode_accepted_tokens"),
        accepted_by_position=tuple(round(rate * num_rounds) for rate in rates),
    )
    return checked_rounds(fields.path, fields.where, counts)


def _bench_seconds(fields: Fields, num_tokens: Tokens) -> tuple[Seconds | None, list[str]]:
    """Seconds from first to last token, over all requests."""
    latencies, first_token_s = fields.numbers("latencies"), fields.numbers("ttfts")
    if latencies and first_token_s and len(latencies) == len(first_token_s):
        return math.fsum(latencies) - math.fsum(first_token_s), []
    mean_s = fields.milliseconds("mean_tpot_ms")
    if mean_s is None:
        return None, ["the benchmark states no seconds per token"]
    note = "seconds are the mean per token of the requests times all tokens: exact for outputs of one length (--save-detailed)"
    return mean_s * num_tokens, [note]


def is_metrics_text(file: MetricsFile) -> bool:
    """Whether vLLM's `/metrics` wrote the text."""
    return file.snapshot is not None and bool(file.snapshot.named(_TOKENS))


def read_metrics_text(growth: Growth) -> Metrics:
    """What the counters of a server grew by."""
    emitted, num_requests = growth.count(_TOKENS), growth.count(f"{_DECODE}_count")
    num_tokens = None if emitted is None or num_requests is None else max(0, emitted - num_requests)
    num_rounds = growth.count(_DRAFTS)
    positions = growth.by_position("vllm:spec_decode_num_accepted_tokens_per_pos_total")
    notes = [*_running_note(growth)]
    counts = None
    if num_rounds:
        counts = RoundCounts(
            num_rounds=num_rounds,
            num_drafted=growth.count("vllm:spec_decode_num_draft_tokens_total") or 0,
            num_accepted=growth.count("vllm:spec_decode_num_accepted_tokens_total") or 0,
            accepted_by_position=positions,
        )
        checked_rounds(growth.after.path, "", counts)
        steps = plain_steps(num_tokens, counts)
        notes += [*beyond_limit_note(num_tokens, counts, _TITLE), *plain_steps_note(steps, _TITLE)]
    run = EngineCounts(
        num_requests=num_requests,
        num_tokens=num_tokens,
        num_rounds=None if counts is None else counts.num_rounds + plain_steps(num_tokens, counts),
        num_drafted=None if counts is None else counts.num_drafted,
        num_accepted=None if counts is None else counts.num_accepted,
        accepted_by_position=() if counts is None else positions,
        decode_s=growth.counter(f"{_DECODE}_sum"),
    )
    draft_tokens = len(positions) or None
    return Metrics(engine=ENGINE, model=one_model(growth, "vllm:"), draft_tokens=draft_tokens, runs=(run,), notes=tuple(notes))


def _running_note(growth: Growth) -> list[str]:
    running = growth.after.total("vllm:num_requests_running")
    return [f"{running:.0f} requests were still running, whose seconds are not counted yet"] if running else []


def one_model(growth: Growth, prefix: str) -> str | None:
    """The model that a server's counters are of.

    Raises:
        BadFile: there are several.
    """
    models = growth.after.models(prefix)
    if len(models) > 1:
        names = ", ".join(map(repr, models[:3]))
        fix = "Give the metrics of a server with one model"
        raise BadFile(growth.after.path, f"counters of {len(models)} models ({names}), expected one", fix)
    return models[0] if models else None


def is_answers(file: MetricsFile) -> bool:
    """Whether the objects are answers of vLLM with its per-request metrics."""
    return file.first.has("usage", "metrics", "choices")


def read_answers(file: MetricsFile) -> Metrics:
    """One run for every answer (`--per-request-spec-decode-metrics`, and `--enable-per-request-metrics` for seconds)."""
    runs, notes, lengths = [], [], set()
    for fields in file.objects:
        run, run_notes = _answer(fields)
        runs.append(run)
        notes += run_notes
        if (details := fields.child("metrics", "speculative_decoding")) is not None:
            lengths.add(details.count("num_spec_tokens"))
    return Metrics(
        engine=ENGINE,
        model=file.first.text("model"),
        draft_tokens=lengths.pop() if len(lengths) == 1 else None,
        runs=tuple(runs),
        notes=tuple(dict.fromkeys(notes)),
    )


def _answer(fields: Fields) -> tuple[EngineCounts, list[str]]:
    usage, metrics = fields.required("usage"), fields.child("metrics")
    num_tokens = without_first_token(usage, "completion_tokens", usage.required_count("completion_tokens"))
    decode_s = None if metrics is None else metrics.milliseconds("generation_time_ms")
    notes = [] if decode_s is not None else ["no seconds: start vLLM with --enable-per-request-metrics"]
    details = fields.child("metrics", "speculative_decoding")
    if details is None:
        return EngineCounts(num_tokens=num_tokens, decode_s=decode_s), notes
    counts = RoundCounts(
        num_rounds=details.required_count("num_spec_steps"),
        num_drafted=details.required_count("num_draft_tokens"),
        num_accepted=details.required_count("num_accepted_draft_tokens"),
        accepted_by_position=by_position(details.counts("acceptance_histogram") or ()),
    )
    checked_rounds(details.path, details.where, counts)
    steps = plain_steps(num_tokens, counts)
    run = EngineCounts(
        num_tokens=num_tokens,
        num_rounds=counts.num_rounds + steps,
        num_drafted=counts.num_drafted,
        num_accepted=counts.num_accepted,
        accepted_by_position=counts.accepted_by_position,
        decode_s=decode_s,
    )
    has_excess = bool(beyond_limit_note(num_tokens, counts, _TITLE))
    excess = ["vLLM counts tokens beyond the length limit: tokens per round are of delivered tokens"] if has_excess else []
    return run, [
        *notes,
        *excess,
        *(["vLLM leaves out rounds without a draft: they were added from the tokens"] if steps else []),
    ]
