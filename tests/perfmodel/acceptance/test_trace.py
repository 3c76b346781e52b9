"""Traces: their files are read back as written, damaged files are refused, and subsets keep each prompt's positions."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from hypothesis import given, settings

from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.acceptance.trace import TRACE_FILE, Trace, TracedPrompt, TraceHeader
from perfmodel.core.errors import BadFile
from perfmodel.core.provenance import Provenance
from tests.strategies import TraceSpec, make_trace, traces

PROVENANCE = Provenance(
    utc_time="2026-01-01T00:00:00Z",
    tool_version="0.1.0",
    git_commit=None,
    command="pytest",
    host="here",
    device=None,
    driver=None,
    libraries={},
    seed=None,
    inputs={},
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeaderAndColumns:
    """A trace whose columns are not checked."""

    header: TraceHeader
    columns: dict[str, np.ndarray]

    @classmethod
    def from_columns(cls, header: TraceHeader, columns: Mapping[str, np.ndarray]) -> Self:
        return cls(header=header, columns=dict(columns))


def write_columns(path: Path, trace: Trace, columns: dict[str, np.ndarray]) -> None:
    dtypes = {name: str(column.dtype) for name, column in columns.items()}
    changed = replace(TRACE_FILE, record=HeaderAndColumns, dtypes=dtypes)
    changed.write(path, HeaderAndColumns(header=trace.header, columns=columns), PROVENANCE)


@settings(max_examples=25)
@given(trace=traces())
def test_a_trace_is_read_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.npz"
    TRACE_FILE.write(path, trace, PROVENANCE)
    stored = TRACE_FILE.read(path)
    assert stored.record.header == trace.header
    assert stored.provenance == PROVENANCE
    assert stored.record.columns.keys() == trace.columns.keys()
    for name, column in trace.columns.items():
        np.testing.assert_array_equal(stored.record.columns[name], column)


def test_writing_what_was_read_gives_the_same_bytes(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "a.npz", make_trace(TraceSpec(num_positions=[9, 4])), PROVENANCE)
    TRACE_FILE.write(tmp_path / "b.npz", TRACE_FILE.read(tmp_path / "a.npz").record, PROVENANCE)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_truncated_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    TRACE_FILE.write(path, make_trace(TraceSpec(num_positions=[9])), PROVENANCE)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadFile, match="truncated or damaged"):
        TRACE_FILE.read(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "trace.npz", make_trace(TraceSpec(num_positions=[9]))
    replace(TRACE_FILE, header=replace(TRACE_FILE.header, schema="s2d/plan")).write(path, trace, PROVENANCE)
    with pytest.raises(BadFile, match="this is a file of schema 's2d/plan', expected 's2d/acceptance-trace'"):
        TRACE_FILE.read(path)


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "trace.npz", make_trace(TraceSpec(num_positions=[9]))
    columns = trace.columns
    del columns["accept_prob"]
    write_columns(path, trace, columns)
    with pytest.raises(BadFile, match="it holds the arrays confidence, .*: expected accept_prob, confidence"):
        TRACE_FILE.read(path)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("confidence", np.zeros((9, 3), np.float32), r"trace column confidence: shape \(9, 3\), expected \(9, 4\)"),
        ("target_token", np.zeros(8, np.int32), r"trace column target_token: shape \(8,\), expected \(9,\)"),
        ("draft_token", np.zeros((9, 4), np.int64), "array 'draft_token' has dtype int64, expected int32"),
        ("confidence", np.full((9, 4), 1.5, np.float32), "trace column confidence: values from 1.5 to 1.5, expected 0 to 1"),
        ("accept_prob", np.full((9, 4), 0.5, np.float32), "trace column accept_prob: under rule 'greedy' expected 1 where"),
        ("off_path_position", np.zeros(3, np.int32), r"trace column off_path_exit: shape \(0,\), expected \(3,\)"),
    ],
)
def test_a_wrong_column_is_refused(tmp_path: Path, name: str, column: np.ndarray, message: str) -> None:
    path, trace = tmp_path / "trace.npz", make_trace(TraceSpec(num_positions=[9]))
    write_columns(path, trace, trace.columns | {name: column})
    with pytest.raises(BadFile, match=message) as caught:
        TRACE_FILE.read(path)
    assert "s2d-profile acceptance" in str(caught.value)


def test_tokens_off_the_path_must_belong_to_positions_and_exits_of_the_trace(tmp_path: Path) -> None:
    path, trace = tmp_path / "trace.npz", make_trace(TraceSpec(num_positions=[9], num_off_path=1))
    for name, value, largest in (("off_path_position", 9, 8), ("off_path_exit", 4, 3)):
        write_columns(path, trace, trace.columns | {name: np.array([value], np.int32)})
        with pytest.raises(BadFile, match=f"trace column {name}: from {value} to {value}, expected 0 to {largest}"):
            TRACE_FILE.read(path)


@settings(max_examples=100)
@given(traces())
def test_a_token_is_accepted_by_the_rule_of_the_sampling(trace: Trace) -> None:
    accepted, row = trace.accepted, 0
    for prompt in trace.header.prompts:
        rows = slice(row, row := row + prompt.num_positions)
        expected = trace.draft_token[rows] == trace.target_token[rows][:, None]
        if trace.header.sampling.rule == "ratio":
            seed = trace.header.sampling.seed or 0, zlib.crc32(prompt.name.encode())
            expected = np.random.default_rng(seed).random(prompt.num_positions)[:, None] < trace.accept_prob[rows]
        np.testing.assert_array_equal(accepted[rows], expected)


def test_a_subset_keeps_the_positions_of_each_prompt() -> None:
    trace = make_trace(TraceSpec(num_positions=[3, 5, 2]))
    some = trace.subset([2, 0])
    assert [prompt.name for prompt in some.header.prompts] == ["prompt-2", "prompt-0"]
    np.testing.assert_array_equal(some.target_token, trace.target_token[[8, 9, 0, 1, 2]])


def test_a_subset_keeps_the_tokens_off_the_path_of_its_positions() -> None:
    trace = make_trace(TraceSpec(num_positions=[3, 5, 2]))
    sure = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    trace = replace(trace, off_path=OffPath(position=np.array([9, 4, 1, 4], np.int32), exit=np.arange(4), confidence=sure))
    some = trace.subset([2, 0])
    assert some.off_path.position.tolist() == [1, 3]
    assert some.off_path.exit.tolist() == [0, 2]
    np.testing.assert_array_equal(some.off_path.confidence, sure[[0, 2]])
    assert trace.shortened(2).off_path.position.tolist() == [5, 3, 1, 3]


def test_a_shortened_trace_keeps_the_first_positions_of_each_prompt() -> None:
    trace = make_trace(TraceSpec(num_positions=[9, 2, 5], max_new_tokens=9))
    short = trace.shortened(4)
    assert [prompt.num_positions for prompt in short.header.prompts] == [4, 2, 4]
    assert short.header.max_new_tokens == 4
    np.testing.assert_array_equal(short.target_token, trace.target_token[[0, 1, 2, 3, 9, 10, 11, 12, 13, 14]])
    assert trace.shortened(20).header == trace.header


def test_a_shortened_trace_counts_distinct_6grams_in_the_remaining_text() -> None:
    trace = make_trace(TraceSpec(num_positions=[20, 6], max_new_tokens=20))
    looping = replace(trace, target_token=np.array([*range(8), *[7] * 12, *range(6)], np.int32))
    assert [prompt.distinct_6gram_frac for prompt in looping.shortened(8).header.prompts] == [
        1.0,
        trace.header.prompts[1].distinct_6gram_frac,
    ]
    assert looping.shortened(19).header.prompts[0].distinct_6gram_frac == pytest.approx(8 / 14)


def test_a_prompt_without_tokens_is_refused() -> None:
    prompt = TracedPrompt(name="p", category="code", prompt_tokens=3, num_positions=4, distinct_6gram_frac=1.0)
    with pytest.raises(ValueError, match="at least one token before and one emitted"):
        replace(prompt, num_positions=0)


@pytest.mark.parametrize("tokens", [-1, 0, 2**24 + 1, 2**70])
def test_a_trace_of_an_impossible_length_is_refused_on_reading(tmp_path: Path, tokens: int) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(TraceSpec(num_positions=[3], max_new_tokens=4242)), PROVENANCE)
    with zipfile.ZipFile(tmp_path / "trace.npz") as whole, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        for name in whole.namelist():
            bad.writestr(name, whole.read(name).replace(b"4242", str(tokens).encode()))
    with pytest.raises(BadFile, match=f"max_new_tokens is {tokens}, expected 1 to 16777216"):
        TRACE_FILE.read(tmp_path / "bad.npz")
