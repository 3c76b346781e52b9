"""Files that are no metrics, or impossible ones, are refused with what is wrong."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.engine_metrics.prometheus import parse_snapshot
from calibrate.engine_metrics.read_engine_metrics import read_engine_metrics
from perfmodel.core.errors import BadFile, Mismatch, UnknownName, UserInputError
from tests.calibrate.engine_metrics.recorded import DATA, PAIRS


def edited(source: str, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a file whose first line was changed."""
    line = json.loads((DATA / source).read_text().splitlines()[0])
    change(line)
    path = folder / source
    path.write_text(json.dumps(line))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty, expected JSON or Prometheus text"),
        (" \n\n", "the file is empty"),
        ('{"a": 1', "the file is truncated or not JSON"),
        ('{"timings": {"predicted_n": 4}}\n{"timings": {"pre', "line 2 is truncated or not JSON"),
        ("[1, 2]", "item 1 is int, expected a JSON object"),
        ("[" * 100_000, "the file is truncated or not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' is repeated"),
        ("vllm:generation_tokens_total{", "line 1 is not a Prometheus sample"),
        ("hello world and more", "line 1 is not a Prometheus sample"),
        ("up 1\n", "its format is not known: it has up. Looked for engine-profile"),
        ('{"model": "x"}', "its format is not known: it has model. Looked for engine-profile"),
        ("{}", "it has nothing"),
        ('{"error": {"message": "Loading model", "code": 503}}', "it is an error that a server answered, expected metrics"),
    ],
)
def test_a_file_of_no_known_format_says_what_was_looked_for(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.txt"
    path.write_text(text)
    with pytest.raises(BadFile, match=re.escape(message)):
        read_engine_metrics(path)


def test_a_binary_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="not a text file"):
        read_engine_metrics(path)
    with pytest.raises(BadFile, match=r"no-such\.json"):
        read_engine_metrics(tmp_path / "no-such.json")
    with pytest.raises(UserInputError, match="no file of engine metrics"):
        read_engine_metrics([])


BAD_VALUES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("vllm-draft-bench.json", lambda d: d.update(spec_decode_num_drafts=-1), "spec_decode_num_drafts is -1, expected a finite"),
    ("vllm-draft-bench.json", lambda d: d.update(completed=0), "at least one token of each of the 0 requests"),
    ("vllm-draft-bench.json", lambda d: d.update(latencies=[float("nan")] * 6), "latencies[0] is nan, expected a finite"),
    ("vllm-draft-bench.json", lambda d: d.update(total_output_tokens=10**400), "expected a finite number"),
    ("vllm-draft-bench.json", lambda d: d.update(spec_decode_accepted_tokens=456), "456 accepted of 455 drafted tokens"),
    ("vllm-draft-bench.json", lambda d: d.update(spec_decode_accepted_tokens=296), "297 accepted by position, 296 in all"),
    ("vllm-draft-bench.json", lambda d: d.update(model_id=7), "model_id is 7, expected a string"),
    (
        "vllm-draft-answers.jsonl",
        lambda d: d["usage"].update(completion_tokens=0),
        "completion_tokens is 0, expected at least 1",
    ),
    ("vllm-draft-answers.jsonl", lambda d: d["usage"].update(completion_tokens=True), "is true, expected a number"),
    ("vllm-draft-answers.jsonl", lambda d: d.update(metrics=[]), "metrics is [], expected an object"),
    (
        "llama.cpp-draft-answers.jsonl",
        lambda d: d["timings"].update(draft_n_accepted=64, draft_n=99),
        "64 accepted of 63 tokens",
    ),
    (
        "llama.cpp-draft-answers.jsonl",
        lambda d: d["timings"].update(predicted_n="64"),
        "predicted_n is '64', expected a number",
    ),
    ("llama.cpp-draft-answers.jsonl", lambda d: d["timings"].update(predicted_ms=float("inf")), "predicted_ms is inf"),
    ("openvino-draft.jsonl", lambda d: d.update(ttft_ms=1e9), "ttft_ms is 1000000000.0, expected at most generate_duration_ms"),
    (
        "openvino-draft.jsonl",
        lambda d: d["extended_perf_metrics"]["main_model_metrics"].update(m_durations=[]),
        "expected the microseconds of every pass",
    ),
    (
        "openvino-draft.jsonl",
        lambda d: d["extended_perf_metrics"].pop("draft_model_metrics"),
        "no object 'draft_model_metrics'",
    ),
    ("onnxruntime-draft.jsonl", lambda d: d.update(rounds=1.5), "rounds is 1.5, expected a whole number"),
    ("onnxruntime-draft.jsonl", lambda d: d.update(rounds=0), "92 drafted tokens in 0 rounds"),
    ("sglang-bench.jsonl", lambda d: d.update(accept_length=0.2), "accept_length is 0.2, expected at least 1"),
    ("aiperf-records.jsonl", lambda d: d, "no request that was profiled and answered"),
]


@pytest.mark.parametrize(("source", "change", "message"), BAD_VALUES, ids=[f"{s}: {m}" for s, _, m in BAD_VALUES])
def test_an_impossible_value_is_named_with_its_place(
    source: str, change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadFile, match=re.escape(message)) as caught:
        read_engine_metrics(edited(source, tmp_path, change))
    assert source in str(caught.value)


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.iterdir() if path.suffix in (".json", ".jsonl", ".prom")))
def test_a_truncated_file_is_an_error_or_a_shorter_run_but_never_a_crash(name: str, tmp_path: Path) -> None:
    data, path = (DATA / name).read_bytes(), tmp_path / name
    for share in (0.1, 0.35, 0.6, 0.85, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        try:
            report = read_engine_metrics(path)
        except UserInputError:
            continue
        assert report.total.tokens_per_round is None or report.total.tokens_per_round >= 1


def test_a_counter_that_fell_means_that_the_server_restarted() -> None:
    with pytest.raises(
        UserInputError, match=r"vllm:.* fell from .* the server restarted in between, or the files are in the wrong"
    ):
        read_engine_metrics(list(reversed(PAIRS["vllm-prometheus"][0])))


def test_more_than_two_snapshots_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"3 snapshots of /metrics, expected one, or one before and one after"):
        read_engine_metrics([*PAIRS["vllm-prometheus"][0], DATA / "vllm-draft-after.prom"])


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "1e300"])
def test_a_count_by_position_that_is_no_count_is_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    lines = ("spec_decode_num_drafts_total 1", f'spec_decode_num_accepted_tokens_per_pos_total{{position="0"}} {value}')
    path.write_text("llamacpp:tokens_predicted_total 5\n" + "".join(f"llamacpp:{line}\n" for line in lines))
    with pytest.raises(BadFile, match=r"per_pos_total is .*, expected a finite number"):
        read_engine_metrics(path)


def test_counters_of_two_engines_are_refused_until_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    path.write_text((DATA / "vllm-draft-after.prom").read_text() + (DATA / "llama.cpp-draft-after.prom").read_text())
    with pytest.raises(BadFile, match=r"counters of several engines \(vllm-prometheus and llama\.cpp-prometheus\)"):
        read_engine_metrics(path)
    assert read_engine_metrics(path, file_format="vllm-prometheus").engine == "vllm"


def test_a_text_with_other_line_separators_is_one_line(tmp_path: Path) -> None:
    """JSON leaves U+2028 and U+0085 unescaped, and models write them."""
    lines = (DATA / "llama.cpp-draft-answers.jsonl").read_text().splitlines()
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(line[:-1] + ', "content": "a\u2028b\u0085c"}' for line in lines), encoding="utf-8")
    assert read_engine_metrics(path).total == read_engine_metrics(DATA / "llama.cpp-draft-answers.jsonl").total


def test_times_exemplars_and_escaped_labels_are_read(tmp_path: Path) -> None:
    text = (
        'up{model_name="C:\\\\models {1}",path="a \\"b\\""} 3 1700000000.123 # {trace_id="x}"} 1.0 1.5\n'
        'latency_bucket{le="+Inf"} 7\n# EOF\n'
    )
    first, second = parse_snapshot(tmp_path / "metrics.prom", text).samples
    assert (first.value, first.label("model_name"), first.label("path")) == (3.0, "C:\\models {1}", 'a "b"')
    assert (second.label("le"), second.value) == ("+Inf", 7.0)


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf"])
def test_a_counter_that_is_no_count_is_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    path.write_text(f"llamacpp:tokens_predicted_total {value}\n")
    with pytest.raises(BadFile, match=r"llamacpp:tokens_predicted_total is .*, expected a finite number"):
        read_engine_metrics(path)


def test_counters_of_two_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    path.write_text("".join(f'vllm:generation_tokens_total{{model_name="{name}"}} 5\n' for name in "ab"))
    with pytest.raises(BadFile, match=r"counters of 2 models \('a', 'b'\), expected one"):
        read_engine_metrics(path)


def test_plain_decoding_is_refused_where_a_draft_is_expected() -> None:
    for file_format in PAIRS:
        with pytest.raises(BadFile, match="no rounds with a draft, expected counters of speculative decoding"):
            read_engine_metrics(PAIRS[file_format][1])


def test_files_of_two_formats_or_engines_are_refused() -> None:
    vllm, llama = DATA / "vllm-draft-answers.jsonl", DATA / "llama.cpp-draft-answers.jsonl"
    with pytest.raises(Mismatch, match=r"made for llama\.cpp-answers, not for vllm-answers"):
        read_engine_metrics([vllm, llama])
    with pytest.raises(Mismatch, match=r"was made for engine vllm, not for engine llama\.cpp"):
        read_engine_metrics(vllm, engine="llama.cpp")
    with pytest.raises(Mismatch, match=r"plain decoding was made for engine llama\.cpp, not for engine vllm"):
        read_engine_metrics(vllm, DATA / "llama.cpp-plain-answers.jsonl")


def test_files_of_two_runs_are_refused(tmp_path: Path) -> None:
    other = edited("vllm-draft-bench.json", tmp_path, lambda d: d.update(model_id="target-16"))
    with pytest.raises(Mismatch, match="made for vllm serving target-16 with 5 drafted tokens, not for vllm serving target-32"):
        read_engine_metrics([DATA / "vllm-draft-bench.json", other])


def test_failed_requests_are_said(tmp_path: Path) -> None:
    path = edited("vllm-draft-bench.json", tmp_path, lambda d: d.update(failed=2))
    assert "2 requests failed" in read_engine_metrics(path).notes


def test_an_unknown_engine_or_format_names_the_nearest() -> None:
    path = DATA / "vllm-draft-bench.json"
    with pytest.raises(UnknownName, match="unknown engine 'vlm'"):
        read_engine_metrics(path, engine="vlm")
    with pytest.raises(UnknownName, match="unknown metrics format 'vllm-bnch': did you mean 'vllm-bench'"):
        read_engine_metrics(path, file_format="vllm-bnch")
    with pytest.raises(BadFile, match=r"it has no timings\.predicted_n, expected llama\.cpp-answers"):
        read_engine_metrics(path, file_format="llama.cpp-answers")


def test_labels_may_hold_braces_quotes_and_commas() -> None:
    snapshot = parse_snapshot(Path("x"), 'a{m="b\\"},{",n="1"} 2 1700000000000\na{m="c"} 3e0\n')
    assert snapshot.total("a") == 5
    assert snapshot.samples[0].label("n") == "1"


@given(st.text(max_size=200))
def test_any_text_is_samples_or_one_error(text: str) -> None:
    message = ""
    try:
        parse_snapshot(Path("x"), text)
    except BadFile as err:
        message = str(err)
    assert not message or "is not a Prometheus sample" in message
