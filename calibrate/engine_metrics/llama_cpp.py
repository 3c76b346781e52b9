"""Metrics of llama.cpp's server: the timings in its answers, and its Prometheus text.

An answer has accepted tokens but no verifications: every round emits its accepted tokens and one more, so rounds are the other
tokens. The pass over the prompt emits the first token. Measured with build 11434; source: tools/server/README.md.
"""

from __future__ import annotations

import re

from calibrate.engine_metrics.fields import Fields
from calibrate.engine_metrics.metrics import Metrics, RoundCounts, checked_rounds, without_first_token
from calibrate.engine_metrics.metrics_file import MetricsFile
from calibrate.engine_metrics.prometheus import Growth
from perfmodel.core.errors import BadFile
from perfmodel.results.engine_report import EngineCounts

ENGINE = "llama.cpp"
_TOKENS = "llamacpp:tokens_predicted_total"
_DERIVED = "llama.cpp reports no verifications with an answer: rounds are the tokens that were not accepted"
_FIX = "Give complete answers of llama-server, decoded with one draft setting"


def is_answers(file: MetricsFile) -> bool:
    """Whether the objects are answers of llama-server."""
    timings = file.first.values.get("timings")
    return isinstance(timings, dict) and "predicted_n" in timings


def read_answers(file: MetricsFile) -> Metrics:
    """One run for every answer."""
    runs = tuple(_answer(fields) for fields in file.objects)
    model = file.first.text("model")
    return Metrics(
        engine=ENGINE,
        model=None if model is None else re.split(r"[/\\]", model)[-1],
        runs=runs,
        notes=(_DERIVED,) if any(run.num_drafted for run in runs) else (),
    )


def _answer(fields: Fields) -> EngineCounts:
    timings = fields.required("timings")
    num_tokens = without_first_token(timings, "predicted_n", timings.required_count("predicted_n"))
    num_drafted, num_accepted = timings.count("draft_n"), timings.count("draft_n_accepted")
    if num_drafted is None or num_accepted is None:
        return EngineCounts(num_tokens=num_tokens, num_rounds=num_tokens, decode_s=timings.milliseconds("predicted_ms"))
    if num_accepted > num_tokens:
        problem = f"{num_accepted} accepted of {num_tokens} tokens after the first, expected at most as many"
        raise BadFile(fields.path, f"{timings.where}: {problem}", _FIX)
    counts = RoundCounts(num_rounds=num_tokens - num_accepted, num_drafted=num_drafted, num_accepted=num_accepted)
    return EngineCounts(
        num_tokens=num_tokens,
        num_rounds=checked_rounds(fields.path, timings.where, counts).num_rounds,
        num_drafted=num_drafted,
        num_accepted=num_accepted,
        decode_s=timings.milliseconds("predicted_ms"),
    )


def is_metrics_text(file: MetricsFile) -> bool:
    """Whether llama-server's `/metrics` wrote the text."""
    return file.snapshot is not None and bool(file.snapshot.named(_TOKENS))


def read_metrics_text(growth: Growth) -> Metrics:
    """What the counters of a server grew by.

    The server does not count requests. Tokens that came out of no round are taken as their first tokens.
    """
    emitted = growth.count(_TOKENS) or 0
    decode_s = growth.counter("llamacpp:tokens_predicted_seconds_total")
    num_rounds = growth.count("llamacpp:spec_decode_num_drafts_total")
    if not num_rounds:
        note = "llama.cpp's /metrics counts no requests: the first token of each is counted, too, which flatters plain decoding"
        return Metrics(
            engine=ENGINE, runs=(EngineCounts(num_requests=None, num_tokens=emitted, decode_s=decode_s),), notes=(note,)
        )
    positions = growth.by_position("llamacpp:spec_decode_num_accepted_tokens_per_pos_total")
    counts = RoundCounts(
        num_rounds=num_rounds,
        num_drafted=growth.count("llamacpp:spec_decode_num_draft_tokens_total") or 0,
        num_accepted=growth.count("llamacpp:spec_decode_num_accepted_tokens_total") or 0,
        accepted_by_position=positions,
    )
    checked_rounds(growth.after.path, "", counts)
    num_requests = emitted - counts.num_rounds - counts.num_accepted
    if num_requests < 0:
        problem = f"{emitted} tokens from {counts.num_rounds} rounds and {counts.num_accepted} accepted tokens, expected more"
        raise BadFile(growth.after.path, problem, "Save /metrics while no request runs")
    run = EngineCounts(
        num_requests=num_requests,
        num_tokens=emitted - num_requests,
        num_rounds=counts.num_rounds,
        num_drafted=counts.num_drafted,
        num_accepted=counts.num_accepted,
        accepted_by_position=positions,
        decode_s=decode_s,
    )
    note = f"llama.cpp's /metrics counts no requests: {num_requests} tokens of no round are taken as their first tokens"
    return Metrics(engine=ENGINE, draft_tokens=len(positions) or None, runs=(run,), notes=(note,))
