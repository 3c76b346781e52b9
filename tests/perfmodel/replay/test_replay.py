"""Replay: what was compiled equal to the telling token by token, and both to known answers and the words of the algorithm."""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings

from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import BadPolicy
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    SurvivalFloor,
)
from perfmodel.replay import compiled
from perfmodel.replay.compiled import count_replay
from perfmodel.replay.counts import BLOCK, COLD, KINDS, TAKEN
from perfmodel.replay.layout import lay_out
from perfmodel.replay.reference import Entry, tell
from perfmodel.replay.replay import Price, block_lengths, replay_batch, replay_prompts
from perfmodel.replay.round_stats import RoundStats, cold_counts, pass_counts, sum_rounds
from tests.strategies import EOS, TraceSpec, make_trace, traces_with_policies

Case = tuple[Trace, list[Policy | None]]

ANY_PRICE = Price(
    line=lambda kind, stage, rows: (1.0 + len(kind) + 0.1 * stage + 0.01 * rows, 0.001 * rows),
    cold_s=lambda kind, stage, place: (0.1 * len(kind) + 0.01 * stage) / place,
)


def passes_of(stats: RoundStats, kind: str, stage: int = 0) -> dict[int, tuple[int, int]]:
    return {p.rows: (p.num_passes, p.cached_tokens_sum) for p in stats.passes if (p.kind, p.stage) == (kind, stage)}


def assert_counted_as_told(trace: Trace, policies: list[Policy | None]) -> None:
    for by_prompt, keep_blocks in product((False, True), repeat=2):
        how = {"by_prompt": by_prompt, "keep_blocks": keep_blocks}
        assert count_replay(trace, policies, **how).tolist() == list(tell(trace, policies, **how))


def record_of(entries: Sequence[Entry], num_exits: int, num_tokens: int) -> RoundStats:
    """The record of one prompt, from what is told of it, round by round."""
    blocks = [(size, number) for _, what, _, size, number, _ in entries if what == BLOCK]
    told = {(what, stage, size): (number, cached) for _, what, stage, size, number, cached in entries if what != BLOCK}
    passes = {(KINDS[what], *where): both for (what, *where), both in told.items() if what < len(KINDS)}
    longest = max(drafted for drafted, _ in blocks)
    return RoundStats(
        num_prompts=1,
        num_rounds=len(blocks),
        num_tokens=num_tokens,
        num_drafted=sum(drafted for drafted, _ in blocks),
        num_accepted=float(sum(accepted for _, accepted in blocks)),
        drafted_by_position=tuple(sum(drafted > i for drafted, _ in blocks) for i in range(longest)),
        accepted_by_position=tuple(float(sum(accepted > i for _, accepted in blocks)) for i in range(longest)),
        exits_taken=tuple(told.get((TAKEN, stage, 1), (0, 0))[0] for stage in range(num_exits)),
        passes=pass_counts(
            Counter({name: number for name, (number, _) in passes.items()}),
            Counter({name: cached for name, (_, cached) in passes.items()}),
        ),
        cold_passes=cold_counts(
            Counter({(KINDS[what - COLD], *where): both[0] for (what, *where), both in told.items() if what >= COLD})
        ),
    )


@settings(max_examples=400)
@given(traces_with_policies(most=1))
def test_replay_equals_the_token_by_token_telling_in_every_field(case: Case) -> None:
    trace, [policy] = case
    entries = list(tell(trace, [policy], by_prompt=True, keep_blocks=True))
    of_prompt = [[entry for entry in entries if entry[0] == number] for number in range(len(trace.header.prompts))]
    num_exits = len(trace.header.draft.exit_layers)
    assert replay_prompts(trace, policy) == tuple(
        record_of(told, num_exits, prompt.num_positions) for told, prompt in zip(of_prompt, trace.header.prompts, strict=True)
    )
    assert block_lengths(trace, policy) == tuple(
        tuple((size, number) for _, what, _, size, number, _ in told if what == BLOCK) for told in of_prompt
    )


@settings(max_examples=100)
@given(traces_with_policies(most=1))
def test_a_token_is_accepted_by_its_rule(case: Case) -> None:
    trace, _ = case
    tape, row = lay_out(trace, 16), 0
    for place, prompt in enumerate(trace.header.prompts):
        rows = slice(row, row := row + prompt.num_positions)
        expected = trace.draft_token[rows] == trace.target_token[rows][:, None]
        if trace.header.sampling.rule == "ratio":
            seed = trace.header.sampling.seed or 0, zlib.crc32(prompt.name.encode())
            draws = np.random.default_rng(seed).random(prompt.num_positions)
            expected = draws[:, None] < trace.accept_prob[rows]
        text = slice(tape.begin[place], tape.end[place])
        np.testing.assert_array_equal(tape.accepted[:, text].T, expected)


def test_replay_was_compiled() -> None:
    assert compiled._native is not None, "no C compiler was there when s2d was installed: nothing here would be tested"


@settings(max_examples=500)
@given(traces_with_policies())
def test_what_was_compiled_counts_what_is_told_token_by_token(case: Case) -> None:
    assert_counted_as_told(*case)


@settings(max_examples=20)
@given(traces_with_policies())
def test_where_nothing_was_compiled_replay_is_the_same(case: Case) -> None:
    trace, policies = case
    records, seconds = replay_batch(trace, policies).stats(), replay_batch(trace, policies).seconds(ANY_PRICE)
    blocks = block_lengths(trace, policies[0])
    with patch("perfmodel.replay.compiled._native", None):
        assert replay_batch(trace, policies).stats() == records
        assert replay_batch(trace, policies).seconds(ANY_PRICE) == pytest.approx(seconds, rel=1e-12)
        assert block_lengths(trace, policies[0]) == blocks


def test_where_nothing_was_compiled_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    compiled._warn.cache_clear()
    trace = make_trace(TraceSpec(num_positions=[5]))
    with patch("perfmodel.replay.compiled._native", None):
        replay_prompts(trace, None)
        replay_prompts(trace, None)
    [said] = caplog.messages
    assert said.startswith("replay was not compiled when s2d was installed")


@settings(max_examples=150)
@given(traces_with_policies())
def test_many_policies_at_once_are_each_replayed_as_if_alone(case: Case) -> None:
    trace, policies = case
    for stats, policy in zip(replay_batch(trace, policies).stats(), policies, strict=True):
        assert stats == sum_rounds(replay_prompts(trace, policy))


def test_a_crowd_of_policies_comes_back_in_the_order_in_which_it_was_given() -> None:
    trace = make_trace(TraceSpec(num_positions=[40, 25], eos_token_id=EOS))
    lengths = [(tokens, stop) for stop in (None, HeuristicLength(start=1)) for tokens in range(9, 0, -1)]
    gates = [((6,), ()), ((1, 4), (0.7,)), ((1, 4), (0.3,)), ((2,), ())]
    policies: list[Policy | None] = [
        Policy(exits=exits, thresholds=thresholds, tokens=tokens, stop=stop)
        for tokens, stop in lengths
        for exits, thresholds in gates
    ]
    policies = [None, *policies, None]
    for stats, policy in zip(replay_batch(trace, policies).stats(), policies, strict=True):
        assert stats == sum_rounds(replay_prompts(trace, policy))


@settings(max_examples=100)
@given(traces_with_policies())
def test_seconds_are_the_price_of_every_pass_summed(case: Case) -> None:
    trace, policies = case

    batch = replay_batch(trace, policies)
    for seconds, stats in zip(batch.seconds(ANY_PRICE), batch.stats(), strict=True):
        expected = 0.0
        for p in stats.passes:
            base_s, per_cached_token_s = ANY_PRICE.line(p.kind, p.stage, p.rows)
            expected += p.num_passes * base_s + p.cached_tokens_sum * per_cached_token_s
        for early in stats.cold_passes:
            expected += early.num_passes * ANY_PRICE.cold_s(early.kind, early.stage, early.place)
        assert seconds == pytest.approx(expected, rel=1e-12)


@settings(max_examples=100)
@given(traces_with_policies(most=1))
def test_every_policy_emits_the_whole_text_and_no_more(case: Case) -> None:
    trace, [policy] = case
    for stats, prompt in zip(replay_prompts(trace, policy), trace.header.prompts, strict=True):
        assert stats.num_tokens == prompt.num_positions
        assert stats.num_rounds <= stats.num_tokens <= stats.num_accepted + stats.num_rounds


@pytest.mark.parametrize(("agreement", "length"), [(0.3, 2), (0.6, 4), (0.8, 6), (0.9, 10)])
def test_tokens_per_round_match_leviathan_for_independent_agreement(agreement: float, length: int) -> None:
    """(1 - a^(g+1)) / (1 - a): Leviathan et al. 2023, eq. 1. About 40,000 positions: 1.5 % is beyond four standard errors."""
    rng = np.random.default_rng(1)
    trace = make_trace(TraceSpec(num_positions=[40_000], exit_layers=(4,), agreement=(0.5,), max_new_tokens=40_000))
    agrees = rng.random((40_000, 1)) < agreement
    trace = replace(trace, accept_prob=agrees.astype(np.float32))
    [stats] = replay_prompts(trace, Policy(exits=(4,), tokens=length))
    expected = (1 - agreement ** (length + 1)) / (1 - agreement)
    assert stats.tokens_per_round == pytest.approx(expected, rel=0.015)


def test_the_ratio_test_accepts_as_often_as_its_probabilities_say() -> None:
    spec = TraceSpec(num_positions=[5000] * 4, exit_layers=(4,), agreement=(0.5,), max_new_tokens=5000, rule="ratio")
    trace = make_trace(spec)
    total = sum_rounds(replay_prompts(trace, Policy(exits=(4,), tokens=1)))
    assert total.accepted_frac == pytest.approx(float(trace.accept_prob.mean()), abs=0.02)


def test_the_ratio_test_draws_the_same_numbers_whatever_other_prompts_there_are() -> None:
    trace = make_trace(TraceSpec(num_positions=[60, 50, 40], rule="ratio"))
    policy = Policy(exits=(1, 4), thresholds=(0.5,), tokens=5, stop=ConfidenceFloor(floor=0.2))
    assert replay_prompts(trace.subset([2, 0]), policy) == (replay_prompts(trace, policy)[2], replay_prompts(trace, policy)[0])


def always_agreeing(**spec: object) -> Trace:
    return make_trace(TraceSpec(agreement=(1.0,) * 4, **spec))  # type: ignore[arg-type]


def test_plain_decoding_is_one_verify_of_one_row_per_token() -> None:
    trace = make_trace(TraceSpec(num_positions=[10]))
    [stats] = replay_prompts(trace, None)
    prompt_tokens = trace.header.prompts[0].prompt_tokens
    assert passes_of(stats, "verify") == {1: (10, sum(prompt_tokens - 1 + i for i in range(10)))}
    assert passes_of(stats, "round") == {0: (10, 0)}
    assert len(stats.passes) == 2
    assert stats.exits_taken == (0, 0, 0, 0)


def test_a_fully_accepted_round_leaves_two_rows_to_the_first_pass_of_the_next() -> None:
    trace = always_agreeing(num_positions=[12], max_new_tokens=12)
    [stats] = replay_prompts(trace, Policy(exits=(2,), tokens=3))
    first = trace.header.prompts[0].prompt_tokens
    assert block_lengths(trace, Policy(exits=(2,), tokens=3))[0] == ((3, 3),) * 3
    ones = [first - 1, first, first + 1, first + 4, first + 5, first + 8, first + 9]
    expected = {1: (7, sum(ones)), 2: (2, first + 2 + first + 6)}
    assert passes_of(stats, "segment", 0) == passes_of(stats, "segment", 1) == expected
    assert not passes_of(stats, "segment", 2)


def test_a_deep_segment_catches_up_on_everything_that_left_before_it() -> None:
    trace = always_agreeing(num_positions=[8], max_new_tokens=8)
    confidence = np.full((8, 4), 0.9, np.float32)
    confidence[5, 0] = 0.1  # only the sixth token needs the second segment
    policy = Policy(exits=(1, 2), thresholds=(0.5,), tokens=7)
    [stats] = replay_prompts(replace(trace, confidence=confidence), policy)
    first = trace.header.prompts[0].prompt_tokens
    assert passes_of(stats, "segment", 1) == {6: (1, first - 1)}
    assert passes_of(stats, "exit", 0) == {1: (7, 0)}
    assert passes_of(stats, "exit", 1) == {1: (1, 0)}
    assert stats.exits_taken == (6, 1, 0, 0)


def test_catching_up_at_once_every_segment_has_the_passes_of_the_first() -> None:
    trace = make_trace(TraceSpec(num_positions=[40, 25]))
    when_asked = Policy(exits=(1, 4), thresholds=(0.5,), tokens=4)
    lazy, at_once = (
        sum_rounds(replay_prompts(trace, one)) for one in (when_asked, replace(when_asked, catches_up_at_once=True))
    )
    for name in ("num_rounds", "num_drafted", "num_accepted", "exits_taken"):
        assert getattr(at_once, name) == getattr(lazy, name)
    assert passes_of(at_once, "exit", 2) == passes_of(lazy, "exit", 2)
    assert passes_of(at_once, "segment", 0) == passes_of(lazy, "segment", 0)
    assert passes_of(at_once, "segment", 2) == passes_of(at_once, "segment", 1) == passes_of(at_once, "segment", 0)
    assert max(passes_of(lazy, "segment", 1)) > 2
    depths = [(one.place, one.num_passes) for one in at_once.cold_passes if one.kind == "verify"]
    assert depths == [(3, at_once.drafted_by_position[0])]


def test_catching_up_at_once_saves_no_pass_over_the_last_exit_alone() -> None:
    trace = always_agreeing(num_positions=[40, 25])
    at_once = Policy(exits=(1, 4), thresholds=(0.5,), tokens=4, catches_up_at_once=True)
    gated, alone = (sum_rounds(replay_prompts(trace, one)) for one in (at_once, Policy(exits=(4,), tokens=4)))
    for stage in range(4):
        assert passes_of(gated, "segment", stage) == passes_of(alone, "segment", stage)
    checks, alone_checks = (sum(one.num_passes for one in stats.passes if one.kind == "exit") for stats in (gated, alone))
    assert checks > alone_checks


def test_a_token_leaves_when_its_confidence_equals_the_threshold() -> None:
    trace = replace(always_agreeing(num_positions=[4], max_new_tokens=4), confidence=np.full((4, 4), 0.5, np.float32))
    at = replay_prompts(trace, Policy(exits=(1, 6), thresholds=(0.5,), tokens=3))[0]
    above = replay_prompts(trace, Policy(exits=(1, 6), thresholds=(float(np.nextafter(0.5, 1)),), tokens=3))[0]
    assert (at.exits_taken, above.exits_taken) == ((3, 0, 0, 0), (0, 0, 0, 3))


def test_a_floor_keeps_the_token_that_fell_below_it_and_equality_goes_on() -> None:
    trace = always_agreeing(num_positions=[20], max_new_tokens=20)
    confidence = np.tile(np.array([0.9, 0.5, 0.4, 0.9, 0.9], np.float32), 4)[:, None].repeat(4, axis=1)
    trace = replace(trace, confidence=confidence)
    blocks = block_lengths(trace, Policy(exits=(6,), tokens=9, stop=ConfidenceFloor(floor=0.5)))[0]
    assert blocks[0] == (3, 3)


def test_a_survival_stop_multiplies_calibrated_confidences() -> None:
    trace = always_agreeing(num_positions=[20], max_new_tokens=20)
    trace = replace(trace, confidence=np.full((20, 4), 0.25, np.float32))
    curve = CalibrationCurve(confidence=(0.0, 0.5), agreement=(0.6, 1.0))  # 0.8 at 0.25
    for floor, expected in {0.7: (2, 2), 0.5: (4, 4), 0.0: (9, 9)}.items():
        policy = Policy(exits=(6,), tokens=9, stop=SurvivalFloor(floor=floor, calibration=(curve,)))
        assert block_lengths(trace, policy)[0][0] == expected


def test_the_heuristic_adds_two_after_full_acceptance_and_takes_one_off_otherwise() -> None:
    trace = always_agreeing(num_positions=[40], max_new_tokens=40)
    agrees = np.ones((40, 4), np.float32)
    agrees[9] = agrees[10] = agrees[11] = 0
    blocks = block_lengths(replace(trace, accept_prob=agrees), Policy(exits=(6,), tokens=5, stop=HeuristicLength(start=2)))[0]
    assert blocks[:6] == ((2, 2), (4, 4), (5, 1), (4, 0), (3, 0), (2, 2))


@pytest.mark.parametrize("kind", ["separate", "self"])
@pytest.mark.parametrize("cap", [60, 126, 127, 253, 254, 255, 256, 700])
@pytest.mark.parametrize("threshold", [0.9, 0.02], ids=["most go deeper", "few go deeper"])
def test_blocks_of_any_length_are_replayed_as_told(cap: int, kind: str, threshold: float) -> None:
    trace = make_trace(TraceSpec(num_positions=[600, 601], max_new_tokens=601, agreement=(0.9, 0.95, 1.0, 1.0), kind=kind))
    curves = (CalibrationCurve(confidence=(0.0,), agreement=(0.999,)),) * 2
    stops = (
        None,
        ConfidenceFloor(floor=0.02),
        HeuristicLength(start=1),
        SurvivalFloor(floor=0.5, calibration=curves),
    )
    assert_counted_as_told(trace, [Policy(exits=(2, 6), thresholds=(threshold,), tokens=cap, stop=stop) for stop in stops])


def test_the_last_tokens_leave_no_room_to_draft() -> None:
    trace = always_agreeing(num_positions=[5], max_new_tokens=5)
    assert block_lengths(trace, Policy(exits=(6,), tokens=3))[0] == ((3, 3), (0, 0))


def test_an_accepted_end_of_text_counts_and_has_no_bonus() -> None:
    trace = always_agreeing(num_positions=[4], max_new_tokens=30, eos_token_id=EOS)
    assert block_lengths(trace, Policy(exits=(6,), tokens=8))[0] == ((4, 4),)
    assert replay_prompts(trace, Policy(exits=(6,), tokens=8))[0].num_tokens == 4


def test_a_missed_end_of_text_is_drafted_past_and_emitted_as_the_bonus() -> None:
    trace = always_agreeing(num_positions=[4], max_new_tokens=30, eos_token_id=EOS)
    trace.draft_token[3], trace.accept_prob[3] = 5, 0
    assert block_lengths(trace, Policy(exits=(6,), tokens=8))[0] == ((8, 3),)


@pytest.mark.parametrize("max_new_tokens", range(3, 9))
def test_a_block_past_a_missed_end_of_text_leaves_the_next_prompt_alone(max_new_tokens: int) -> None:
    trace = always_agreeing(num_positions=[1, 2], max_new_tokens=max_new_tokens, eos_token_id=EOS)
    trace.draft_token[0], trace.accept_prob[0] = 5, 0
    policy = Policy(exits=(6,), tokens=4)
    assert replay_prompts(trace, policy)[1] == replay_prompts(trace.subset([1]), policy)[0]


def test_a_self_draft_hands_every_token_to_the_verification_through_all_its_segments() -> None:
    trace = make_trace(TraceSpec(num_positions=[10], max_new_tokens=10, agreement=(0.0,) * 4, kind="self"))
    trace.accept_prob[:] = 0
    [stats] = replay_prompts(trace, Policy(exits=(1,), tokens=2))
    assert passes_of(stats, "segment", 0).keys() == {1}
    assert passes_of(stats, "segment", 0)[1][0] == 3 * 8 + 2 + 1
    assert {rows: number for rows, (number, _) in passes_of(stats, "segment", 3).items()} == {3: 8, 2: 1, 1: 1}


def test_an_exit_that_was_not_traced_is_refused() -> None:
    trace = make_trace(TraceSpec(num_positions=[5]))
    with pytest.raises(BadPolicy, match=r"exit 5 is none of the traced draft's: expected exits among \(1, 2, 4, 6\)"):
        replay_prompts(trace, Policy(exits=(2, 5), thresholds=(0.5,), tokens=2))


def test_a_confidence_that_was_not_traced_is_refused() -> None:
    trace = make_trace(TraceSpec(num_positions=[5]))
    policy = Policy(exits=(2,), tokens=2, confidence="margin")
    with pytest.raises(BadPolicy, match="confidence 'margin': expected 'max-prob', which the trace holds"):
        replay_prompts(trace, policy)
