"""Optimal-stopping policies, compared with known answers and with what the search finds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from calibrate.search.optimal_stopping import TokenCosts, optimal_policies, token_costs
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from perfmodel.acceptance.confidence_curves import fit_curve
from perfmodel.policies.policy import ConfidenceFloor, Policy, SurvivalFloor
from tests.calibrate.search.test_search import CHEAP, EXITS, TARGET, ConstantLatency
from tests.strategies import TraceSpec, make_trace


def make_scenario(draft: ConstantLatency = CHEAP, target: ConstantLatency = TARGET, **spec: object) -> Scenario:
    spec = {"num_positions": [80] * 16, "max_new_tokens": 80, "num_confidences": 1000} | spec
    return Scenario(make_trace(TraceSpec(**spec)), draft, target)  # type: ignore[arg-type]


def optimal(scenario: Scenario, exits: tuple[int, ...], rate: float) -> list[Policy]:
    columns = [EXITS.index(layer) for layer in exits]
    trace = scenario.trace
    curves = [
        fit_curve(trace.confidence[:, e].astype(float), trace.accept_prob[:, e].astype(float), num_bins=8) for e in columns
    ]
    return list(optimal_policies(scenario, token_costs(scenario), exits, curves, rate))


def test_costs_are_those_of_one_token_and_of_one_more_verified_row() -> None:
    costs = token_costs(make_scenario())
    assert costs.segment_s == pytest.approx((2e-4,) * 4, rel=1e-3)
    assert costs.exit_s == pytest.approx((1e-4,) * 4, rel=1e-3)
    assert costs.row_s == pytest.approx(1e-4, rel=1e-3)
    assert costs.down_to(0) == pytest.approx(3e-4, rel=1e-3)
    assert costs.down_to(3, above=1) == pytest.approx(5e-4, rel=1e-3)


def test_the_cost_of_a_row_uses_only_widths_with_evidence() -> None:
    costs = token_costs(make_scenario(target=replace(TARGET, max_rows=4)))
    assert costs.row_s == pytest.approx(1e-4, rel=1e-3)
    assert math.isinf(token_costs(make_scenario(target=replace(TARGET, max_rows=1))).row_s)


def test_no_block_is_longer_than_the_widest_verification_with_evidence() -> None:
    scenario = make_scenario(target=replace(TARGET, max_rows=6))
    assert token_costs(scenario).max_tokens == 5
    assert {policy.tokens for policy in optimal(scenario, (6,), 100.0)} == {5}
    result = search([scenario])
    assert result.optimal_stopping is not None
    assert scenario.tokens_per_s([result.optimal_stopping])[0] > 0


def test_without_evidence_for_the_draft_there_is_no_optimal_policy() -> None:
    scenario = make_scenario(ConstantLatency(segment_s=2e-4, exit_s=1e-4, max_rows=0), TARGET)
    assert search([scenario]).optimal_stopping is None


def test_drafting_stops_sooner_when_a_second_is_worth_more_tokens() -> None:
    floors = []
    for rate in (50.0, 300.0, 600.0):
        [policy] = optimal(make_scenario(), (6,), rate)
        assert isinstance(policy.stop, SurvivalFloor)
        floors.append(policy.stop.floor)
    assert floors == sorted(set(floors))


def test_nothing_is_drafted_where_a_token_costs_more_than_it_can_gain() -> None:
    assert optimal(make_scenario(), (6,), 1e5) == []


def test_the_floor_is_the_survival_at_which_a_token_no_longer_pays_its_seconds() -> None:
    """Every token agrees with the same probability a: at survival S one more gains S a, and costs rate x seconds."""
    scenario = make_scenario(agreement=(0.8,) * 4)
    agreement = float(scenario.trace.accept_prob[:, 3].mean())
    flat = replace(scenario, trace=replace(scenario.trace, confidence=np.full_like(scenario.trace.confidence, 0.5)))
    token_s, rate = token_costs(flat).down_to(3) + token_costs(flat).row_s, 400.0
    [policy] = optimal(flat, (6,), rate)
    assert isinstance(policy.stop, SurvivalFloor)
    assert policy.stop.floor == pytest.approx(rate * token_s / agreement, rel=0.07)  # the step of the grid


def test_no_threshold_is_given_where_every_token_should_go_deeper_or_none() -> None:
    free = make_scenario(ConstantLatency(segment_s=0.0, exit_s=0.0), agreement=(0.2, 0.4, 0.6, 0.95))
    assert optimal(free, (1, 6), 200.0) == []  # no token should leave at exit 1: the same as exit 6 alone
    slow = make_scenario(ConstantLatency(segment_s=2e-3, exit_s=0.0), agreement=(0.9, 0.9, 0.9, 0.95))
    assert optimal(slow, (1, 6), 200.0) == []  # every token should leave at exit 1: the same as exit 1 alone


def test_thresholds_fall_with_the_survival_they_are_computed_at() -> None:
    scenario = make_scenario(ConstantLatency(segment_s=3e-4, exit_s=2e-5), agreement=(0.6, 0.7, 0.8, 0.9))
    thresholds = [policy.thresholds[0] for policy in optimal(scenario, (1, 6), 600.0)]
    assert len(thresholds) > 1
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[-1]


@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_policy_is_nearly_as_fast_as_the_best_of_the_search(seed: int) -> None:
    scenario = make_scenario(seed=seed)
    result = search([scenario])
    assert result.optimal_stopping is not None
    rate = scenario.tokens_per_s([result.optimal_stopping])[0]
    assert rate >= 0.95 * max(scored.merit for scored in result.families)


def test_exits_without_evidence_have_no_optimal_policy() -> None:
    scenario = make_scenario()
    costs = token_costs(scenario)
    unpriced = TokenCosts(segment_s=(*costs.segment_s[:3], math.inf), exit_s=costs.exit_s, row_s=costs.row_s, max_tokens=12)
    assert list(optimal_policies(scenario, unpriced, (1, 6), [], 100.0)) == []


def test_optimal_policies_never_stop_by_a_confidence_floor() -> None:
    policies = optimal(make_scenario(), (1, 6), 300.0)
    assert not any(isinstance(policy.stop, ConfidenceFloor) for policy in policies)
