"""Cases: what a policy is worth at several targets and workloads, and how sure that is."""

from dataclasses import replace

import numpy as np
import pytest

from calibrate.search.scenario import Scenario, merits, rates_by_scenario, resampled_rates
from calibrate.search.search import search
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import replay_batch
from tests.calibrate.search.test_search import CHEAP, TARGET, ConstantLatency
from tests.strategies import TraceSpec, make_trace

SHORT = Policy(exits=(6,), tokens=1)
LONG = replace(SHORT, tokens=8)


def scenario(agreement: float, verify_s: float = 4e-3, *, seed: int = 0, num_documents: int = 8) -> Scenario:
    spec = TraceSpec(num_positions=[60] * num_documents, max_new_tokens=60, agreement=(agreement,) * 4, seed=seed)
    return Scenario(make_trace(spec), CHEAP, replace(TARGET, verify_s=verify_s))


def test_rates_are_tokens_over_seconds_case_by_case() -> None:
    scenarios = [scenario(0.9), scenario(0.5)]
    rates = rates_by_scenario(scenarios, [SHORT, None])
    assert rates.shape == (2, 2)
    batch = replay_batch(scenarios[1].trace, [SHORT])
    assert rates[0, 1] == pytest.approx((batch.num_tokens / batch.seconds(scenarios[1].draft, scenarios[1].target))[0])


def test_the_mean_is_geometric_and_the_worst_is_a_speedup() -> None:
    rates, plain = np.array([[8.0, 2.0], [4.0, 0.0]]), np.array([2.0, 1.0])
    assert merits(rates, plain, "mean").tolist() == pytest.approx([4.0, 0.0])
    assert merits(rates, plain, "worst").tolist() == [2.0, 0.0]


def test_of_one_case_the_mean_is_its_rate() -> None:
    [found] = [search([scenario(0.8)]).chosen]
    assert found.merit == pytest.approx(found.tokens_per_s[0])


def test_resamples_are_of_documents_and_shared_by_all_policies() -> None:
    one = scenario(0.8)
    renamed = tuple(
        replace(prompt, name=f"file-{number // 2}.py:{number}") for number, prompt in enumerate(one.trace.header.prompts)
    )
    merged = replace(one, trace=replace(one.trace, header=replace(one.trace.header, prompts=renamed)))
    spread = resampled_rates([one], [None])[0, :, 0].std(), resampled_rates([merged], [None])[0, :, 0].std()
    assert spread[0] > 0
    rates = resampled_rates([one, merged], [SHORT, SHORT])
    assert rates.shape[0] == 2
    assert np.array_equal(rates[0], rates[1])
    assert not np.array_equal(rates[0, :, 0], rates[0, :, 1])  # the same prompts, drawn in pairs


def test_a_common_policy_lies_between_what_each_case_wants() -> None:
    sure, unsure = scenario(0.97), scenario(0.2)
    own = [search([one]).chosen.policy for one in (sure, unsure)]
    common = search([sure, unsure]).chosen
    apart = rates_by_scenario([sure, unsure], own)
    assert common.tokens_per_s[0] <= apart[0, 0] * 1.005
    assert common.tokens_per_s[1] <= apart[1, 1] * 1.005
    best_alone = merits(apart, np.ones(2), "mean").max()
    assert common.merit >= best_alone * 0.999


def test_a_robust_policy_is_never_slower_than_plain_decoding_where_one_must_not_speculate() -> None:
    hopeless = Scenario(
        make_trace(TraceSpec(num_positions=[60] * 8, max_new_tokens=60, agreement=(0.2,) * 4)),
        CHEAP,
        ConstantLatency(verify_s=6e-4),
    )
    scenarios = [scenario(0.97), hopeless]
    mean, worst = (search(scenarios, objective).chosen for objective in ("mean", "worst"))
    plain = rates_by_scenario(scenarios, [None])[0]
    assert worst.policy is None
    assert worst.merit == 1.0
    assert min(np.array(mean.tokens_per_s) / plain) < 1.0
