"""Which passes are needed, and that the grid is spread over all it should be."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.policies.policy import ConfidenceFloor
from perfmodel.policies.sampling import GREEDY
from perfmodel.replay.replay import replay_batch, replay_prompts
from profiler.latency.pass_grid import (
    BACKLOG_FRACS,
    LEAVE_FRACS,
    PassKey,
    ProfilingRun,
    exit_subsets,
    longest_backlog,
    needed_passes,
    run_grid,
    threshold_leaving,
)
from profiler.latency.pass_log import PassLog
from profiler.latency.profiling_job import ProfilingJob, profiling_runs
from s2d.decoding.encode_prompts import EncodedPrompt
from tests.s2d.decoding.test_replay_equals_runtime import tiny_pair
from tests.s2d.model.test_cuda_graphs import graphed
from tests.strategies import TraceSpec, make_trace

EXITS = (1, 2, 4, 6)
TEXTS = make_trace(TraceSpec(num_positions=(120,) * 4, max_new_tokens=120, num_confidences=10**6))
CONFIDENCE = TEXTS.confidence


def grid_of(seed: int, exits: tuple[int, ...] = EXITS, *, runs_ahead: bool = False) -> tuple[ProfilingRun, ...]:
    spec = TraceSpec(num_positions=(120,) * 4, exit_layers=exits, agreement=(0.8,) * len(exits), max_new_tokens=120)
    trace = TEXTS if exits == EXITS else make_trace(spec)
    return run_grid([trace.subset([text]) for text in range(4)], draft_cap=12, seed=seed, runs_ahead=runs_ahead)


def test_the_needed_passes_are_all_shapes_of_a_round() -> None:
    needed = needed_passes(num_exits=2, draft_cap=3, runs_ahead=False)
    by_kind = {
        kind: sorted((key.stage, key.rows) for key in needed if key.kind == kind) for kind in ("verify", "exit", "segment")
    }
    assert by_kind["verify"] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert by_kind["exit"] == [(0, 1), (1, 1)]
    assert by_kind["segment"] == [(0, 1), (0, 2), *((1, rows) for rows in range(1, 6))]
    assert {key.rows for key in needed if key.kind == "round"} == {0, 1, 2, 3}


def test_running_ahead_adds_one_or_two_rows_to_the_second_segment_and_backlogs_to_later_ones() -> None:
    waiting, running = (needed_passes(num_exits=3, draft_cap=3, runs_ahead=ahead) for ahead in (False, True))
    assert waiting < running
    added = sorted((key.kind, key.stage, key.rows) for key in running - waiting)
    assert added == [("ahead", 1, 1), ("ahead", 1, 2), *(("ahead", 2, rows) for rows in range(1, 6))]


def test_catching_up_at_once_adds_no_needed_pass() -> None:
    needed = needed_passes(num_exits=len(EXITS), draft_cap=12, runs_ahead=False)
    at_once = [replace(run.policy, catches_up_at_once=True) for run in grid_of(4) if run.policy.thresholds]
    passes = [count for stats in replay_batch(TEXTS, at_once).stats() for count in stats.passes]
    assert {count.rows for count in passes if count.kind == "segment"} == {1, 2}
    assert {PassKey(kind=count.kind, stage=count.stage, rows=count.rows) for count in passes} <= needed


def test_every_other_policy_with_several_exits_runs_ahead_on_request() -> None:
    waiting, running = grid_of(4), grid_of(4, runs_ahead=True)
    short, ahead = ([run.policy for run in grid if run.text is None] for grid in (waiting, running))
    assert [replace(policy, runs_ahead=False) for policy in ahead] == short
    gated = [policy for policy in ahead if len(policy.exits) > 1]
    assert 0.4 < sum(policy.runs_ahead for policy in gated) / len(gated) < 0.6
    assert {policy.exits for policy in gated if policy.runs_ahead} == {policy.exits for policy in gated}


def test_long_runs_push_backlogs_ahead_of_exits_too() -> None:
    long = [run for run in grid_of(0, runs_ahead=True) if run.text is not None and run.policy.runs_ahead]
    assert [run.policy.exits for run in long] == [(1, 2, 6), (2, 4, 6)]
    for run in long:
        rounds = replay_prompts(TEXTS.subset([run.text or 0]), run.policy)
        assert max(count.rows for stats in rounds for count in stats.passes if count.kind == "ahead") > 80


def test_all_sets_of_four_exits_are_run_and_of_many_exits_all_neighbours() -> None:
    assert len(set(exit_subsets(EXITS))) == 15
    many = exit_subsets(tuple(range(1, 9)))
    assert len(set(many)) == 36
    assert all(later - earlier == 1 for subset in many for earlier, later in pairwise(subset))


def test_a_grid_covers_every_subset_every_length_and_every_gate() -> None:
    policies = [run.policy for run in grid_of(3) if run.text is None]
    assert {policy.exits for policy in policies} == set(exit_subsets(EXITS))
    assert {policy.tokens for policy in policies} == set(range(1, 13))
    assert any(isinstance(policy.stop, ConfidenceFloor) for policy in policies)
    first = [policy.thresholds[0] for policy in policies if policy.thresholds and policy.exits[0] == 1]
    gates = {round(float((CONFIDENCE[:, 0] >= threshold).mean()), 2) for threshold in first}
    assert gates == set(LEAVE_FRACS)


def test_long_runs_push_backlogs_nearly_as_long_as_a_text_through_every_later_segment() -> None:
    long = [run for run in grid_of(0) if run.text is not None]
    longest = {run.policy.exits: 0 for run in long}
    for run in long:
        backlog = longest_backlog(TEXTS.subset([run.text or 0]), run.policy)
        longest[run.policy.exits] = max(longest[run.policy.exits], backlog)
    assert set(longest) == {(1, 6), (2, 6), (4, 6)}
    assert min(longest.values()) > 80


def test_long_runs_push_shorter_backlogs_too() -> None:
    first = [run for run in grid_of(0) if run.text is not None and run.policy.exits == (1, 6)]
    backlogs = [longest_backlog(TEXTS.subset([run.text or 0]), run.policy) for run in first]
    assert len(first) == len(BACKLOG_FRACS)
    for backlog, frac in zip(backlogs, BACKLOG_FRACS, strict=True):
        assert backlog == pytest.approx(frac * max(backlogs), abs=8)


def test_a_draft_with_one_exit_has_no_long_runs() -> None:
    assert {run.policy.exits for run in grid_of(0, (6,))} == {(6,)}
    assert {run.new_tokens for run in grid_of(0, (6,))} == {120}


def test_a_grid_is_the_same_for_the_same_seed() -> None:
    grids = [grid_of(seed) for seed in (1, 1, 2)]
    assert grids[0] == grids[1] != grids[2]


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=50), st.sampled_from(LEAVE_FRACS))
def test_a_threshold_lies_strictly_between_confidences(values: list[float], leave_frac: float) -> None:
    confidence = np.array(values, dtype=np.float32)
    threshold = threshold_leaving(confidence, leave_frac)
    assert 0 <= threshold <= 1
    if len(set(values)) > 1:
        assert threshold not in set(map(float, values))
        assert min(values) < threshold < max(values)


def test_a_threshold_lets_the_requested_share_leave() -> None:
    confidence = (np.arange(100, dtype=np.float32) + 1) / 101
    for leave_frac in LEAVE_FRACS:
        assert (confidence >= threshold_leaving(confidence, leave_frac)).mean() == pytest.approx(leave_frac, abs=0.011)


@pytest.mark.parametrize(
    ("key", "label"),
    [
        (PassKey(kind="segment", stage=1, rows=5), "segment 2 of 5 rows"),
        (PassKey(kind="verify", stage=0, rows=1), "verify of 1 row"),
        (PassKey(kind="draft_prefill", stage=1, rows=9), "draft prefill 2 of 9 rows"),
        (PassKey(kind="target_prefill", stage=0, rows=9), "target prefill of 9 rows"),
    ],
)
def test_a_pass_is_named_with_a_1_based_stage(key: PassKey, label: str) -> None:
    assert key.label == label


@pytest.mark.parametrize("is_graphed", [False, True])
def test_running_ahead_is_measured_where_passes_are_graphs(is_graphed: bool) -> None:
    pair = tiny_pair("separate")
    if is_graphed:
        pair = replace(pair, target=graphed(pair.target), draft=graphed(pair.draft))
    prompts = (EncodedPrompt(name="a", category="random", token_ids=(3, 1, 2)),)
    common = {"sampling": GREEDY, "confidence": "max-prob", "max_new_tokens": 12, "draft_cap": 4, "seed": 0}
    job, log = ProfilingJob(pair=replace(pair, eos_token_id=None), prompts=prompts, **common), PassLog()
    runs = profiling_runs(job, log)
    while not next(runs).all_taken:
        pass
    assert ("ahead" in log.samples().kind) == is_graphed == any(key.kind == "ahead" for key in job.needed_passes())
