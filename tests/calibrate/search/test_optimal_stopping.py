"""Derived policies: what costs imply, held against known answers and against what a search finds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from calibrate.search.optimal_stopping import Costs, costs_of, derive
from calibrate.search.scenario import Scenario, rates_at, scenario_of
from calibrate.search.search import search
from perfmodel.acceptance.confidence_curves import fit_curve
from perfmodel.policies.policy import ConfidenceFloor, Policy, SurvivalFloor
from tests.calibrate.search.test_search import CHEAP, EXITS, TARGET, Prices
from tests.strategies import TraceSpec, make_trace


def scenario(draft: Prices = CHEAP, target: Prices = TARGET, **spec: object) -> Scenario:
    whole = {"num_positions": [80] * 16, "max_new_tokens": 80, "num_confidences": 1000} | spec
    return scenario_of(make_trace(TraceSpec(**whole)), draft, target)  # type: ignore[arg-type]


def derived(one: Scenario, exit_layers: tuple[int, ...], rate: float) -> list[Policy]:
    columns = [EXITS.index(layer) for layer in exit_layers]
    trace = one.trace
    curves = [
        fit_curve(trace.confidence[:, e].astype(float), trace.accept_prob[:, e].astype(float), num_bins=8) for e in columns
    ]
    return list(derive(one, costs_of(one), exit_layers, curves, rate))


def test_costs_are_those_of_single_tokens_and_of_one_more_row() -> None:
    costs = costs_of(scenario())
    assert costs.segment_s == pytest.approx((2e-4,) * 4, rel=1e-3)
    assert costs.exit_s == pytest.approx((1e-4,) * 4, rel=1e-3)
    assert costs.row_s == pytest.approx(1e-4, rel=1e-3)
    assert costs.down_to(0) == pytest.approx(3e-4, rel=1e-3)
    assert costs.down_to(3, above=1) == pytest.approx(5e-4, rel=1e-3)


def test_rows_that_were_not_profiled_are_left_out_of_the_cost_of_a_row() -> None:
    costs = costs_of(scenario(target=replace(TARGET, most_rows=4)))
    assert costs.row_s == pytest.approx(1e-4, rel=1e-3)
    assert math.isinf(costs_of(scenario(target=replace(TARGET, most_rows=1))).row_s)


def test_no_block_is_longer_than_what_was_priced() -> None:
    one = scenario(target=replace(TARGET, most_rows=6))
    assert costs_of(one).longest == 5
    assert {policy.tokens for policy in derived(one, (6,), 100.0)} == {5}
    result = search([one])
    assert result.derived is not None
    assert rates_at([one], [result.derived])[0, 0] > 0


def test_what_costs_imply_without_a_price_is_not_told() -> None:
    shallow = scenario(Prices(segment_s=2e-4, exit_s=1e-4, most_rows=0), TARGET)
    assert search([shallow]).derived is None


def test_a_dearer_second_stops_drafting_sooner() -> None:
    floors = []
    for rate in (50.0, 300.0, 600.0):
        [policy] = derived(scenario(), (6,), rate)
        assert isinstance(policy.stop, SurvivalFloor)
        floors.append(policy.stop.floor)
    assert floors == sorted(set(floors))


def test_where_a_token_costs_more_than_it_can_gain_nothing_is_drafted() -> None:
    assert derived(scenario(), (6,), 1e5) == []


def test_the_floor_is_where_a_token_no_longer_pays_its_seconds() -> None:
    """Every token agrees with the same chance a: at survival S one more gains S a, and costs rate x seconds."""
    one = scenario(agreement=(0.8,) * 4)
    agreement = float(one.trace.accept_prob[:, 3].mean())
    flat = replace(one, trace=replace(one.trace, confidence=np.full_like(one.trace.confidence, 0.5)))
    token_s, rate = costs_of(flat).down_to(3) + costs_of(flat).row_s, 400.0
    [policy] = derived(flat, (6,), rate)
    assert isinstance(policy.stop, SurvivalFloor)
    assert policy.stop.floor == pytest.approx(rate * token_s / agreement, rel=0.07)  # the grid's step


def test_free_depth_is_always_used_and_dear_depth_never() -> None:
    free = Prices(segment_s=0.0, exit_s=0.0)
    assert derived(scenario(free, agreement=(0.2, 0.4, 0.6, 0.95)), (1, 6), 200.0) == []  # no token should leave: exit 6 alone
    dear = Prices(segment_s=2e-3, exit_s=0.0)
    assert derived(scenario(dear, agreement=(0.9, 0.9, 0.9, 0.95)), (1, 6), 200.0) == []  # all should leave: exit 1 alone


def test_thresholds_fall_as_the_chance_falls_that_anything_is_kept() -> None:
    one = scenario(Prices(segment_s=3e-4, exit_s=2e-5), agreement=(0.6, 0.7, 0.8, 0.9))
    found = derived(one, (1, 6), 600.0)
    cuts = [policy.thresholds[0] for policy in found]
    assert len(cuts) > 1
    assert cuts == sorted(cuts, reverse=True)
    assert cuts[0] > cuts[-1]


@pytest.mark.parametrize("seed", range(4))
def test_without_a_free_threshold_the_plan_is_nearly_as_fast_as_a_searched_one(seed: int) -> None:
    one = scenario(seed=seed)
    result = search([one])
    assert result.derived is not None
    assert rates_at([one], [result.derived])[0, 0] >= 0.95 * max(found.merit for found in result.families)


def test_exits_without_a_price_imply_nothing() -> None:
    costs = costs_of(scenario())
    unpriced = Costs(segment_s=(*costs.segment_s[:3], math.inf), exit_s=costs.exit_s, row_s=costs.row_s, longest=12)
    one = scenario()
    assert list(derive(one, unpriced, (1, 6), [], 100.0)) == []


def test_a_derived_policy_can_be_told_from_a_searched_floor() -> None:
    assert not any(isinstance(policy.stop, ConfidenceFloor) for policy in derived(scenario(), (1, 6), 300.0))
