"""Metrics of engines that were not run here, written from their documentation."""

import json
from pathlib import Path

import pytest

from calibrate.engine_metrics.read_engine_metrics import read_engine_metrics
from tests.calibrate.engine_metrics.recorded import DATA


def test_a_benchmark_of_sglang_has_the_mean_of_its_server_only() -> None:
    report = read_engine_metrics(DATA / "sglang-bench.jsonl")
    assert (report.engine, report.total.acceptance_length, report.total.num_rounds) == ("sglang", 3.25, None)
    assert report.total.tokens_per_round == 3.25
    assert report.total.decode_s == pytest.approx(0.0039 * (1024 - 8))
    assert "since its start" in report.notes[0]


def test_several_benchmarks_of_sglang_are_weighted_by_their_rounds(tmp_path: Path) -> None:
    line = json.loads((DATA / "sglang-bench.jsonl").read_text())
    path = tmp_path / "two.jsonl"
    path.write_text("\n".join(json.dumps({**line, "accept_length": length}) for length in (2.0, 4.0)))
    assert read_engine_metrics(path).total.tokens_per_round == pytest.approx(2 / (1 / 2 + 1 / 4))


def test_answers_of_sglang_have_rounds_in_both_interfaces() -> None:
    report = read_engine_metrics(DATA / "sglang-answers.jsonl")
    assert [(run.num_tokens, run.num_rounds, run.num_accepted, run.num_drafted) for run in report.runs] == [
        (10, 4, 6, 20),
        (11, 3, 9, 24),
    ]
    assert report.runs[0].accepted_by_position == (3, 2, 1)
    assert report.total.decode_s is None


def test_the_gauge_of_a_draft_beside_the_target_is_left_out() -> None:
    report = read_engine_metrics(DATA / "sglang.prom")
    assert (report.model, report.total.tokens_per_round, report.total.num_requests) == ("target", 2.8, 12)
    assert "a gauge of the server" in report.notes[0]


def test_the_prompts_pass_of_tensorrt_llm_is_no_round() -> None:
    """101 tokens in 41 passes with 60 accepted: the first pass, over the prompt, emits the first token."""
    report = read_engine_metrics(DATA / "tensorrt-llm-report.json")
    total = report.total
    assert (total.num_rounds, total.num_tokens, total.num_accepted, total.num_drafted) == (400, 1000, 600, 2000)
    assert (report.draft_tokens, report.version, report.concurrency) == (5, "1.2.0", 1)
    assert total.tokens_per_round == pytest.approx(1 + total.num_accepted / total.num_rounds)
    assert total.decode_s == pytest.approx(5.0)


def test_records_of_aiperf_leave_the_warm_up_out() -> None:
    report = read_engine_metrics(DATA / "aiperf-records.jsonl")
    assert (report.engine, report.draft_tokens, len(report.runs)) == ("vllm", 4, 2)
    total = report.total
    assert (total.num_accepted, total.num_drafted, total.num_tokens) == (36, 64, 50)
    assert total.accepted_by_position == (14, 12, 8, 2)
    assert total.decode_s == pytest.approx(2 * (0.9 - 0.0455))
    assert "1 warm-up or failed requests are left out" in report.notes


def test_the_summary_of_aiperf_agrees_with_its_records() -> None:
    summary, records = (read_engine_metrics(DATA / name).total for name in ("aiperf-summary.json", "aiperf-records.jsonl"))
    assert (summary.num_rounds, summary.num_drafted, summary.num_accepted) == (16, 64, 36)
    assert summary.accepted_by_position == records.accepted_by_position
    report = read_engine_metrics(DATA / "aiperf-summary.json", engine="vllm")
    assert (report.engine, report.model) == ("vllm", "test-model")
