"""Passes of an engine's round, counted from those of the bundled runtime's round."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.engines.engine import RoundShape
from perfmodel.engines.round_shape import with_round_shape
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.replay.replay import replay
from perfmodel.replay.round_stats import RoundStats
from tests.calibrate.factories import make_trace

TRACE = make_trace()
LAYERS = TRACE.header.exit_layers


def rounds_of(stage: int, tokens: int) -> RoundStats:
    return replay(TRACE, Policy(exits=(LAYERS[stage],), tokens=tokens))


def rows_of(rounds: RoundStats, kind: str, stage: int) -> Counter[int]:
    return Counter({part.rows: part.num_passes for part in rounds.passes if (part.kind, part.stage) == (kind, stage)})


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12))
def test_the_default_shape_and_plain_decoding_change_nothing(stage: int, tokens: int) -> None:
    rounds, plain = rounds_of(stage, tokens), replay(TRACE, None)
    assert with_round_shape(rounds, RoundShape()) == rounds
    assert with_round_shape(plain, RoundShape(rereads_block=True)) == plain


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12))
def test_rereading_adds_one_pass_over_each_verified_block(stage: int, tokens: int) -> None:
    rounds = rounds_of(stage, tokens)
    shaped = with_round_shape(rounds, RoundShape(rereads_block=True))
    blocks = Counter({rows: number for rows, number in rows_of(rounds, "verify", 0).items() if rows > 1})
    singles = Counter({1: rounds.num_drafted})
    for kind, at in [("segment", segment) for segment in range(stage + 1)] + [("exit", stage)]:
        assert rows_of(shaped, kind, at) == singles + blocks
    assert rows_of(shaped, "verify", 0) == rows_of(rounds, "verify", 0)


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12))
def test_catching_up_apart_adds_one_pass_after_each_fully_accepted_block(stage: int, tokens: int) -> None:
    rounds = rounds_of(stage, tokens)
    shaped = with_round_shape(rounds, RoundShape(catches_up_apart=True))
    num_wide = rows_of(rounds, "segment", stage)[2]
    assert num_wide <= rounds.accepted_by_position[-1] + rounds.num_prompts * tokens
    assert rows_of(shaped, "segment", stage) == Counter({1: rounds.num_drafted + num_wide})
    assert rows_of(shaped, "exit", stage) == Counter({1: rounds.num_drafted + num_wide})


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12), rereads=st.booleans())
def test_every_row_is_read_over_the_same_cached_tokens(stage: int, tokens: int, rereads: bool) -> None:
    """Each drafted token is one row. Passes of the same rows one by one read one more cached token each."""
    rounds = rounds_of(stage, tokens)
    shaped = with_round_shape(rounds, RoundShape(catches_up_apart=not rereads, rereads_block=rereads))
    single = next(part for part in shaped.passes if (part.kind, part.stage, part.rows) == ("segment", stage, 1))
    wide = [part for part in rounds.passes if (part.kind, part.stage) == ("segment", stage) and part.rows > 1]
    before = math.fsum(part.cached_tokens_sum for part in rounds.passes if (part.kind, part.stage) == ("segment", stage))
    added = 0 if rereads else math.fsum(part.cached_tokens_sum for part in wide)
    assert single.cached_tokens_sum == before + added + sum(part.num_passes for part in wide)


def test_a_dropped_token_costs_its_pass_and_an_empty_block_is_read_again_too() -> None:
    stop = ConfidenceFloor(floor=0.6, keeps_token=False)
    rounds = replay(TRACE, Policy(exits=(LAYERS[1],), tokens=4, stop=stop))
    num_dropped = rounds.num_passes("exit") - rounds.num_drafted
    shaped = with_round_shape(rounds, RoundShape(rereads_block=True))
    blocks = rows_of(rounds, "verify", 0)
    empty = min(num_dropped, blocks[1])
    assert empty > 0
    assert rows_of(shaped, "segment", 1)[1] == rounds.num_drafted + num_dropped + empty
    assert rows_of(shaped, "exit", 1) == Counter(
        {1: rounds.num_drafted + num_dropped + empty} | {r: n for r, n in blocks.items() if r > 1}
    )


def test_starting_with_the_block_widens_one_pass_of_each_round() -> None:
    rounds = rounds_of(2, 4)
    shaped = with_round_shape(rounds, RoundShape(starts_with_block=True))
    wide = Counter({rows + 1: number for rows, number in rows_of(rounds, "verify", 0).items() if rows > 1})
    single = rounds.num_drafted - sum(wide.values())
    assert rows_of(shaped, "segment", 2) == wide + Counter({1: single})
    assert rows_of(shaped, "exit", 2) == Counter({1: rounds.num_drafted})


def test_several_exits_have_no_round_shape() -> None:
    rounds = replay(TRACE, Policy(exits=LAYERS[:2], thresholds=(0.6,), tokens=4))
    with pytest.raises(ValueError, match="one exit alone"):
        with_round_shape(rounds, RoundShape(rereads_block=True))
