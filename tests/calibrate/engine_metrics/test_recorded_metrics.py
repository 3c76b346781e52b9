"""Metrics that engines really wrote: their rounds are those of the replay of the same prompts."""

import pytest

from calibrate.engine_metrics.read_engine_metrics import read_engine_metrics
from perfmodel.replay.round_stats import sum_rounds
from tests.calibrate.engine_metrics.recorded import DATA, NUM_REQUESTS, NUM_TOKENS, PAIRS, replayed


@pytest.mark.parametrize("file_format", PAIRS)
def test_an_engine_took_the_rounds_that_replay_counts(file_format: str) -> None:
    report = read_engine_metrics(*PAIRS[file_format])
    assert {file.file_format for file in report.files} <= {file_format, "timed-calls"}
    assert file_format.startswith(str(report.engine))
    assert report.total.num_rounds == sum_rounds(replayed()).num_rounds == 91
    assert report.total.num_requests == NUM_REQUESTS


@pytest.mark.parametrize("file_format", ["vllm-answers", "llama.cpp-answers", "openvino", "onnxruntime"])
def test_every_request_took_the_rounds_of_its_prompt(file_format: str) -> None:
    report = read_engine_metrics(PAIRS[file_format][0])
    assert [run.num_rounds for run in report.runs] == [stats.num_rounds for stats in replayed()]


@pytest.mark.parametrize("file_format", PAIRS)
def test_the_first_token_is_counted_only_where_a_round_emits_it(file_format: str) -> None:
    first_tokens = 0 if file_format == "onnxruntime" else NUM_REQUESTS
    assert read_engine_metrics(PAIRS[file_format][0]).total.num_tokens == NUM_REQUESTS * NUM_TOKENS - first_tokens


@pytest.mark.parametrize("file_format", PAIRS)
def test_plain_decoding_beside_it_gives_a_speedup(file_format: str) -> None:
    report = read_engine_metrics(*PAIRS[file_format])
    assert report.speedup_value is not None
    assert 1.3 < report.speedup_value < 2.6
    assert (report.speedup is not None) == (file_format not in ("vllm-bench", "vllm-prometheus", "llama.cpp-prometheus"))
    if report.speedup is not None:
        assert report.speedup.value == pytest.approx(report.speedup_value)
        assert report.speedup.low < report.speedup.value < report.speedup.high


def test_tokens_beyond_the_length_limit_are_counted_by_vllm_and_not_delivered() -> None:
    report = read_engine_metrics(PAIRS["vllm-bench"][0])
    assert (report.total.num_accepted, report.total.num_drafted, report.draft_tokens) == (297, 455, 5)
    assert report.total.tokens_per_round == pytest.approx(378 / 91)
    assert "vLLM counts 10 tokens beyond the length limit" in report.notes[0]


def test_the_accepted_tokens_of_openvino_include_the_last_rounds() -> None:
    report = read_engine_metrics(PAIRS["openvino"][0])
    assert (report.total.num_accepted, report.total.num_drafted) == (287, sum_rounds(replayed()).num_drafted)
    assert report.notes == ("OpenVINO's 270 accepted tokens leave the last round of each request out; all rounds have 287",)


def test_engines_that_time_both_models_report_their_seconds() -> None:
    for file_format in ("openvino", "onnxruntime"):
        total = read_engine_metrics(PAIRS[file_format][0]).total
        assert total.draft_s is not None
        assert total.verify_s is not None
        assert total.decode_s is not None
        assert 0 < total.draft_s < total.verify_s < total.draft_s + total.verify_s < total.decode_s * 1.001


def test_one_snapshot_counts_since_the_start_of_the_server_and_says_so() -> None:
    report = read_engine_metrics(DATA / "vllm-draft-after.prom")
    assert report.total.num_requests == NUM_REQUESTS + 1
    assert "counts since the server's start" in report.notes[-1]


def test_the_positions_of_vllm_are_the_same_in_all_its_formats() -> None:
    positions = {name: read_engine_metrics(PAIRS[name][0]).total.accepted_by_position for name in PAIRS if "vllm" in name}
    assert set(positions.values()) == {(78, 69, 59, 50, 41)}


def test_files_of_one_format_are_taken_together() -> None:
    path = DATA / "onnxruntime-draft.jsonl"
    assert read_engine_metrics([path, path]).total.num_rounds == 2 * 91


def test_a_report_prints_what_was_read_and_what_is_missing() -> None:
    text = str(read_engine_metrics(PAIRS["llama.cpp-answers"][0]))
    assert "engine      llama.cpp target-32.f32.gguf" in text
    assert "4.15 tokens per round, 91 rounds, 287 of 442 drafted tokens accepted (64.9 %)" in text
    assert "plain       not reported" in text
