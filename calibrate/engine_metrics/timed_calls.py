"""Timed calls of an engine that reports nothing itself: tokens and seconds of each prompt, as JSON."""

from __future__ import annotations

from calibrate.engine_metrics.metrics import Metrics
from calibrate.engine_metrics.metrics_file import MetricsFile
from perfmodel.results.engine_report import EngineCounts


def is_timed_calls(file: MetricsFile) -> bool:
    """Whether the objects have tokens and seconds."""
    return file.first.has("num_tokens", "decode_s")


def read_timed_calls(file: MetricsFile) -> Metrics:
    """One run for every call, with the counters that it has."""
    runs = tuple(
        EngineCounts(
            prompt=fields.text("prompt"),
            num_tokens=fields.required_count("num_tokens"),
            num_rounds=fields.count("num_rounds"),
            num_drafted=fields.count("num_drafted"),
            num_accepted=fields.count("num_accepted"),
            decode_s=fields.number("decode_s"),
        )
        for fields in file.objects
    )
    return Metrics(engine=None, runs=runs)
