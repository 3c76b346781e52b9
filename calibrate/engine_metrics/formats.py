"""The table of metrics formats: how each is recognised, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calibrate.engine_metrics import (
    aiperf,
    llama_cpp,
    onnxruntime,
    openvino,
    profile_run,
    sglang,
    tensorrt_llm,
    timed_calls,
    vllm,
)
from calibrate.engine_metrics.metrics import Metrics
from calibrate.engine_metrics.metrics_file import MetricsFile
from calibrate.engine_metrics.prometheus import Growth
from perfmodel.policies.policy import Policy

Reader = Callable[[MetricsFile, Policy | None], Metrics]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsFormat:
    """One format."""

    name: str
    """As `--format` takes it."""
    written_by: str
    """What writes such files."""
    recognised_by: str
    """The keys or names that only this format has."""
    matches: Callable[[MetricsFile], bool]
    read: Reader | None = None
    """Reads one file; None for snapshots of counters."""
    read_growth: Callable[[Growth], Metrics] | None = None
    """Reads what counters grew by between two snapshots; None for other formats."""


def _reader(read: Callable[[MetricsFile], Metrics]) -> Reader:
    """A reader that ignores the policy: only an engine profile holds several runs to choose from."""
    return lambda file, policy: read(file)


_TABLE = (
    MetricsFormat(
        name="engine-profile",
        written_by="s2d-profile engine",
        recognised_by="schema s2d/engine-profile",
        matches=profile_run.is_profile,
        read=profile_run.read_profile_run,
    ),
    MetricsFormat(
        name="vllm-bench",
        written_by="vllm bench serve --save-result",
        recognised_by="model_id, total_output_tokens",
        matches=vllm.is_bench,
        read=_reader(vllm.read_bench),
    ),
    MetricsFormat(
        name="sglang-bench",
        written_by="sglang.bench_serving --output-file",
        recognised_by="accept_length, total_output_tokens",
        matches=sglang.is_bench,
        read=_reader(sglang.read_bench),
    ),
    MetricsFormat(
        name="sglang-answers",
        written_by="SGLang's answers with return_spec_tokens_details",
        recognised_by="sglext.spec_tokens_details or meta_info.spec_verify_ct",
        matches=sglang.is_answers,
        read=_reader(sglang.read_answers),
    ),
    MetricsFormat(
        name="llama.cpp-answers",
        written_by="llama-server's answers",
        recognised_by="timings.predicted_n",
        matches=llama_cpp.is_answers,
        read=_reader(llama_cpp.read_answers),
    ),
    MetricsFormat(
        name="vllm-answers",
        written_by="vLLM's answers with --per-request-spec-decode-metrics",
        recognised_by="choices, usage, metrics",
        matches=vllm.is_answers,
        read=_reader(vllm.read_answers),
    ),
    MetricsFormat(
        name="openvino",
        written_by="OpenVINO GenAI's perf_metrics and extended_perf_metrics, as JSON",
        recognised_by="num_generated_tokens, generate_duration_ms",
        matches=openvino.is_results,
        read=_reader(openvino.read_results),
    ),
    MetricsFormat(
        name="onnxruntime",
        written_by="ONNX Runtime GenAI's get_speculative_stats(), as JSON",
        recognised_by="rounds, draft_tokens_proposed, draft_tokens_accepted",
        matches=onnxruntime.is_statistics,
        read=_reader(onnxruntime.read_statistics),
    ),
    MetricsFormat(
        name="tensorrt-llm",
        written_by="trtllm-bench --report_json",
        recognised_by="engine, request_info, performance",
        matches=tensorrt_llm.is_report,
        read=_reader(tensorrt_llm.read_report),
    ),
    MetricsFormat(
        name="aiperf-records",
        written_by="aiperf profile --export-level records",
        recognised_by="metadata, metrics",
        matches=aiperf.is_records,
        read=_reader(aiperf.read_records),
    ),
    MetricsFormat(
        name="aiperf-summary",
        written_by="aiperf profile (profile_export_aiperf.json)",
        recognised_by="input_config, request_count",
        matches=aiperf.is_summary,
        read=_reader(aiperf.read_summary),
    ),
    MetricsFormat(
        name="timed-calls",
        written_by="your own loop around an engine",
        recognised_by="num_tokens, decode_s",
        matches=timed_calls.is_timed_calls,
        read=_reader(timed_calls.read_timed_calls),
    ),
    MetricsFormat(
        name="vllm-prometheus",
        written_by="vLLM's /metrics",
        recognised_by="vllm:generation_tokens_total",
        matches=vllm.is_metrics_text,
        read_growth=vllm.read_metrics_text,
    ),
    MetricsFormat(
        name="sglang-prometheus",
        written_by="SGLang's /metrics",
        recognised_by="sglang:generation_tokens_total",
        matches=sglang.is_metrics_text,
        read_growth=sglang.read_metrics_text,
    ),
    MetricsFormat(
        name="llama.cpp-prometheus",
        written_by="llama-server's /metrics (--metrics)",
        recognised_by="llamacpp:tokens_predicted_total",
        matches=llama_cpp.is_metrics_text,
        read_growth=llama_cpp.read_metrics_text,
    ),
)
FORMATS = {metrics_format.name: metrics_format for metrics_format in _TABLE}
"""Formats by name, in the order in which they are tried."""
