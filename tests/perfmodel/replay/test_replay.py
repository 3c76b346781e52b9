"""Replay: the compiled version against the reference, and both against known answers and hand-made cases."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings

from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import BadPolicy
from perfmodel.passes.passes import PASS_MODEL, Line, PassKind, PassName
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    SurvivalFloor,
)
from perfmodel.replay import _native, compiled, reference
from perfmodel.replay import replay as replay_module
from perfmodel.replay.reference import COLD_KINDS, ENTRY_KINDS, ROUND_PASS_KINDS, Entry
from perfmodel.replay.replay import as_array, block_lengths, replay, replay_batch, replay_prompts
from perfmodel.replay.round_stats import RoundStats, cold_counts, pass_counts, sum_rounds
from tests.strategies import EOS, TraceSpec, make_trace, traces_with_policies

Case = tuple[Trace, list[Policy | None]]


class AnyLatency:
    """Made-up pass times that differ by every property of a pass."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        return Line(self.scale * (1.0 + len(kind) + 0.1 * stage + 0.01 * rows), 0.001 * rows)

    def cold_s(self, kind: PassKind, stage: int, place: int) -> float:
        return self.scale * (0.1 * len(kind) + 0.01 * stage) / place


DRAFT, TARGET = AnyLatency(1.0), AnyLatency(7.0)


def passes_of(stats: RoundStats, kind: str, stage: int = 0) -> dict[int, tuple[int, int]]:
    return {p.rows: (p.num_passes, p.cached_tokens_sum) for p in stats.passes if (p.kind, p.stage) == (kind, stage)}


def assert_compiled_equals_reference(trace: Trace, policies: list[Policy | None]) -> None:
    for by_prompt, keep_blocks in product((False, True), repeat=2):
        expected = reference.count_entries(trace, policies, by_prompt=by_prompt, keep_blocks=keep_blocks)
        counted = compiled.count_entries(trace, policies, by_prompt=by_prompt, keep_blocks=keep_blocks)
        assert counted.tolist() == as_array(expected).tolist()


def record_of(entries: Sequence[Entry], num_exits: int, num_tokens: int) -> RoundStats:
    """The record of one prompt, from the reference's entries with single blocks."""
    blocks = [(entry.size, entry.number) for entry in entries if entry.kind == "block"]
    counts = [entry for entry in entries if entry.kind != "block"]
    taken = {entry.stage: entry.number for entry in counts if entry.kind == "taken"}
    longest = max(drafted for drafted, _ in blocks)

    def named(kinds: Mapping[str, str], field: str) -> Counter[PassName]:
        chosen = (entry for entry in counts if entry.kind in kinds)
        return Counter({(kinds[entry.kind], entry.stage, entry.size): getattr(entry, field) for entry in chosen})

    warm, cold = {kind: kind for kind in ROUND_PASS_KINDS}, {cold: kind for kind, cold in COLD_KINDS.items()}
    return RoundStats(
        num_prompts=1,
        num_rounds=len(blocks),
        num_tokens=num_tokens,
        num_drafted=sum(drafted for drafted, _ in blocks),
        num_accepted=float(sum(accepted for _, accepted in blocks)),
        drafted_by_position=tuple(sum(drafted > i for drafted, _ in blocks) for i in range(longest)),
        accepted_by_position=tuple(float(sum(accepted > i for _, accepted in blocks)) for i in range(longest)),
        exits_taken=tuple(taken.get(stage, 0) for stage in range(num_exits)),
        passes=pass_counts(named(warm, "number"), named(warm, "cached")),
        cold_passes=cold_counts(named(cold, "number")),
    )


@settings(max_examples=400)
@given(traces_with_policies(most=1))
def test_replay_equals_the_reference_in_every_field_of_the_record(case: Case) -> None:
    trace, [policy] = case
    entries = list(reference.count_entries(trace, [policy], by_prompt=True, keep_blocks=True))
    prompts = trace.header.prompts
    by_prompt = [[entry for entry in entries if entry.group == number] for number in range(len(prompts))]
    num_exits = len(trace.header.exit_layers)
    assert replay_prompts(trace, policy) == tuple(
        record_of(group, num_exits, prompt.num_positions) for group, prompt in zip(by_prompt, prompts, strict=True)
    )
    assert block_lengths(trace, policy) == tuple(
        tuple((entry.size, entry.number) for entry in group if entry.kind == "block") for group in by_prompt
    )


@settings(max_examples=100)
@given(traces_with_policies(most=1))
def test_the_layout_accepts_the_tokens_that_the_trace_accepts(case: Case) -> None:
    trace, _ = case
    layout, row = compiled.lay_out(trace, 16), 0
    for place, prompt in enumerate(trace.header.prompts):
        rows = slice(row, row := row + prompt.num_positions)
        columns = slice(layout.begin[place], layout.end[place])
        np.testing.assert_array_equal(layout.accepted[:, columns].T, trace.accepted[rows])


def test_replay_was_compiled() -> None:
    assert replay_module.compiled is not None, "s2d was installed without a C compiler: the compiled replay is not tested"


def test_the_compiled_module_names_the_kinds_and_fields_of_the_reference() -> None:
    assert _native.ENTRY_KINDS == ENTRY_KINDS
    assert Entry._fields == _native.ENTRY_FIELDS
    assert set(compiled._rule(0, None)) == set(_native.RULE_FIELDS)


@settings(max_examples=500)
@given(traces_with_policies())
def test_the_compiled_counts_equal_the_reference(case: Case) -> None:
    assert_compiled_equals_reference(*case)


@settings(max_examples=20)
@given(traces_with_policies())
def test_replay_is_the_same_without_the_compiled_module(case: Case) -> None:
    trace, policies = case
    records, seconds = replay_batch(trace, policies).stats(), replay_batch(trace, policies).seconds(DRAFT, TARGET)
    blocks = block_lengths(trace, policies[0])
    with patch("perfmodel.replay.replay.compiled", None):
        assert replay_batch(trace, policies).stats() == records
        assert replay_batch(trace, policies).seconds(DRAFT, TARGET) == pytest.approx(seconds, rel=1e-12)
        assert block_lengths(trace, policies[0]) == blocks


@pytest.mark.parametrize(
    ("spec", "problem", "fix"),
    [
        (None, "replay was not compiled when s2d was installed", "Install a C compiler, then install s2d again."),
        (object(), "the compiled replay belongs to another version of s2d", "Install s2d again."),
    ],
    ids=["missing", "stale"],
)
def test_without_the_compiled_module_one_warning_explains_how_to_get_it(
    caplog: pytest.LogCaptureFixture, spec: object, problem: str, fix: str
) -> None:
    replay_module._warn_not_compiled.cache_clear()
    trace = make_trace(TraceSpec(num_positions=[5]))
    with patch("perfmodel.replay.replay.compiled", None), patch("perfmodel.replay.replay.find_spec", return_value=spec):
        replay(trace, None)
        replay(trace, None)
    assert caplog.messages == [f"{problem}: the reference implementation runs, which takes hundreds of times as long. {fix}"]


@settings(max_examples=150)
@given(traces_with_policies())
def test_a_batch_replays_each_policy_as_if_it_were_alone(case: Case) -> None:
    trace, policies = case
    for stats, policy in zip(replay_batch(trace, policies).stats(), policies, strict=True):
        assert stats == sum_rounds(replay_prompts(trace, policy))


def test_a_batch_returns_policies_in_the_order_given() -> None:
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
def test_seconds_are_the_sum_over_all_passes(case: Case) -> None:
    trace, policies = case

    batch = replay_batch(trace, policies)
    for seconds, stats in zip(batch.seconds(DRAFT, TARGET), batch.stats(), strict=True):
        expected = 0.0
        for p in stats.passes:
            line = (DRAFT if PASS_MODEL[p.kind] == "draft" else TARGET).line(p.kind, p.stage, p.rows)
            expected += p.num_passes * line.base_s + p.cached_tokens_sum * line.per_token_s
        for cold in stats.cold_passes:
            model = DRAFT if PASS_MODEL[cold.kind] == "draft" else TARGET
            expected += cold.num_passes * model.cold_s(cold.kind, cold.stage, cold.place)
        assert seconds == pytest.approx(expected, rel=1e-12)


@settings(max_examples=100)
@given(traces_with_policies(most=1))
def test_every_policy_emits_exactly_the_text(case: Case) -> None:
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


def test_the_ratio_test_accepts_at_the_rate_of_its_probabilities() -> None:
    spec = TraceSpec(num_positions=[5000] * 4, exit_layers=(4,), agreement=(0.5,), max_new_tokens=5000, rule="ratio")
    trace = make_trace(spec)
    total = replay(trace, Policy(exits=(4,), tokens=1))
    assert total.accepted_frac == pytest.approx(float(trace.accept_prob.mean()), abs=0.02)


def test_the_ratio_test_draws_the_same_numbers_for_a_prompt_among_any_others() -> None:
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


def test_after_a_fully_accepted_round_the_first_pass_has_two_rows() -> None:
    trace = always_agreeing(num_positions=[12], max_new_tokens=12)
    [stats] = replay_prompts(trace, Policy(exits=(2,), tokens=3))
    first = trace.header.prompts[0].prompt_tokens
    assert block_lengths(trace, Policy(exits=(2,), tokens=3))[0] == ((3, 3),) * 3
    ones = [first - 1, first, first + 1, first + 4, first + 5, first + 8, first + 9]
    expected = {1: (7, sum(ones)), 2: (2, first + 2 + first + 6)}
    assert passes_of(stats, "segment", 0) == passes_of(stats, "segment", 1) == expected
    assert not passes_of(stats, "segment", 2)


def test_a_deep_segment_catches_up_on_all_tokens_that_left_before_it() -> None:
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


def test_when_catching_up_at_once_every_segment_has_the_passes_of_the_first() -> None:
    trace = make_trace(TraceSpec(num_positions=[40, 25]))
    when_needed = Policy(exits=(1, 4), thresholds=(0.5,), tokens=4)
    lazy, at_once = (
        sum_rounds(replay_prompts(trace, policy)) for policy in (when_needed, replace(when_needed, catches_up_at_once=True))
    )
    for name in ("num_rounds", "num_drafted", "num_accepted", "exits_taken"):
        assert getattr(at_once, name) == getattr(lazy, name)
    assert passes_of(at_once, "exit", 2) == passes_of(lazy, "exit", 2)
    assert passes_of(at_once, "segment", 0) == passes_of(lazy, "segment", 0)
    assert passes_of(at_once, "segment", 2) == passes_of(at_once, "segment", 1) == passes_of(at_once, "segment", 0)
    assert max(passes_of(lazy, "segment", 1)) > 2
    depths = [(count.place, count.num_passes) for count in at_once.cold_passes if count.kind == "verify"]
    assert depths == [(3, at_once.drafted_by_position[0])]


def test_when_catching_up_at_once_a_gated_policy_runs_the_passes_of_its_last_exit_alone() -> None:
    trace = always_agreeing(num_positions=[40, 25])
    at_once = Policy(exits=(1, 4), thresholds=(0.5,), tokens=4, catches_up_at_once=True)
    gated, alone = (replay(trace, policy) for policy in (at_once, Policy(exits=(4,), tokens=4)))
    for stage in range(4):
        assert passes_of(gated, "segment", stage) == passes_of(alone, "segment", stage)
    checks, alone_checks = (sum(count.num_passes for count in stats.passes if count.kind == "exit") for stats in (gated, alone))
    assert checks > alone_checks


def test_a_token_leaves_when_its_confidence_equals_the_threshold() -> None:
    trace = replace(always_agreeing(num_positions=[4], max_new_tokens=4), confidence=np.full((4, 4), 0.5, np.float32))
    at = replay_prompts(trace, Policy(exits=(1, 6), thresholds=(0.5,), tokens=3))[0]
    above = replay_prompts(trace, Policy(exits=(1, 6), thresholds=(float(np.nextafter(0.5, 1)),), tokens=3))[0]
    assert (at.exits_taken, above.exits_taken) == ((3, 0, 0, 0), (0, 0, 0, 3))


def test_a_confidence_floor_keeps_the_token_below_it_and_does_not_stop_at_equality() -> None:
    trace = always_agreeing(num_positions=[20], max_new_tokens=20)
    confidence = np.tile(np.array([0.9, 0.5, 0.4, 0.9, 0.9], np.float32), 4)[:, None].repeat(4, axis=1)
    trace = replace(trace, confidence=confidence)
    blocks = block_lengths(trace, Policy(exits=(6,), tokens=9, stop=ConfidenceFloor(floor=0.5)))[0]
    assert blocks[0] == (3, 3)


def test_a_dropping_floor_pays_for_the_token_below_it_but_does_not_verify_it() -> None:
    trace = always_agreeing(num_positions=[10], max_new_tokens=10)
    confidence = np.array([0.9, 0.5, 0.4, 0.9, 0.1, 0.1, 0.9, 0.9, 0.4, 0.9], np.float32)[:, None].repeat(4, axis=1)
    policy = Policy(exits=(6,), tokens=3, stop=ConfidenceFloor(floor=0.5, keeps_token=False))
    trace = replace(trace, confidence=confidence)
    # Position 2 is dropped and comes as the bonus. So does 4, then 5 at once in an empty block; 9 has no room to be drafted.
    assert block_lengths(trace, policy)[0] == ((2, 2), (1, 1), (0, 0), (2, 2), (0, 0))
    [stats] = replay_prompts(trace, policy)
    assert (stats.num_drafted, stats.exits_taken) == (5, (0, 0, 0, 5))
    assert passes_of(stats, "exit", 3)[1][0] == 5 + 4  # four tokens were predicted and dropped
    assert {rows: number for rows, (number, _) in passes_of(stats, "verify").items()} == {3: 2, 2: 1, 1: 2}
    # A dropped token's pass has run the last kept one, so the next block begins with one row, as after a rejection.
    assert {rows: number for rows, (number, _) in passes_of(stats, "segment", 0).items()} == {1: 9}


def test_a_dropping_floor_of_zero_drops_nothing_and_one_of_one_drops_all_but_certain_tokens() -> None:
    trace = make_trace(TraceSpec(num_positions=[30, 20], max_new_tokens=30))
    floors = [ConfidenceFloor(floor=floor, keeps_token=False) for floor in (0.0, 1.0)]
    none_dropped, all_dropped = (replay(trace, Policy(exits=(6,), tokens=4, stop=stop)) for stop in floors)
    assert none_dropped == replay(trace, Policy(exits=(6,), tokens=4))
    assert all_dropped.num_drafted == int((trace.confidence[:, 3] == 1).sum())
    assert all_dropped.num_passes("verify") == all_dropped.num_rounds


def test_a_survival_floor_multiplies_calibrated_confidences() -> None:
    trace = always_agreeing(num_positions=[20], max_new_tokens=20)
    trace = replace(trace, confidence=np.full((20, 4), 0.25, np.float32))
    curve = CalibrationCurve(confidence=(0.0, 0.5), agreement=(0.6, 1.0))  # 0.8 at 0.25
    for floor, expected in {0.7: (2, 2), 0.5: (4, 4), 0.0: (9, 9)}.items():
        policy = Policy(exits=(6,), tokens=9, stop=SurvivalFloor(floor=floor, calibration=(curve,)))
        assert block_lengths(trace, policy)[0][0] == expected


def test_a_heuristic_length_grows_by_two_after_full_acceptance_and_shrinks_by_one_otherwise() -> None:
    trace = always_agreeing(num_positions=[40], max_new_tokens=40)
    agrees = np.ones((40, 4), np.float32)
    agrees[9] = agrees[10] = agrees[11] = 0
    blocks = block_lengths(replace(trace, accept_prob=agrees), Policy(exits=(6,), tokens=5, stop=HeuristicLength(start=2)))[0]
    assert blocks[:6] == ((2, 2), (4, 4), (5, 1), (4, 0), (3, 0), (2, 2))


@pytest.mark.parametrize("kind", ["separate", "self"])
@pytest.mark.parametrize("cap", [60, 126, 127, 253, 254, 255, 256, 700])
@pytest.mark.parametrize("threshold", [0.9, 0.02], ids=["most tokens go deeper", "few tokens go deeper"])
def test_the_compiled_counts_equal_the_reference_for_blocks_of_any_length(cap: int, kind: str, threshold: float) -> None:
    trace = make_trace(TraceSpec(num_positions=[600, 601], max_new_tokens=601, agreement=(0.9, 0.95, 1.0, 1.0), kind=kind))
    curves = (CalibrationCurve(confidence=(0.0,), agreement=(0.999,)),) * 2
    stops = (
        None,
        ConfidenceFloor(floor=0.02),
        ConfidenceFloor(floor=0.02, keeps_token=False),
        HeuristicLength(start=1),
        SurvivalFloor(floor=0.5, calibration=curves),
    )
    assert_compiled_equals_reference(
        trace, [Policy(exits=(2, 6), thresholds=(threshold,), tokens=cap, stop=stop) for stop in stops]
    )


def test_no_token_is_drafted_when_only_one_may_still_be_emitted() -> None:
    trace = always_agreeing(num_positions=[5], max_new_tokens=5)
    assert block_lengths(trace, Policy(exits=(6,), tokens=3))[0] == ((3, 3), (0, 0))


def test_an_accepted_end_of_text_token_is_the_last_and_has_no_bonus() -> None:
    trace = always_agreeing(num_positions=[4], max_new_tokens=30, eos_token_id=EOS)
    assert block_lengths(trace, Policy(exits=(6,), tokens=8))[0] == ((4, 4),)
    assert replay_prompts(trace, Policy(exits=(6,), tokens=8))[0].num_tokens == 4


def test_a_draft_that_misses_the_end_of_text_goes_on_and_the_bonus_ends_the_text() -> None:
    trace = always_agreeing(num_positions=[4], max_new_tokens=30, eos_token_id=EOS)
    trace.draft_token[3], trace.accept_prob[3] = 5, 0
    assert block_lengths(trace, Policy(exits=(6,), tokens=8))[0] == ((8, 3),)


@pytest.mark.parametrize("max_new_tokens", range(3, 9))
def test_a_block_past_the_end_of_a_text_does_not_change_the_next_prompt(max_new_tokens: int) -> None:
    trace = always_agreeing(num_positions=[1, 2], max_new_tokens=max_new_tokens, eos_token_id=EOS)
    trace.draft_token[0], trace.accept_prob[0] = 5, 0
    policy = Policy(exits=(6,), tokens=4)
    assert replay_prompts(trace, policy)[1] == replay_prompts(trace.subset([1]), policy)[0]


def test_the_tokens_of_a_self_draft_run_through_all_segments_before_verification() -> None:
    trace = make_trace(TraceSpec(num_positions=[10], max_new_tokens=10, agreement=(0.0,) * 4, kind="self"))
    trace.accept_prob[:] = 0
    [stats] = replay_prompts(trace, Policy(exits=(1,), tokens=2))
    assert passes_of(stats, "segment", 0).keys() == {1}
    assert passes_of(stats, "segment", 0)[1][0] == 3 * 8 + 2 + 1
    assert {rows: number for rows, (number, _) in passes_of(stats, "segment", 3).items()} == {3: 8, 2: 1, 1: 1}


def test_a_policy_with_an_exit_that_was_not_traced_is_refused() -> None:
    trace = make_trace(TraceSpec(num_positions=[5]))
    with pytest.raises(BadPolicy, match=r"the traced draft has no exit 5: expected exits among \(1, 2, 4, 6\)"):
        replay_prompts(trace, Policy(exits=(2, 5), thresholds=(0.5,), tokens=2))


def test_a_policy_with_another_confidence_measure_is_refused() -> None:
    trace = make_trace(TraceSpec(num_positions=[5]))
    policy = Policy(exits=(2,), tokens=2, confidence="margin")
    with pytest.raises(BadPolicy, match="confidence 'margin': expected 'max-prob', which the trace holds"):
        replay_prompts(trace, policy)
