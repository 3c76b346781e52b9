"""Speedups: known answers by hand, and intervals."""

import math
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.stats import NORMAL_QUANTILE
from perfmodel.passes.passes import ColdCount, Line, PassCount, PassKind
from perfmodel.replay.estimate import Decoded, RoundCost, estimate, mean_round_cost, measured_speedup, pass_seconds
from perfmodel.replay.round_stats import RoundStats

COST = RoundCost(segment_s=0.0, exit_s=0.0, ahead_s=0.0, verify_s=1.0, round_s=0.0)


class ConstantLatency:
    """Seconds by kind of pass."""

    level = "measured"

    def __init__(
        self,
        seconds: dict[str, float],
        *,
        per_token_s: float = 0.0,
        first_s: float = 0.0,
        error_frac: float = 0.0,
        host_error_frac: float = 0.0,
    ) -> None:
        self.seconds, self.per_token_s, self.first_s = seconds, per_token_s, first_s
        self.error_frac, self.host_error_frac = error_frac, host_error_frac

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        return Line(self.seconds[kind], self.per_token_s)

    def cold_s(self, kind: PassKind, stage: int, place: int) -> float:
        return self.first_s if place == 1 else 0.0


DRAFT = ConstantLatency({"segment": 1.0, "exit": 0.5})
TARGET = ConstantLatency({"verify": 10.0, "round": 0.5})


def count(kind: PassKind, num_passes: int, rows: int = 1, cached: int = 0) -> PassCount:
    return PassCount(kind=kind, stage=0, rows=rows, num_passes=num_passes, cached_tokens_sum=cached)


def rounds_of(num_tokens: int, num_rounds: int, *passes: PassCount, cold_passes: tuple[ColdCount, ...] = ()) -> RoundStats:
    return RoundStats(
        num_prompts=1,
        num_rounds=num_rounds,
        num_tokens=num_tokens,
        num_drafted=0,
        num_accepted=0.0,
        drafted_by_position=(),
        accepted_by_position=(),
        exits_taken=(),
        passes=passes,
        cold_passes=cold_passes,
    )


def drafted(num_tokens: int) -> RoundStats:
    """Ten rounds of four drafted tokens."""
    return rounds_of(
        num_tokens, 10, count("segment", 40), count("exit", 40), count("verify", 10, rows=5), count("round", 10, rows=4)
    )


def plainly(num_tokens: int) -> RoundStats:
    return rounds_of(num_tokens, num_tokens, count("verify", num_tokens), count("round", num_tokens, rows=0))


def test_a_speedup_is_the_ratio_of_total_tokens_over_total_seconds_to_that_of_plain_decoding() -> None:
    result = estimate(DRAFT, TARGET, [drafted(30)], [plainly(30)])
    assert result.tokens_per_s == 30 / (40 * 1.5 + 10 * 10.5)
    assert result.plain_tokens_per_s == 1 / 10.5
    assert result.speedup.value == pytest.approx(30 * 10.5 / 165)
    assert result.round_cost == RoundCost(segment_s=4.0, exit_s=2.0, ahead_s=0.0, verify_s=10.0, round_s=0.5)


def test_cached_tokens_cost_seconds_and_prefill_is_left_out() -> None:
    target = ConstantLatency({"verify": 1.0, "target_prefill": 99.0}, per_token_s=0.01)
    stats = rounds_of(2, 2, count("verify", 2, cached=300), count("target_prefill", 1, rows=100))
    assert pass_seconds(None, target, stats) == {"verify": pytest.approx(5.0)}


def test_cold_passes_cost_extra_seconds() -> None:
    draft = ConstantLatency({"segment": 1.0, "exit": 0.5}, first_s=0.25)
    cold = [ColdCount(kind="segment", stage=0, place=place, num_passes=3) for place in (1, 2)]
    stats = rounds_of(9, 3, count("segment", 6), count("verify", 3), cold_passes=tuple(cold))
    assert pass_seconds(draft, TARGET, stats) == {"segment": 6 * 1.0 + 3 * 0.25, "verify": 30.0}


def test_a_long_prompt_weighs_more_than_a_short_one() -> None:
    result = measured_speedup(
        [Decoded(num_tokens=10, decode_s=1.0), Decoded(num_tokens=1000, decode_s=1000.0)],
        [Decoded(num_tokens=10, decode_s=10.0), Decoded(num_tokens=1000, decode_s=1000.0)],
        COST,
    )
    assert result.speedup.value == pytest.approx(1010 / 1001)


def test_plain_decoding_against_itself_is_exactly_1() -> None:
    target = ConstantLatency({"verify": 10.0, "round": 0.5}, error_frac=0.2)
    result = estimate(None, target, [plainly(30), plainly(50)], [plainly(30), plainly(50)])
    assert (result.speedup.low, result.speedup.value, result.speedup.high) == (1.0, 1.0, 1.0)


def test_with_equal_prompts_only_the_latency_errors_widen_the_interval() -> None:
    draft, target = (ConstantLatency(model.seconds, error_frac=0.1) for model in (DRAFT, TARGET))
    interval = estimate(draft, target, [drafted(30)] * 5, [plainly(30)] * 5).speedup
    draft_share = 60 / 165
    sigma = math.hypot(draft_share * 0.1, (1 - draft_share) * 0.1, 0.1)
    assert math.log(interval.high / interval.value) == pytest.approx(1.645 * sigma, rel=1e-3)
    assert math.log(interval.value / interval.low) == pytest.approx(1.645 * sigma, rel=1e-3)


def test_unequal_prompts_widen_the_interval() -> None:
    tokens = [15, 20, 25, 30, 35, 40, 45]
    unequal = estimate(DRAFT, TARGET, [drafted(n) for n in tokens], [plainly(n) for n in tokens]).speedup
    assert unequal.low < 0.95 * unequal.value
    assert unequal.high > 1.05 * unequal.value


def test_the_interval_shrinks_with_the_root_of_the_number_of_prompts() -> None:
    def width(copies: int) -> float:
        tokens = [20, 40] * copies
        interval = estimate(DRAFT, TARGET, [drafted(n) for n in tokens], [plainly(n) for n in tokens]).speedup
        return math.log(interval.high / interval.low)

    assert width(8) / width(32) == pytest.approx(2.0, rel=0.2)


@given(st.lists(st.integers(10, 50), min_size=1, max_size=12))
def test_the_value_lies_inside_its_interval(tokens: list[int]) -> None:
    interval = estimate(DRAFT, TARGET, [drafted(n) for n in tokens], [plainly(n) for n in tokens]).speedup
    assert interval.low <= interval.value <= interval.high


def test_an_estimate_is_repeatable() -> None:
    tokens = [15, 20, 30]
    answers = [estimate(DRAFT, TARGET, [drafted(n) for n in tokens], [plainly(n) for n in tokens]) for _ in range(2)]
    assert answers[0] == answers[1]


def test_a_measured_speedup_is_paired_by_prompt() -> None:
    """Prompts of very unequal lengths, each exactly twice as fast: the ratio does not vary."""
    plain = [Decoded(num_tokens=n, decode_s=n * 0.1) for n in (10, 100, 1000)]
    plan = [Decoded(num_tokens=n, decode_s=n * 0.05) for n in (10, 100, 1000)]
    interval = measured_speedup(plan, plain, COST).speedup
    assert (interval.low, interval.value, interval.high) == pytest.approx((2.0, 2.0, 2.0))


def test_arms_of_different_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="the same prompts in both arms, got 1 and 0"):
        measured_speedup([Decoded(num_tokens=1, decode_s=1.0)], [], COST)
    with pytest.raises(ValueError, match="takes more than 0 s"):
        Decoded(num_tokens=1, decode_s=0.0)


def test_a_mean_round_splits_the_seconds_by_kind() -> None:
    cost = mean_round_cost({"segment": 4.0, "verify": 10.0}, num_rounds=2)
    assert (cost.segment_s, cost.exit_s, cost.verify_s, cost.total_s) == (2.0, 0.0, 5.0, 7.0)


def test_60_prompts_are_estimated_in_milliseconds() -> None:
    tokens = [10 + i % 30 for i in range(60)]
    rounds, plain = [drafted(n) for n in tokens], [plainly(n) for n in tokens]
    estimate(DRAFT, TARGET, rounds, plain)
    start_s = perf_counter()
    for _ in range(10):
        estimate(DRAFT, TARGET, rounds, plain)
    assert (perf_counter() - start_s) / 10 < 0.05  # about 3 ms on a quiet machine


def half_width(draft: ConstantLatency, target: ConstantLatency) -> float:
    """Half the width of the logarithm of the interval, as a standard deviation."""
    interval = estimate(draft, target, [drafted(30)] * 3, [plainly(30)] * 3).speedup
    return math.log(interval.high / interval.value) / NORMAL_QUANTILE


def test_the_host_error_cancels_where_launches_limit_draft_and_target_equally() -> None:
    """A slower host slows both models equally; where the target waits for its kernels, only drafting gets slower."""
    on_host = {"host_error_frac": 0.4}
    draft, target = ConstantLatency(DRAFT.seconds, **on_host), ConstantLatency(TARGET.seconds, **on_host)
    draft_share = 40 * 1.5 / (40 * 1.5 + 10 * 10.5)
    assert half_width(draft, target) == pytest.approx(0.0, abs=1e-12)
    assert half_width(draft, TARGET) == pytest.approx(0.4 * draft_share)
    assert half_width(DRAFT, target) == pytest.approx(0.4 * draft_share)
