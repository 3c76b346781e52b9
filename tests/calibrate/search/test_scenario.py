"""Scenarios: predicted speed of policies in several scenarios, objectives, and resamples."""

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


def make_scenario(agreement: float, verify_s: float = 4e-3, *, seed: int = 0, num_documents: int = 8) -> Scenario:
    spec = TraceSpec(num_positions=[60] * num_documents, max_new_tokens=60, agreement=(agreement,) * 4, seed=seed)
    return Scenario(make_trace(spec), CHEAP, replace(TARGET, verify_s=verify_s))


def test_rates_are_tokens_over_seconds_in_each_scenario() -> None:
    scenarios = [make_scenario(0.9), make_scenario(0.5)]
    rates = rates_by_scenario(scenarios, [SHORT, None])
    assert rates.shape == (2, 2)
    batch = replay_batch(scenarios[1].trace, [SHORT])
    assert rates[0, 1] == pytest.approx((batch.num_tokens / batch.seconds(scenarios[1].draft, scenarios[1].target))[0])


def test_the_mean_is_geometric_and_the_worst_is_a_speedup() -> None:
    rates, plain = np.array([[8.0, 2.0], [4.0, 0.0]]), np.array([2.0, 1.0])
    assert merits(rates, plain, "mean").tolist() == pytest.approx([4.0, 0.0])
    assert merits(rates, plain, "worst").tolist() == [2.0, 0.0]


def test_the_mean_of_one_scenario_is_its_rate() -> None:
    chosen = search([make_scenario(0.8)]).chosen
    assert chosen.merit == pytest.approx(chosen.tokens_per_s[0])


def test_resamples_are_of_documents_and_shared_by_all_policies() -> None:
    scenario = make_scenario(0.8)
    renamed = tuple(
        replace(prompt, name=f"file-{number // 2}.py:{number}") for number, prompt in enumerate(scenario.trace.header.prompts)
    )
    merged = replace(scenario, trace=replace(scenario.trace, header=replace(scenario.trace.header, prompts=renamed)))
    spread = resampled_rates([scenario], [None])[0, :, 0].std(), resampled_rates([merged], [None])[0, :, 0].std()
    assert spread[0] > 0
    rates = resampled_rates([scenario, merged], [SHORT, SHORT])
    assert rates.shape[0] == 2
    assert np.array_equal(rates[0], rates[1])
    assert not np.array_equal(rates[0, :, 0], rates[0, :, 1])  # the same prompts, drawn in pairs


def test_a_common_policy_is_at_most_as_fast_in_each_scenario_as_that_scenarios_own() -> None:
    confident, unconfident = make_scenario(0.97), make_scenario(0.2)
    own = [search([scenario]).chosen.policy for scenario in (confident, unconfident)]
    common = search([confident, unconfident]).chosen
    separate = rates_by_scenario([confident, unconfident], own)
    assert common.tokens_per_s[0] <= separate[0, 0] * 1.005
    assert common.tokens_per_s[1] <= separate[1, 1] * 1.005
    best_alone = merits(separate, np.ones(2), "mean").max()
    assert common.merit >= best_alone * 0.999


def test_the_worst_objective_chooses_plain_decoding_where_one_scenario_must_not_speculate() -> None:
    hopeless = Scenario(
        make_trace(TraceSpec(num_positions=[60] * 8, max_new_tokens=60, agreement=(0.2,) * 4)),
        CHEAP,
        ConstantLatency(verify_s=6e-4),
    )
    scenarios = [make_scenario(0.97), hopeless]
    mean, worst = (search(scenarios, objective).chosen for objective in ("mean", "worst"))
    plain = rates_by_scenario(scenarios, [None])[0]
    assert worst.policy is None
    assert worst.merit == 1.0
    assert min(np.array(mean.tokens_per_s) / plain) < 1.0
