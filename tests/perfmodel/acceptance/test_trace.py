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
from perfmodel.core.errors import BadFile, BadPolicy, UserInputError
from perfmodel.core.provenance import Provenance
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.replay import block_lengths, replay, replay_prompts
from tests.strategies import TraceSpec, make_trace, tiny_geometry, traces

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


MODEL = tiny_geometry(12)


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
    with pytest.raises(BadFile, match=r"it holds the arrays confidence, .*: expected accept_prob, confidence"):
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
    confidence = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    trace = replace(
        trace, off_path=OffPath(position=np.array([9, 4, 1, 4], np.int32), exit=np.arange(4), confidence=confidence)
    )
    some = trace.subset([2, 0])
    assert some.off_path.position.tolist() == [1, 3]
    assert some.off_path.exit.tolist() == [0, 2]
    np.testing.assert_array_equal(some.off_path.confidence, confidence[[0, 2]])
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


def test_a_trace_from_arrays_is_replayed_by_hand_arithmetic() -> None:
    """Tokens leave exit 6 from .5 on. Those of positions 4 and 6 are rejected, so rounds emit 3, 2, 2 and 1 tokens."""
    confidence = [[0.9, 0.9], [0.1, 0.8], [0.9, 0.9], [0.6, 0.9], [0.7, 0.9], [0.2, 0.3], [0.8, 0.8], [0.9, 0.9]]
    agrees = [[1, 1], [0, 1], [1, 1], [1, 1], [0, 1], [0, 1], [0, 1], [1, 1]]
    trace = Trace.from_arrays(confidence, agrees, exits=(6, 12))
    policy = Policy(exits=(6, 12), thresholds=(0.5,), tokens=2)
    assert block_lengths(trace, policy) == (((2, 2), (2, 1), (2, 1), (0, 0)),)
    stats = replay(trace, policy)
    assert (stats.num_rounds, stats.num_tokens, stats.num_drafted, stats.num_accepted) == (4, 8, 6, 4.0)
    assert (stats.tokens_per_round, stats.accepted_frac, stats.exits_taken) == (2.0, 4 / 6, (4, 2))


def test_the_prompts_of_a_trace_from_arrays_are_lengths_or_a_name_for_each_row() -> None:
    arrays = np.full((5, 1), 0.5), np.ones((5, 1), bool)
    by_length = Trace.from_arrays(*arrays, exits=(6,), prompts=[2, 3], prompt_tokens=[7, 9])
    assert [(p.name, p.num_positions, p.prompt_tokens) for p in by_length.header.prompts] == [
        ("prompt-0", 2, 7),
        ("prompt-1", 3, 9),
    ]
    by_name = Trace.from_arrays(*arrays, exits=(6,), prompts=["a", "a", "b", "b", "b"])
    assert [(p.name, p.num_positions) for p in by_name.header.prompts] == [("a", 2), ("b", 3)]
    policy = Policy(exits=(6,), tokens=4)
    assert replay_prompts(by_name, policy) != replay_prompts(by_length, policy)  # cached tokens differ
    assert replay(by_name, policy).tokens_per_round == replay(by_length, policy).tokens_per_round


def test_a_text_from_arrays_that_is_shorter_than_the_limit_ends_with_an_end_of_text_token() -> None:
    arrays = np.full((4, 1), 0.5), np.ones((4, 1), bool)
    assert Trace.from_arrays(*arrays, exits=(6,)).header.eos_token_id is None
    ended = Trace.from_arrays(*arrays, exits=(6,), max_new_tokens=100)
    assert block_lengths(ended, Policy(exits=(6,), tokens=8)) == (((4, 4),),)  # the accepted end of text has no bonus
    missed = Trace.from_arrays(arrays[0], [[1], [1], [1], [0]], exits=(6,), max_new_tokens=100)
    assert block_lengths(missed, Policy(exits=(6,), tokens=8)) == (((8, 3),),)  # drafting goes on past the end


def test_acceptance_probabilities_from_arrays_are_replayed_by_the_ratio_test() -> None:
    ratio = Sampling(rule="ratio", temperature=1.0, top_k=None, top_p=None, seed=1)
    trace = Trace.from_arrays(np.full((4000, 1), 0.5), np.full((4000, 1), 0.7), exits=(6,), sampling=ratio)
    assert replay(trace, Policy(exits=(6,), tokens=1)).accepted_frac == pytest.approx(0.7, abs=0.03)


def test_a_trace_from_arrays_is_written_and_read_back(tmp_path: Path) -> None:
    trace = Trace.from_arrays(np.full((3, 2), 0.5), np.ones((3, 2)), exits=(6, 12), max_new_tokens=9)
    TRACE_FILE.write(tmp_path / "trace.npz", trace, PROVENANCE)
    stored = TRACE_FILE.read(tmp_path / "trace.npz").record
    assert stored.header == trace.header
    assert stored.shortened(2).header.prompts[0].distinct_6gram_frac is None


@pytest.mark.parametrize("name", ["draft", "target"])
def test_an_unknown_model_of_a_trace_from_arrays_is_named_where_it_is_needed(name: str) -> None:
    header = Trace.from_arrays([[0.5]], [[1]], exits=(6,)).header
    message = f"the trace has no geometry of its {name}: expected one, .* Give {name}= to s2d.plan or {name}_model= to Trace"
    with pytest.raises(UserInputError, match=message):
        getattr(header, name)
    known = Trace.from_arrays([[0.5]], [[1]], exits=(6,), draft_model=MODEL, target_model=MODEL).header
    assert (known.draft.model, known.draft.exit_layers, known.target) == (MODEL, (6,), MODEL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": [0.5, 0.5]}, r"confidence has shape \(2,\), expected \(P, 1\): a row for each position"),
        ({"confidence": np.zeros((0, 1))}, r"confidence has shape \(0, 1\), expected \(P, 1\)"),
        (
            {"exits": (6, 12)},
            r"confidence has shape \(2, 1\), expected \(P, 2\): a row for each position, a column for each exit",
        ),
        ({"agrees": [[1]]}, r"agrees has shape \(1, 1\), expected \(2, 1\), the shape of confidence"),
        ({"confidence": [[0.5], [float("nan")]]}, "confidence is NaN in row 1, column 0: expected numbers from 0 to 1"),
        ({"confidence": [[0.5], [1.5]]}, "confidence holds values from 0.5 to 1.5, expected 0 to 1"),
        ({"agrees": [[1], [-1]]}, "agrees holds values from -1 to 1, expected 0 to 1"),
        ({"agrees": [[1], [0.5]]}, "agrees holds values between 0 and 1 under rule 'greedy', expected 0 or 1"),
        ({"prompts": [1, 2]}, "prompts has lengths that add up to 3, the shortest 1: expected at least 1 each, and 2 in all"),
        ({"prompts": [2, 0]}, "prompts has lengths that add up to 2, the shortest 0: expected at least 1 each"),
        ({"prompts": ["a"]}, "prompts has 1 names, expected one for each of the 2 rows"),
        ({"prompts": [1, 1], "prompt_tokens": [3]}, "prompt_tokens has 1 entries, expected one for each of the 2 prompts"),
        ({"max_new_tokens": 1}, "max_new_tokens is 1, expected at least 2, the length of the longest text"),
        ({"exits": (0,)}, "exit"),
    ],
)
def test_arrays_that_make_no_trace_are_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"confidence": [[0.5], [0.5]], "agrees": [[1], [0]], "exits": (6,)}
    with pytest.raises((ValueError, BadPolicy), match=message):
        Trace.from_arrays(**(arguments | changes))  # type: ignore[arg-type]


def test_rows_of_a_prompt_that_do_not_follow_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 'a' do not follow each other, expected each prompt's rows together"):
        Trace.from_arrays(np.full((3, 1), 0.5), np.ones((3, 1)), exits=(6,), prompts=["a", "b", "a"])
