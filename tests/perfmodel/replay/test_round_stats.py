"""Round statistics: ratios, and sums over prompts."""

from hypothesis import given, settings

from perfmodel.acceptance.trace import Trace
from perfmodel.passes.passes import ColdCount, PassCount
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import replay, replay_prompts
from perfmodel.replay.round_stats import RoundStats, sum_rounds
from tests.strategies import TraceSpec, make_trace, traces_with_policies


def stats(**changes: object) -> RoundStats:
    values: dict[str, object] = {
        "num_prompts": 1,
        "num_rounds": 4,
        "num_tokens": 10,
        "num_drafted": 8,
        "num_accepted": 6.0,
        "drafted_by_position": (4, 4),
        "accepted_by_position": (4.0, 2.0),
        "exits_taken": (5, 3),
        "passes": (PassCount(kind="verify", stage=0, rows=3, num_passes=4, cached_tokens_sum=40),),
        "cold_passes": (ColdCount(kind="segment", stage=0, place=1, num_passes=4),),
    }
    return RoundStats(**(values | changes))  # type: ignore[arg-type]


def test_rates_are_per_round_and_per_drafted_token() -> None:
    counts = stats()
    assert (counts.tokens_per_round, counts.accepted_per_round, counts.accepted_frac) == (2.5, 1.5, 0.75)
    assert stats(num_drafted=0, num_accepted=0.0).accepted_frac is None


def test_a_record_prints_its_rates_and_counts() -> None:
    assert str(stats()) == "2.50 tokens per round: 10 tokens in 4 rounds; 6 of 8 drafted tokens accepted (75.0 %)"
    plain = stats(num_drafted=0, num_accepted=0.0, num_rounds=10)
    assert str(plain) == "1.00 tokens per round: 10 tokens in 10 rounds; 0 of 0 drafted tokens accepted"


def test_a_sum_joins_equal_passes_and_pads_shorter_columns() -> None:
    other = PassCount(kind="verify", stage=0, rows=2, num_passes=1, cached_tokens_sum=5)
    longer = stats(drafted_by_position=(4, 3, 1), accepted_by_position=(2.0, 1.0, 1.0), passes=(other, stats().passes[0]))
    total = sum_rounds([stats(), longer])
    assert (total.num_prompts, total.num_rounds, total.num_tokens) == (2, 8, 20)
    assert total.drafted_by_position == (8, 7, 1)
    assert total.accepted_by_position == (6.0, 3.0, 1.0)
    assert total.passes == (other, PassCount(kind="verify", stage=0, rows=3, num_passes=8, cached_tokens_sum=80))
    assert total.cold_passes == (ColdCount(kind="segment", stage=0, place=1, num_passes=8),)


@settings(max_examples=50)
@given(traces_with_policies(most=1))
def test_the_columns_of_a_record_agree_with_its_totals(case: tuple[Trace, list[Policy | None]]) -> None:
    trace, [policy] = case
    total = replay(trace, policy)
    assert sum(total.drafted_by_position) == sum(total.exits_taken) == total.num_drafted
    assert sum(total.accepted_by_position) == total.num_accepted
    assert total.num_passes("verify") == total.num_rounds
    assert len(total.drafted_by_position) == len(total.accepted_by_position)


def test_the_record_of_a_prompt_does_not_depend_on_other_prompts() -> None:
    trace = make_trace(TraceSpec(num_positions=[30, 20]))
    policy = Policy(exits=(2,), tokens=3)
    assert replay_prompts(trace.subset([1]), policy) == replay_prompts(trace, policy)[1:]
