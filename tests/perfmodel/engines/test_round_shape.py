"""Passes of an engine's round, counted from those of the bundled runtime's round."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.acceptance.trace import Trace
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.find_engine import find_engine
from perfmodel.engines.round_shape import with_round_shape
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.replay.replay import replay, replay_prompts
from perfmodel.replay.round_stats import RoundStats
from tests.calibrate.factories import make_trace

TRACE = make_trace()
TRACE_PATH = "tests/data/engine_metrics/trace.npz"
VLLM_DRAFTED = [95, 65, 90, 60, 60, 85]
LAYERS = TRACE.header.exit_layers


def policy_of(stage: int, tokens: int) -> Policy:
    return Policy(exits=(LAYERS[stage],), tokens=tokens)


def rounds_of(stage: int, tokens: int) -> RoundStats:
    return replay(TRACE, policy_of(stage, tokens))


def rows_of(rounds: RoundStats, kind: str, stage: int) -> Counter[int]:
    return Counter({part.rows: part.num_passes for part in rounds.passes if (part.kind, part.stage) == (kind, stage)})


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12))
def test_the_default_shape_and_plain_decoding_change_nothing(stage: int, tokens: int) -> None:
    rounds, plain = rounds_of(stage, tokens), replay(TRACE, None)
    assert with_round_shape(rounds, RoundShape(), policy_of(stage, tokens)) == rounds
    assert with_round_shape(plain, RoundShape(rereads_block=True), None) == plain


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12))
def test_rereading_adds_one_pass_over_each_verified_block(stage: int, tokens: int) -> None:
    rounds = rounds_of(stage, tokens)
    shaped = with_round_shape(rounds, RoundShape(rereads_block=True), policy_of(stage, tokens))
    blocks = Counter({rows: number for rows, number in rows_of(rounds, "verify", 0).items() if rows > 1})
    singles = Counter({1: rounds.num_drafted})
    for kind, at in [("segment", segment) for segment in range(stage + 1)] + [("exit", stage)]:
        assert rows_of(shaped, kind, at) == singles + blocks
    assert rows_of(shaped, "verify", 0) == rows_of(rounds, "verify", 0)


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12))
def test_catching_up_apart_adds_one_pass_after_each_fully_accepted_block(stage: int, tokens: int) -> None:
    rounds = rounds_of(stage, tokens)
    shaped = with_round_shape(rounds, RoundShape(catches_up_apart=True), policy_of(stage, tokens))
    num_wide = rows_of(rounds, "segment", stage)[2]
    assert num_wide <= rounds.accepted_by_position[-1] + rounds.num_prompts * tokens
    assert rows_of(shaped, "segment", stage) == Counter({1: rounds.num_drafted + num_wide})
    assert rows_of(shaped, "exit", stage) == Counter({1: rounds.num_drafted + num_wide})


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12), rereads=st.booleans())
def test_every_row_is_read_over_the_same_cached_tokens(stage: int, tokens: int, rereads: bool) -> None:
    """Each drafted token is one row. Passes of the same rows one by one read one more cached token each."""
    rounds = rounds_of(stage, tokens)
    shaped = with_round_shape(rounds, RoundShape(catches_up_apart=not rereads, rereads_block=rereads), policy_of(stage, tokens))
    single = next(part for part in shaped.passes if (part.kind, part.stage, part.rows) == ("segment", stage, 1))
    wide = [part for part in rounds.passes if (part.kind, part.stage) == ("segment", stage) and part.rows > 1]
    before = math.fsum(part.cached_tokens_sum for part in rounds.passes if (part.kind, part.stage) == ("segment", stage))
    added = 0 if rereads else math.fsum(part.cached_tokens_sum for part in wide)
    assert single.cached_tokens_sum == before + added + sum(part.num_passes for part in wide)


def test_a_dropped_token_costs_its_pass_and_an_empty_block_is_read_again_too() -> None:
    stop = ConfidenceFloor(floor=0.6, keeps_token=False)
    policy = Policy(exits=(LAYERS[1],), tokens=4, stop=stop)
    rounds = replay(TRACE, policy)
    num_dropped = rounds.num_passes("exit") - rounds.num_drafted
    shaped = with_round_shape(rounds, RoundShape(rereads_block=True), policy)
    blocks = rows_of(rounds, "verify", 0)
    empty = min(num_dropped, blocks[1])
    assert empty > 0
    assert rows_of(shaped, "segment", 1)[1] == rounds.num_drafted + num_dropped + empty
    assert rows_of(shaped, "exit", 1) == Counter(
        {1: rounds.num_drafted + num_dropped + empty} | {r: n for r, n in blocks.items() if r > 1}
    )


def test_starting_with_the_block_widens_one_pass_of_each_round() -> None:
    rounds = rounds_of(2, 4)
    shaped = with_round_shape(rounds, RoundShape(starts_with_block=True), policy_of(2, 4))
    wide = Counter({rows + 1: number for rows, number in rows_of(rounds, "verify", 0).items() if rows > 1})
    single = rounds.num_drafted - sum(wide.values())
    assert rows_of(shaped, "segment", 2) == wide + Counter({1: single})
    assert rows_of(shaped, "exit", 2) == Counter({1: rounds.num_drafted})


def test_several_exits_have_no_round_shape() -> None:
    policy = Policy(exits=LAYERS[:2], thresholds=(0.6,), tokens=4)
    with pytest.raises(ValueError, match="one exit alone"):
        with_round_shape(replay(TRACE, policy), RoundShape(rereads_block=True), policy)


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12))
def test_past_the_limit_every_block_is_whole_and_as_many_tokens_are_accepted(stage: int, tokens: int) -> None:
    rounds = rounds_of(stage, tokens)
    shaped = with_round_shape(rounds, RoundShape(drafts_past_limit=True), policy_of(stage, tokens))
    assert (shaped.num_rounds, shaped.num_tokens, shaped.num_accepted) == (
        rounds.num_rounds,
        rounds.num_tokens,
        rounds.num_accepted,
    )
    assert shaped.num_drafted == shaped.exits_taken[stage] == rounds.num_rounds * tokens
    assert shaped.drafted_by_position == (rounds.num_rounds,) * tokens
    assert sum(shaped.accepted_by_position) == rounds.num_accepted
    assert rows_of(shaped, "verify", 0) == Counter({tokens + 1: rounds.num_rounds})
    assert rows_of(shaped, "round", 0) == Counter({tokens: rounds.num_rounds})
    assert rows_of(shaped, "exit", stage) == Counter({1: shaped.num_drafted})
    for segment in range(stage + 1):
        first = [part for part in shaped.cold_passes if (part.kind, part.stage, part.place) == ("segment", segment, 1)]
        assert sum(rows_of(shaped, "segment", segment).values()) == shaped.num_drafted
        assert [part.num_passes for part in first] == [rounds.num_rounds]


def test_onnxruntime_counted_as_many_draft_passes_as_its_shape_has() -> None:
    """Recorded: `draft_forward_passes`, one more than drafted tokens for each fully accepted block that a round follows."""
    lines = Path("tests/data/engine_metrics/onnxruntime-draft.jsonl").read_text().splitlines()
    counted = [json.loads(line)["draft_forward_passes"] for line in lines]
    policy, shape = Policy(exits=(4,), tokens=5), find_engine("onnxruntime").round_shape
    shaped = [with_round_shape(rounds, shape, policy) for rounds in replay_prompts(Trace.load(TRACE_PATH), policy)]
    differences = [rounds.num_passes("exit") - number for rounds, number in zip(shaped, counted, strict=True)]
    assert differences == [0, 0, 0, 0, 0, 1]


def test_an_engine_that_drafts_past_the_limit_drafts_as_many_tokens_as_vllm_counted() -> None:
    """Recorded: 91 rounds of 5 tokens each, the six last ones included (tests/data/engine_metrics)."""
    trace = Trace.load(TRACE_PATH).without_first(1)
    policy = Policy(exits=(4,), tokens=5)
    shape = find_engine("vllm").round_shape
    assert [with_round_shape(rounds, shape, policy).num_drafted for rounds in replay_prompts(trace, policy)] == VLLM_DRAFTED
